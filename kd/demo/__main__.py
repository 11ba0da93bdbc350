"""``python -m kd.demo``: distil RetinaNet and Faster R-CNN students with SSIM, on this machine, in minutes."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from kd.demo import digits, recipe, shrink
from kd.demo.backbone_weights import WeightsUnavailable, checked, fetch


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m kd.demo", description=__doc__)
    made.add_argument("--quick", action="store_true", help="RetinaNet alone, under 5 minutes on 2 cores")
    made.add_argument("--data", type=Path, metavar="FOLDER", help="COCO folder to use instead of the embedded digits")
    made.add_argument(
        "--categories", type=int, default=1, metavar="N",
        help="with --data: how many categories to use, the most frequent ones; 0 for all (default: 1, which is what a "
        "detector can begin to learn in minutes)",
    )  # fmt: skip
    made.add_argument(
        "--out", type=Path, default=Path("demo_out"), metavar="FOLDER", help="where everything is written"
    )
    made.add_argument("--seeds", type=int, default=1, metavar="N", help="train every student N times")
    made.add_argument("--weights", type=Path, metavar="FILE", help="ImageNet state dict of torchvision's mobilenet_v2")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit status."""
    options = parser().parse_args(arguments)
    if options.seeds < 1:
        parser().error(f"--seeds: got {options.seeds}, expected at least 1")
    if options.categories < 0:
        parser().error(f"--categories: got {options.categories}, expected 0 for all, or a number of categories")
    console = Console()
    try:
        _demo(options, console)
    except (WeightsUnavailable, ValueError, FileNotFoundError, FileExistsError, FloatingPointError) as error:
        console.print(f"demo: {error}", style="red", highlight=False, markup=False)
        return 1
    except (KeyboardInterrupt, SystemExit):
        console.print("Interrupted. The same command goes on where this one stopped.")
        return 130
    return 0


def _demo(options: argparse.Namespace, console: Console) -> None:
    started = time.perf_counter()
    chosen = recipe.recipe(quick=options.quick, own_data=options.data is not None)
    options.out.mkdir(parents=True, exist_ok=True)
    console.print("Preparing data and ImageNet features ...")
    if options.data is None:
        root = digits.write_digits(options.out / "digits", chosen.data)
    else:
        limits = chosen.data
        root = shrink.shrink(
            options.data, options.out / "coco", longest=limits.longest,
            train_limit=limits.train_images, val_limit=limits.val_images, categories=options.categories,
        )  # fmt: skip
    cache = options.out / "cache"
    weights = fetch(cache) if options.weights is None else checked(options.weights, cache)

    # Lightning takes a second to import: not before the arguments and the data are known to be good.
    from kd.compare import table
    from kd.demo.runs import Trainings, plan
    from kd.report.page import write_report

    _quiet()
    trainings = Trainings(options.out, root, weights, chosen, console)
    runs = plan(chosen, options.seeds)
    console.print(
        f"{trainings.images[0]} training and {trainings.images[1]} validation images, "
        f"{_classes(trainings.class_names)}, at {chosen.image_size} px. {len(runs)} trainings; "
        + (f"meant to take at most {chosen.budget_min} minutes on 2 quiet cores." if options.seeds == 1 else
           f"with {options.seeds} seeds they take longer than the {chosen.budget_min} minutes meant for one."),
        highlight=False,
    )  # fmt: skip
    results = []
    for number, run in enumerate(runs, start=1):
        known = trainings.finished(run) is not None
        result = trainings.do(run)
        results.append(result)
        console.print(
            f"[{number}/{len(runs)}] {run.title}" + (f", seed {run.seed}" if options.seeds > 1 else "")
            + f": AP {result.AP:.1f}, {result.seconds:.0f} s" + (" (done before)" if known else ""),
            highlight=False, markup=False,
        )  # fmt: skip
    made = table.rows(results, chosen.resamples)
    notes = [table.noise_note(made, trainings.images[1], chosen.resamples), *table.verdicts(made)]
    used = ", ".join(f"{m.loss} {m.weight:g}" for m in chosen.methods if m.loss != "none")
    notes.append(
        f"Weights of the distillation losses: {used}. They come from a few trials on RetinaNet, not "
        "from a search, and the losses are on different scales: the table compares the methods at these weights only."
    )
    trained_min = sum(result.seconds for result in results) / 60
    facts = {
        "data": str(options.data or "embedded digits"),
        "training images": trainings.images[0],
        "validation images": trainings.images[1],
        "image size px": chosen.image_size,
        "minutes of training and evaluation": round(trained_min, 1),
        "minutes of this call": round((time.perf_counter() - started) / 60, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        **{f"parameters, {r.title}": r.parameters for r in results if r.seed == 0},
    }
    page = write_report(
        options.out / "report.html", title="Distilling detectors with SSIM on FPN features",
        table=made, notes=notes, results=results, facts=facts,
    )  # fmt: skip
    files = table.write(made, notes, facts, options.out)
    table.show(made, console, "AP on the validation images, in percent")
    for note in notes:
        console.print(note, highlight=False, markup=False)
    console.print(
        f"{facts['minutes of this call']} minutes; training and evaluation of all rows: {trained_min:.1f} minutes.\n"
        f"Table: {', '.join(str(path) for path in files)}\n"
        f"Pictures and curves: {page.resolve()}\n"
        f"Models and logs: {options.out / 'runs'}; tensorboard --logdir {options.out / 'tensorboard'}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip


def _classes(names: Mapping[int, str]) -> str:
    if len(names) > 5:
        return f"{len(names)} classes"
    return f"{len(names)} class{'es' if len(names) > 1 else ''} ({', '.join(names.values())})"


def _quiet() -> None:
    """Silences what Lightning says about every one of many trainings."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


if __name__ == "__main__":
    sys.exit(main())
