"""Tables of a record of gpu_speed.py: times, shares of the ceilings, and each target beside what was measured."""

from collections.abc import Callable
from typing import NamedTuple

OURS = "fused_ssim"
PLANES = ", N*C planes"
BYTES = 12
"""A pixel must move: x and y read, the gradient written, in float32."""

Times = dict[str, float]


def _least(times: Times, wanted: Callable[[str], bool]) -> float | None:
    return min((t for name, t in times.items() if wanted(name)), default=None)


def is_peer(name: str) -> bool:
    return name != "mse_loss" and not name.startswith(OURS)


def main_one(times: Times) -> float | None:
    """Ours: the CUDA kernel; without it, in a dry run, what there is."""
    return times.get(f"{OURS} cuda", times.get(f"{OURS} cpu"))


def ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def bound_ms(record: dict, case: dict) -> float | None:
    """Issue slots of all pixels over those of the device; None where the ceiling is not known."""
    ceilings = record["ceilings"]
    if not ceilings.get("slots_per_s"):
        return None
    slots = ceilings["slots_per_pixel"]["rescaled" if case["rescaled"] else "plain"]
    return 1e3 * case["pixels"] * slots / ceilings["slots_per_s"]


class Target(NamedTuple):
    says: str
    limit: float
    at_least: bool
    measured: Callable[[dict, dict, Times], float | None]
    """Of record, case and times; None where it does not apply."""

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def title(self) -> str:
        return f"{self.says} ({'>=' if self.at_least else '<='} {self.limit:g})"


def _as_called(record: dict, case: dict, times: Times) -> float | None:
    if case["channels"] != 256:
        return None
    return ratio(_least(times, lambda n: is_peer(n) and not n.endswith(PLANES)), main_one(times))


TARGETS = (
    Target("fastest peer, best form / ours", 3, True, lambda r, c, t: ratio(_least(t, is_peer), main_one(t))),
    Target("fastest peer as called, 256 channels / ours", 30, True, _as_called),
    Target("ours / issue bound", 1.4, False, lambda r, c, t: ratio(main_one(t), bound_ms(r, c))),
    Target("ours / mse_loss", 1, False, lambda r, c, t: ratio(main_one(t), t.get("mse_loss"))),
    Target("Triton / CUDA", 2, False, lambda r, c, t: ratio(t.get(f"{OURS} triton"), t.get(f"{OURS} cuda"))),
    Target("fastest peer / Triton", 1.5, True, lambda r, c, t: ratio(_least(t, is_peer), t.get(f"{OURS} triton"))),
)


def rows_of(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["-"] * len(head), *rows]) + "\n"


def number(value: float | None, form: str = ".3g") -> str:
    return "-" if value is None else format(value, form)


def times_table(record: dict, key: str) -> str:
    cases = {name: case for name, case in record["cases"].items() if case[key]}
    names = list(dict.fromkeys(name for case in cases.values() for name in case[key]))
    ceilings = record["ceilings"]
    rows = []
    for title, case in cases.items():
        ours = main_one(case[key])
        moved = None if ours is None else 1e3 * BYTES * case["pixels"] / ours
        bound = bound_ms(record, case)
        rates = (None if moved is None else moved / 1e9, ratio(moved, ceilings.get("copy_bytes_per_s")))
        rows.append(
            [
                title,
                *(number(case[key].get(name), ".4g") for name in names),
                *(number(value) for value in (*rates, bound, ratio(bound, ours))),
            ]
        )
    head = [
        "case",
        *(f"{name} ms" for name in names),
        "ours GB/s",
        "of a copy's",
        "issue bound ms",
        "of the issue rate",
    ]
    return rows_of(head, rows)


def targets_table(record: dict, key: str) -> str:
    rows, met, judged = [], [0] * len(TARGETS), [0] * len(TARGETS)
    for title, case in record["cases"].items():
        if not case[key]:
            continue
        row = [title]
        for i, target in enumerate(TARGETS):
            value = target.measured(record, case, case[key])
            if value is not None:
                met[i] += target.met(value)
                judged[i] += 1
            row.append("-" if value is None else f"{value:.3g} {'yes' if target.met(value) else 'NO'}")
        rows.append(row)
    rows.append(["met in", *(f"{m} of {j}" for m, j in zip(met, judged, strict=True))])
    return rows_of(["measured, met", *(target.title() for target in TARGETS)], rows)


NOTES = """
ms: medians of loss + gradient; "N*C planes": the peer on x.reshape(N*C, 1, H, W). FPN: five levels in one call, of the
peers and of mse_loss the sum over levels; kd: mirrored borders and min-max by channel with its gradient (of the peers,
rescaled by PyTorch before; of mse_loss, nothing rescaled). GB/s: 12 bytes a pixel, the least that can move. Issue
bound: slots a pixel by static_cost.py, counted on whole 100 x 152 maps, over the device's issue slots. A call from
Python waits behind the flush of L2, which hides its launches as far as they take no longer than that.
"""


def markdown(record: dict) -> str:
    ceilings = record["ceilings"]
    parts = [f"# {record['device']}, torch {record['torch']}\n"]
    if "copy_bytes_per_s" in ceilings:
        copied, fma, slots = (ceilings[key] for key in ("copy_bytes_per_s", "fma_per_s", "slots_per_s"))
        parts.append(
            f"Ceilings: a copy moves {copied / 1e9:.0f} GB/s; {fma / 1e12:.1f} T fused multiply-adds/s "
            f"({ceilings['fma_from']}), {slots / 1e12:.1f} T issue slots of a thread/s.\n"
        )
    for key, title in (("milliseconds", "Called from Python"), ("graph_milliseconds", "Replays of a CUDA graph")):
        if any(case[key] for case in record["cases"].values()):
            parts.append(f"## {title}\n\n{times_table(record, key)}\n{targets_table(record, key)}")
    for key, says in (("missing", "missing"), ("wrong", "not timed")):
        parts += [f"{says}: {name}: {why}\n" for name, why in record[key].items()]
    for title, case in record["cases"].items():
        parts += [f"not measured: {title}, {name}: {why}\n" for name, why in case["not_measured"].items()]
        parts += [f"no graph: {title}, {name}: {why}\n" for name, why in case.get("not_captured", {}).items()]
    if record["not_reached"]:
        parts.append(f"not reached: {', '.join(record['not_reached'])}\n")
    return "\n".join(parts) + NOTES
