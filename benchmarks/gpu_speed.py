"""Loss + gradient on a CUDA device: the fused loss beside mse_loss and the peers that are installed, taking turns.

python -m benchmarks.gpu_speed [--rounds 30] [--seconds 180] [--out benchmarks/results/gpu] [--dry-run]

CUDA events, medians, L2 flushed before each call. Each peer also on x.reshape(N*C, 1, H, W), its best form where it
loops over channels. Small cases once more as replays of a CUDA graph, without the launches from Python. A loss whose
gradient is wrong is named and not timed. OUT.json and OUT.md are written anew after every case. --dry-run goes through
all of it on the CPU with small shapes: its times mean nothing. Under TRITON_INTERPRET=1 it takes Triton along.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

import fused_ssim
from benchmarks import gpu_ceilings, gpu_tables
from benchmarks.gpu_cases import CASES, DRY_CASES, GRAPH_PIXELS, Case
from benchmarks.measure import GRADIENT_LIMIT, order
from benchmarks.peers import PEERS, by_planes
from fused_ssim.reference import min_max

TIMED = ("pytorch-msssim", "fussim", "rahul-goel/fused-ssim")
"""Peers of zero padding or whole windows, with a kernel of their own or the most users."""

UNCAPTURABLE = "pytorch-msssim"
"""Copies its window from the host in each call, which no graph can hold; trying would spoil the next capture."""

KD = {"padding": "reflect", "normalize": "channel", "detach_range": False}
"""What kd's loss asks for by default."""

Loss = Callable[[Tensor, Tensor], Tensor]
Levels = Sequence[Tensor]
LevelsLoss = Callable[[Levels, Levels], Tensor]


def others(device: str) -> tuple[dict[str, tuple[Loss, str | None]], dict[str, str]]:
    """Losses of one pair with the padding of the same definition (None: no SSIM), and who is missing and why."""
    found: dict[str, tuple[Loss, str | None]] = {"mse_loss": (F.mse_loss, None)}
    missing = {}
    for peer in PEERS:
        if peer.name not in TIMED:
            continue
        if device not in peer.devices:
            missing[peer.name] = f"does not run on {device}"
            continue
        try:
            loss = peer.build()
        except (ImportError, OSError, RuntimeError) as error:
            missing[peer.name] = str(error)
            continue
        found[peer.name] = (loss, peer.padding)
        found[peer.name + gpu_tables.PLANES] = (by_planes(loss), peer.padding)
    return found, missing


def ours(device: str) -> list[str]:
    return [name for name in ("cuda", "triton", "cpu") if fused_ssim.dispatch.unavailable(name, device) is None]


def of_levels(case: Case, single: dict[str, Loss], backends: list[str]) -> dict[str, LevelsLoss]:
    """Everybody's loss of all levels of a case; peers sum over levels, and rescale as their users would."""

    def summed(loss: Loss, rescaled: bool) -> LevelsLoss:
        def prepared(x: Tensor) -> Tensor:
            return min_max(x, "channel", False) if rescaled else x

        return lambda xs, ys: sum(loss(prepared(x), prepared(y)) for x, y in zip(xs, ys, strict=True))  # type: ignore

    options = KD if case.rescaled else {}
    found: dict[str, LevelsLoss] = {}
    for backend in backends:  # first: what another's failed graph capture leaves behind meets nobody of ours
        found[f"{gpu_tables.OURS} {backend}"] = lambda xs, ys, b=backend: fused_ssim.pyramid_ssim_loss(
            xs, ys, backend=b, **options
        )
    found |= {name: summed(loss, case.rescaled and name != "mse_loss") for name, loss in single.items()}
    return found


def gradient(loss: LevelsLoss, xs: Levels, ys: Levels) -> tuple[Tensor, ...]:
    xs = [x.detach().requires_grad_() for x in xs]
    return torch.autograd.grad(loss(xs, ys), xs)


def gradient_error(loss: Loss, padding: str, device: str) -> float:
    """Relative L2 distance of the gradient's direction from the fp64 reference, on a small pair."""
    x, y = (torch.rand(2, 3, 40, 53, generator=torch.Generator().manual_seed(s)).to(device) for s in (1, 2))
    (mine,) = gradient(lambda xs, ys: loss(xs[0], ys[0]), [x], [y])
    (true,) = gradient(
        lambda xs, ys: fused_ssim.ssim_loss(xs[0], ys[0], padding=padding, backend="reference"),
        [x.double()],
        [y.double()],
    )
    mine = mine.double()
    return float((mine / mine.norm() - true / true.norm()).norm())


def judge(losses: dict[str, tuple[Loss, str | None]], device: str) -> tuple[dict[str, float], dict[str, str]]:
    """Errors of the gradients, and whose is wrong or cannot be had, and why."""
    errors, wrong = {}, {}
    for name, (loss, padding) in losses.items():
        if padding is None:
            continue
        try:
            errors[name] = gradient_error(loss, padding, device)
        except Exception as error:  # some load their kernels in the first call, and Triton has errors of its own
            wrong[name] = str(error) or repr(error)
            continue
        if not errors[name] <= GRADIENT_LIMIT:  # NaN too
            wrong[name] = f"gradient off by {errors[name]:.3g}"
    return errors, wrong


def first_line(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0]


def inputs(case: Case, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """Drawn on the host: a graph capture that fails leaves the device's generator unusable."""
    generator = torch.Generator().manual_seed(0)
    xs, ys = ([torch.rand(shape, generator=generator).to(device) for shape in case.shapes] for _ in range(2))
    return xs, ys


def milliseconds(run: Callable[[], object], device: str, flush: Tensor) -> float:
    """One call, with nothing of its data in the cache."""
    flush.sum()  # reads: dirty lines would be written back in the measured time
    if device == "cpu":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def take_turns(
    runs: dict[str, Callable[[], object]], device: str, flush: Tensor, rounds: int, seconds: float
) -> tuple[dict[str, float], dict[str, str]]:
    """Median milliseconds, the runs taking turns until rounds or time are over; and who failed, how."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    failed: dict[str, str] = {}
    deadline = time.monotonic() + seconds
    for number in range(rounds + 2):
        names = [name for name in runs if name not in failed]
        for name in (names[i] for i in order(len(names), number)):
            try:
                spent = milliseconds(runs[name], device, flush)
            except Exception as error:  # out of memory too
                failed[name] = first_line(error)
                continue
            if number >= 2 or spent > 1e3 * seconds / 10:  # the first two warm up
                times[name].append(spent)
        if time.monotonic() > deadline and all(times[name] for name in names if name not in failed):
            break
    return {name: median(values) for name, values in times.items() if values and name not in failed}, failed


def captured(loss: LevelsLoss, xs: Levels, ys: Levels, device: str) -> Callable[[], object]:
    """Loss + gradient as the replay of a CUDA graph; on a CPU, as it is."""
    if device == "cpu":
        return lambda: gradient(loss, xs, ys)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            gradient(loss, xs, ys)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = gradient(loss, xs, ys)

    def replay() -> object:
        graph.replay()
        return kept

    return replay


def measure_case(case: Case, losses: dict[str, LevelsLoss], device: str, rounds: int, seconds: float) -> dict:
    xs, ys = inputs(case, device)
    runs = {name: (lambda loss=loss: gradient(loss, xs, ys)) for name, loss in losses.items()}
    medians, failed = take_turns(runs, device, flusher(device), rounds, seconds)
    return {**case.facts(), "milliseconds": medians, "graph_milliseconds": {}, "not_measured": failed}


def measure_graphs(case: Case, losses: dict[str, LevelsLoss], device: str, rounds: int, seconds: float) -> dict:
    """The same of graph replays: medians, and who cannot be captured."""
    xs, ys = inputs(case, device)
    replays, failed = {}, {}
    for name, loss in losses.items():
        if name.startswith(UNCAPTURABLE):
            failed[name] = "copies from the host in each call"
            continue
        try:
            replays[name] = captured(loss, xs, ys, device)
        except Exception as error:
            failed[name] = first_line(error)
    medians, more = take_turns(replays, device, flusher(device), rounds, seconds)
    return {"graph_milliseconds": medians, "not_captured": {**failed, **more}}


def flusher(device: str) -> Tensor:
    """Far more than any L2 holds, so that Python has launched what is measured before the flush is over."""
    return torch.zeros((1 << 30) // 4 if device == "cuda" else 1, device=device)


def save(record: dict, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(record, indent=1, default=str) + "\n")
    out.with_suffix(".md").write_text(gpu_tables.markdown(record))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=180.0, help="for all cases together")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu"))
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    begin = time.monotonic()
    device = "cpu" if args.dry_run else "cuda"
    cases, rounds = (DRY_CASES, 2) if args.dry_run else (CASES, args.rounds)
    single, missing = others(device)
    backends = ours(device)
    judged = dict(single)
    for backend in backends:
        judged[f"{gpu_tables.OURS} {backend}"] = (lambda x, y, b=backend: fused_ssim.ssim_loss(x, y, backend=b), "same")
    errors, wrong = judge(judged, device)
    record = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "dry run: the times mean nothing",
        "torch": torch.__version__,
        "fused_ssim": fused_ssim.info(),
        "missing": missing,
        "wrong": wrong,
        "gradient_errors": errors,
        "ceilings": gpu_ceilings.ceilings(device),
        "cases": {},
        "not_reached": [case.name for case in cases],
    }
    save(record, args.out)
    kept = {name: loss for name, (loss, _) in single.items() if name not in wrong}
    right = [b for b in backends if f"{gpu_tables.OURS} {b}" not in wrong]

    def through(chosen: list[Case], until: float, measure: Callable, keep: Callable[[Case, dict], None]) -> None:
        for number, case in enumerate(chosen):
            left = begin + until - time.monotonic()
            if left < 0:
                return
            losses = of_levels(case, kept, right)
            keep(case, measure(case, losses, device, rounds, left / (len(chosen) - number)))
            save(record, args.out)
            print(f"{time.monotonic() - begin:5.0f} s  {measure.__name__}  {case.name}", flush=True)
            if device == "cuda":
                torch.cuda.empty_cache()

    def keep_case(case: Case, result: dict) -> None:
        record["cases"][case.name] = result
        record["not_reached"].remove(case.name)

    through(cases, 0.8 * args.seconds, measure_case, keep_case)
    small = [case for case in cases if case.name in record["cases"] and case.pixels <= GRAPH_PIXELS]
    through(small, args.seconds, measure_graphs, lambda case, result: record["cases"][case.name].update(result))
    print(gpu_tables.markdown(record))
    if args.dry_run:
        print("dry run: went through, measured nothing")
    failed = [f"{name}: {why}" for name, why in wrong.items() if name.startswith(gpu_tables.OURS)]
    for case, result in record["cases"].items():
        failed += [f"{case}, {n}: {why}" for n, why in result["not_measured"].items() if n.startswith(gpu_tables.OURS)]
    if failed or (device == "cuda" and "cuda" not in backends):
        sys.exit(f"fused_ssim itself failed: {failed or 'no CUDA kernels'}")


if __name__ == "__main__":
    main()
