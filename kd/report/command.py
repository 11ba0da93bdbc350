"""``kd report``: the command line."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from kd.compare import table
from kd.compare.record import FIGURES, Result
from kd.compare.students import DETECTOR_TITLES
from kd.report.page import write_report
from kd.run_folder import RunFolder, RunFolderError, run_folders

RESAMPLES = 300
TITLE = "Distilling detectors through their FPN features"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="kd report",
        description="One self-contained HTML page about finished trainings: AP table, learning curves, curves by FPN "
        "level and component, pictures, and the full configuration.",
    )
    made.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN",
        help="folder of kd fit, kd compare, kd ablate or the demo; every run below it is taken",
    )  # fmt: skip
    made.add_argument("--out", type=Path, metavar="FILE", help="the page (report.html in the first RUN)")
    made.add_argument("--title", default=TITLE, help="its heading (%(default)s)")
    return made


def main(arguments: Sequence[str]) -> int:
    """Run ``kd report``; returns the exit status."""
    options = parser().parse_args(arguments)
    try:
        results = collected(options.runs)
        made = table.rows(results, RESAMPLES, overheads(options.runs))
        notes = [table.noise_note(made, images, RESAMPLES)] if (images := _images(results)) else []
        notes += table.verdicts(made)
        page = write_report(
            options.out or options.runs[0] / "report.html",
            title=options.title, table=made, notes=notes, results=results, facts={},
        )  # fmt: skip
    except (ValueError, FileNotFoundError) as error:
        print(f"kd report: {error}", file=sys.stderr)
        return 1
    print(page)
    return 0


def collected(paths: Sequence[Path]) -> list[Result]:
    """The results of all runs at or below ``paths``; of a plain run of ``kd fit``, what its log says.

    Raises:
        RunFolderError: there is no finished run, or two runs are of one detector, method and seed.
    """
    results: list[Result] = []
    for path in paths:
        if not path.is_dir():
            raise RunFolderError(f"{path}: no such folder")
        found = [_stored(file) for file in sorted(path.glob("**/result.json"), key=_order)]
        results += found or [result for run in run_folders(path) if (result := _from_log(run)) is not None]
    if not results:
        raise RunFolderError(f"{', '.join(map(str, paths))}: no run there has been evaluated yet")
    results = _told_apart(results)
    twice = [key for key, n in Counter((r.detector, r.method, r.seed) for r in results).items() if n > 1]
    if twice:
        raise RunFolderError(f"{twice[0]}: several runs of this detector, method and seed; report them separately")
    return results


def overheads(paths: Sequence[Path]) -> dict[str, float]:
    """What ``kd compare`` measured of the methods' step times, where ``paths`` hold exactly one comparison."""
    files = [path / "step_cost.json" for path in paths if (path / "step_cost.json").is_file()]
    costs = json.loads(files[0].read_text())["costs"] if len(files) == 1 else {}
    return {name: cost["overhead_percent"] for name, cost in costs.items()}


def _stored(file: Path) -> Result:
    return Result(**{**json.loads(file.read_text()), "folder": str(file.parent)})


def _order(file: Path) -> tuple[object, ...]:
    """By detector, the teacher first, then seed by seed as the trainings ended."""
    content = json.loads(file.read_text())
    return content["detector"], content["method"] != "teacher", content["seed"], file.stat().st_mtime_ns


def _from_log(run: RunFolder) -> Result | None:
    curves = run.curves()
    if "AP" not in curves:
        return None
    model = run.model
    name = DETECTOR_TITLES.get(model["student"]["name"], model["student"]["name"])
    loss = "alone" if model["loss"] == "none" else f"{model['loss'].upper()} {model['weight']:g}"
    return Result(
        name=run.path.name,
        title=f"{name}, {run.path.name} ({loss})",
        detector=name,
        method="none" if model["loss"] == "none" else run.path.name,
        seed=run.config["data"]["seed"],
        **{figure: curves[figure][1][-1] for figure in FIGURES},
        step_ms=None,
        steps=max(curves["AP"][0]) + 1,
        seconds=0.0,
        parameters=0,
        peak_memory_mb=None,
        folder=str(run.path),
    )


def _told_apart(results: list[Result]) -> list[Result]:
    """Several runs without a teacher and with one seed can not all be "the student alone": then each has its own
    name."""
    alone = Counter((r.detector, r.seed) for r in results if r.method == "none")
    return [replace(r, method=r.name) if r.method == "none" and alone[r.detector, r.seed] > 1 else r for r in results]


def _images(results: Sequence[Result]) -> int | None:
    for result in results:
        file = Path(result.folder) / "detections.pt"
        if file.is_file():
            return len(torch.load(file, weights_only=True)["targets"])
    return None
