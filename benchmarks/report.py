"""A record as a text: ``python -m benchmarks.report benchmarks/results/cpu.json`` prints it again."""

import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Entry = dict[str, Any]

ORDER = ("fused", "yardstick", "reference", "peer")
FUSED = "fused_ssim same"


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def named(record: Record, *kinds: str) -> list[str]:
    """The candidates of these kinds that were measured at least once, in the order of the record."""
    seen = {name for entry in record["cases"] for name in entry["median_seconds"]}
    return [name for name, facts in record["candidates"].items() if name in seen and facts["kind"] in kinds]


def group(record: Record, name: str) -> list[Entry]:
    return [entry for entry in record["cases"] if entry["group"] == name]


def ratio(entry: Entry, slow: str, fast: str) -> float | None:
    """How many times as long ``slow`` takes as ``fast`` in this case; None where either was not measured."""
    seconds = entry["median_seconds"]
    return seconds[slow] / seconds[fast] if slow in seconds and fast in seconds else None


def as_called(record: Record, entry: Entry, name: str) -> float | None:
    """``name`` over fused_ssim with its default padding."""
    return ratio(entry, name, FUSED)


def same_definition(record: Record, entry: Entry, name: str) -> float | None:
    """``name`` over fused_ssim with the padding that ``name`` uses."""
    return ratio(entry, name, record["candidates"][name]["twin"])


def geometric_mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.exp(statistics.fmean(map(math.log, known))) if known else None


def fastest_peer(record: Record, entry: Entry, compare: Callable[[Record, Entry, str], float | None]) -> float | None:
    values = [compare(record, entry, name) for name in named(record, "peer")]
    return min((value for value in values if value is not None), default=None)


def number(value: float | None, suffix: str = "") -> str:
    if value is None:
        return "-"
    digits = 0 if value >= 99.5 else 1 if value >= 9.95 else 2
    return f"{value:.{digits}f}{suffix}"


def milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1e3:.3g} ms" if value < 0.9995 else f"{value * 1e3:.0f} ms"


def shape(entry: Entry) -> str:
    return "(" + ", ".join(map(str, entry["shape"])) + ")"


def errors_table(record: Record) -> str:
    rows = []
    for name, facts in record["candidates"].items():
        found = [entry["errors"][name] for entry in record["cases"] if name in entry["errors"]]
        if found:
            worst = [f"{max(e[key] for e in found):.1e}" for key in ("value", "gradient", "gradient_max")]
            rows.append([name, facts["padding"], *worst])
    return table(["", "padding", "value", "gradient, relative L2", "gradient, worst pixel"], rows)


def times_table(record: Record, entries: list[Entry]) -> str:
    names = named(record, *ORDER)
    rows = [[shape(e), *(milliseconds(e["median_seconds"].get(name)) for name in names)] for e in entries]
    return table(["shape", *names], rows)


def peers_table(record: Record, entries: list[Entry]) -> str:
    """As called / same definition."""
    names = named(record, "peer", "reference")
    rows = []
    for entry in entries:
        cells = [(as_called(record, entry, n), same_definition(record, entry, n)) for n in names]
        rows.append([shape(entry), *(f"{number(a)} / {number(b)}" for a, b in cells)])
    means = [
        (
            geometric_mean(as_called(record, e, n) for e in entries),
            geometric_mean(same_definition(record, e, n) for e in entries),
        )
        for n in names
    ]
    rows.append(["geometric mean", *(f"{number(a)} / {number(b)}" for a, b in means)])
    return table(["shape", *names], rows)


def summary_table(record: Record, entries: list[Entry]) -> str:
    exponents = [name for name in named(record, "fused") if name.startswith("fused_ssim (")]
    columns: dict[str, Callable[[Entry], float | None]] = {
        "fused / mse_loss": lambda e: ratio(e, FUSED, "mse_loss"),
        "fused / l1_loss": lambda e: ratio(e, FUSED, "l1_loss"),
        "fastest peer / fused, as called": lambda e: fastest_peer(record, e, as_called),
        "same definition": lambda e: fastest_peer(record, e, same_definition),
        **{
            f"exponents {name.removeprefix('fused_ssim ')} / (1, 1, 1)": lambda e, name=name: ratio(e, name, FUSED)
            for name in exponents
        },
    }
    rows = [[shape(e), *(number(column(e)) for column in columns.values())] for e in entries]
    rows.append(["geometric mean", *(number(geometric_mean(map(column, entries))) for column in columns.values())])
    return table(["shape", *columns], rows)


def memory_table(record: Record, entries: list[Entry]) -> str:
    """Multiples of the size of x."""
    names = named(record, *ORDER)
    rows = []
    for entry in entries:
        size = 4 * math.prod(entry["shape"])
        peaks = [entry["peak_bytes"].get(name) for name in names]
        rows.append([f"{shape(entry)}, {size / 1e6:.1f} MB", *(number(p / size) if p else "-" for p in peaks)])
    return table(["shape, size of x", *names], rows)


def missing(record: Record) -> str:
    lines = []
    for name in record["candidates"]:
        reasons: dict[str, list[str]] = {}
        for entry in record["cases"]:
            if name in entry["not_measured"]:
                reasons.setdefault(entry["not_measured"][name], []).append(shape(entry))
        for reason, shapes in reasons.items():
            where = "" if len(shapes) == len(record["cases"]) else f" on {', '.join(shapes)}"
            lines.append(f"* {name}{where}: {reason}")
    return "\n".join(lines)


def made_with(record: Record) -> str:
    facts = record["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    threads = f"{facts['threads']} thread{'s' if facts['threads'] > 1 else ''}"
    where = facts["gpu"] or f"{facts['processor']} ({facts['vector_instructions']}), {threads}"
    return f"{where}; {versions}; commit {facts['commit']}; load before the run {facts['load_before']}."


def markdown(record: Record) -> str:
    """The whole record as Markdown."""
    parts = [
        "# Loss + gradient of the structural similarity",
        made_with(record),
        f"float32, {record['arguments']['rounds']} interleaved rounds, medians. Every function is called as its users "
        'call it and differentiates by x. "As called" compares it with `fused_ssim` as called (zero padding); "same '
        'definition" with `fused_ssim` under the padding that the function uses. pytorch-msssim and piq take only '
        "whole windows, so on small maps they compute far fewer pixels: there the second is the fair comparison.",
    ]
    entries = group(record, "issue")
    if entries:
        parts += ["## In short", summary_table(record, entries)]
        parts += ["## Times", times_table(record, entries)]
        parts += [
            "## Peers and plain PyTorch, times of fused_ssim",
            "As called / same definition.",
            peers_table(record, entries),
        ]
        parts += [
            "## Errors",
            "Largest over the shapes, against float64 autograd of the reference of the same definition.",
            errors_table(record),
        ]
        with_memory = [entry for entry in entries if "peak_bytes" in entry]
        if with_memory:
            parts += [
                "## Peak memory",
                "What one loss + gradient holds at the most beyond x and y, in multiples of the size of x; the "
                "gradient of x is 1 of it. On a CPU: growth of the resident set in a fresh process.",
                memory_table(record, with_memory),
            ]
    for name in ("size", "channels", "samples"):
        if group(record, name):
            parts += [f"## Growth: {name}", times_table(record, group(record, name))]
    left_out = missing(record)
    if left_out:
        parts += ["## Not measured", left_out]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text())))
