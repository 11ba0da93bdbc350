"""fused_ssim beside its peers: errors, loss + gradient times, peak memory; table, plots and a record.

    python -m benchmarks.run                     everything (tens of minutes)
    python -m benchmarks.run --shapes issue      the five shapes of the README
    python -m benchmarks.run --quick             few rounds, no large growth points, no compiled reference

Writes OUT.json, OUT.md and OUT_*.png.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from . import machine, measure, peers, plots, report
from .cases import GROUPS, Case, cases
from .peers import Candidate, Loss


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=(*GROUPS, "all"), default="all", help="which group of shapes")
    parser.add_argument("--quick", action="store_true", help="few rounds, fewer shapes, no compiled reference")
    parser.add_argument("--largest", type=int, help="leave out shapes of more elements, where memory or time is short")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch on the CPU")
    parser.add_argument("--rounds", type=int, help="turns of each candidate in a case; default 21, quick 5")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory measurements out")
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction, help="time torch.compile of the reference")
    parser.add_argument("--out", type=Path, help="without suffix; default benchmarks/results/DEVICE")
    args = parser.parse_args()
    args.rounds = args.rounds or (5 if args.quick else 21)
    args.compiled = not args.quick if args.compiled is None else args.compiled
    args.out = args.out or Path("benchmarks/results") / args.device
    return args


def built(candidates: list[Candidate]) -> tuple[dict[str, Loss], dict[str, str]]:
    """The losses of those that can run here, and of the others why not."""
    losses, missing = {}, {}
    for candidate in candidates:
        try:
            losses[candidate.name] = candidate.build()
        except (ImportError, RuntimeError) as error:
            missing[candidate.name] = str(error)
    return losses, missing


def measure_case(case: Case, candidates: list[Candidate], args: argparse.Namespace) -> dict[str, object]:
    """Errors, and times of those whose gradient is right, for one shape."""
    x, y = measure.images(case.shape, args.device)
    by_name = {c.name: c for c in candidates}
    losses, failures = built(candidates)
    errors = {}
    if case.group == "issue":
        judge = measure.Judge(x, y)
        for name in [name for name in losses if by_name[name].kind != "yardstick"]:
            try:
                errors[name] = measure.Errors(*judge.errors(by_name[name], losses[name]))._asdict()
            except (RuntimeError, ValueError) as error:  # this shape is not for everybody
                failures[name] = str(error).splitlines()[0]
                continue
            # Written so that a NaN is refused.
            if not errors[name]["gradient"] <= measure.GRADIENT_LIMIT:
                failures[name] = f"its gradient is off by {errors[name]['gradient']:.2g}: not timed"
    losses = {name: loss for name, loss in losses.items() if name not in failures}
    seconds = measure.times(losses, x, y, args.rounds)
    return {
        "group": case.group,
        "shape": list(case.shape),
        "varied": case.varied,
        "errors": errors,
        "median_seconds": {name: measure.median(values) for name, values in seconds.items()},
        "fastest_seconds": {name: min(values) for name, values in seconds.items()},
        "turns": {name: len(values) for name, values in seconds.items()},
        "not_measured": failures,
    }


def save(result: report.Record, out: Path) -> str:
    """Write OUT.json and OUT.md as far as they are; returns the latter. After every case, so that no hour is lost."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    text = report.markdown(result)
    out.with_suffix(".md").write_text(text)
    return text


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    candidates = peers.candidates(args.device, args.compiled)
    groups = GROUPS if args.shapes == "all" else (args.shapes,)
    begin = time.monotonic()
    result: dict[str, object] = {
        "machine": machine.record(args.device, args.threads),
        "arguments": {"shapes": args.shapes, "quick": args.quick, "rounds": args.rounds, "largest": args.largest},
        "candidates": {c.name: {"kind": c.kind, "padding": c.padding, "twin": c.twin} for c in candidates},
    }
    measured: list[dict[str, object]] = []
    result["cases"] = measured
    for case in cases(groups, args.quick, args.largest):
        measured.append(measure_case(case, candidates, args))
        print(f"{time.monotonic() - begin:6.0f} s  times   {case.group:8} {case.shape}", file=sys.stderr, flush=True)
        save(result, args.out)
    if not args.no_memory:
        for entry in measured:
            if entry["group"] != "issue" or (args.quick and entry is not measured[0]):
                continue
            shape = tuple(entry["shape"])
            entry["peak_bytes"] = {
                name: measure.peak_bytes(name, shape, args.device, args.threads) for name in entry["median_seconds"]
            }
            print(f"{time.monotonic() - begin:6.0f} s  memory  {shape}", file=sys.stderr, flush=True)
    result["seconds"] = round(time.monotonic() - begin)
    print(save(result, args.out))
    plots.draw(result, args.out)
    wrong = [
        name for entry in measured for name in entry["not_measured"] if result["candidates"][name]["kind"] == "fused"
    ]
    if wrong:
        sys.exit(f"fused_ssim itself failed: {', '.join(sorted(set(wrong)))}")


if __name__ == "__main__":
    main()
