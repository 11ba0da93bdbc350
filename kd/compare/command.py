"""``kd compare`` and ``kd ablate``: the command lines."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from rich.console import Console

from kd.coco import DataError
from kd.compare import table
from kd.compare.methods import Method, Sweep, named_methods, swept_methods
from kd.compare.record import Result, write_atomically
from kd.compare.step_cost import StepCost
from kd.compare.students import (
    ChangedSettings,
    Configuration,
    Launch,
    Student,
    Students,
    TrainingFailed,
    launch,
    resolved,
)

RESAMPLES = 300


def parser(command: str) -> argparse.ArgumentParser:
    """The command line of "compare" or "ablate"."""
    about = {
        "compare": "Train one student by every method and seed, all else equal, and put them into one table.",
        "ablate": "Train one student by SSIM with parts of it changed: exponents, window, weight, rescaling, adapters.",
    }[command]
    made = argparse.ArgumentParser(
        prog=f"kd {command}",
        description=about + " Interrupted, the same command goes on where it stopped: finished students are kept, an "
        "unfinished one resumes.",
        epilog="All other arguments are passed on to kd fit and hold for every student, e.g. --data.root /data/coco.",
        allow_abbrev=False,
    )
    made.add_argument("--config", required=True, metavar="FILE", help="configuration of kd fit, with a teacher")
    if command == "compare":
        made.add_argument(
            "--methods", default="none,l1,l2,ssim,pkd,cwd", metavar="A,B,...", help="what to compare (%(default)s)"
        )
        made.add_argument(
            "--weights", default="", metavar="A=X,B=Y", help="weights of the losses, where not the configuration's"
        )
    else:
        made.add_argument(
            "--sweeps", default=",".join(get_args(Sweep)), metavar="A,B,...", help="what to sweep (%(default)s)"
        )
    made.add_argument("--seeds", type=int, default=1, metavar="N", help="train every student N times (%(default)s)")
    made.add_argument(
        "--step-rounds", type=int, default=10, metavar="N",
        help="time N training steps of every method side by side; 0 leaves the overhead out (%(default)s)",
    )  # fmt: skip
    made.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where everything is written")
    return made


def main(command: str, arguments: Sequence[str], launch: Launch = launch) -> int:
    """Run ``kd compare`` or ``kd ablate``; returns the exit status."""
    made = parser(command)
    options, fit_arguments = made.parse_known_args(arguments)
    if options.step_rounds < 0:
        made.error(f"--step-rounds: got {options.step_rounds}, expected 0 or more")
    if options.seeds < 1:
        made.error(f"--seeds: got {options.seeds}, expected at least 1")
    console = Console()
    try:
        config = resolved(["--config", options.config, *fit_arguments])
        methods = _methods(command, options, config)
        return _compare(options, config, methods, console, launch)
    except (DataError, ChangedSettings, ValueError, FileNotFoundError) as error:
        print(f"kd {command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        console.print("Interrupted. The same command goes on where this one stopped.")
        return 130


def _methods(command: str, options: argparse.Namespace, config: Configuration) -> list[Method]:
    model = config["model"]
    if model.get("teacher") is None:
        raise ValueError("model.teacher: the configuration has none, but all students learn from one teacher")
    if command == "compare":
        return named_methods(options.methods.split(","), model, _weights(options.weights))
    sweeps = options.sweeps.split(",")
    if unknown := set(sweeps) - set(get_args(Sweep)):
        raise ValueError(f"--sweeps: got {', '.join(sorted(unknown))}, expected some of {', '.join(get_args(Sweep))}")
    return swept_methods(sweeps, model)


def _weights(text: str) -> dict[str, float]:
    weights = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            raise ValueError(f"--weights: got {part!r}, expected LOSS=NUMBER") from None
    return weights


def _compare(
    options: argparse.Namespace, config: Configuration, methods: Sequence[Method], console: Console, launch: Launch
) -> int:
    started = time.perf_counter()
    students = Students(options.out, config, console, launch)
    # Seed by seed, so that a comparison stopped early has compared something.
    plan = [Student(method, seed) for seed in range(options.seeds) for method in methods]
    for student in plan:
        students.finished(student)  # refuses changed settings before anything is trained
    results, failed = [], []
    if teacher := students.teacher():
        results.append(teacher)
        console.print(f"teacher: AP {teacher.AP:.1f}", highlight=False)
    for number, student in enumerate(plan, start=1):
        known = students.finished(student) is not None
        console.rule(f"{number}/{len(plan)} {student.name}" + (": done before" if known else ""))
        try:
            result = students.do(student)
        except TrainingFailed as error:
            console.print(f"{student.name}: {error}", style="red", highlight=False, markup=False)
            failed.append(student.name)
            continue
        results.append(result)
        console.print(f"{student.name}: AP {result.AP:.1f}, {result.seconds:.0f} s", highlight=False, markup=False)
    if len(results) > len([r for r in results if r.method == "teacher"]):
        trained = {result.method for result in results}
        costs = step_costs(students, [m for m in methods if m.name in trained], options.step_rounds, console)
        _write(options.out, students, results, methods, failed, costs, console)
    console.print(f"{(time.perf_counter() - started) / 60:.1f} minutes", highlight=False)
    if failed:
        console.print(f"failed: {', '.join(failed)}; the table is without them", style="red", highlight=False)
    return int(bool(failed))


def _write(
    out: Path,
    students: Students,
    results: Sequence[Result],
    methods: Sequence[Method],
    failed: Sequence[str],
    costs: Mapping[str, StepCost],
    console: Console,
) -> None:
    made = table.rows(results, RESAMPLES, {name: cost.overhead_percent for name, cost in costs.items()})
    notes = [table.noise_note(made, students.images[1], RESAMPLES), *table.verdicts(made), weights_note(methods)]
    if costs:
        notes.append(
            "overhead %: a training step's time over that of a plain step with the teacher's forward pass, all on one "
            "batch and in turns. step ms and peak MiB are of each training by itself."
        )
    facts = {
        "training images": students.images[0],
        "validation images": students.images[1],
        "minutes of training and evaluation": round(sum(result.seconds for result in results) / 60, 1),
        "failed": list(failed),
        "step_cost": {name: asdict(cost) for name, cost in costs.items()},
        "configuration": students.config,
    }
    files = table.write(made, notes, facts, out)
    table.show(made, console, "AP on the validation images, in percent")
    for note in notes:
        console.print(note, highlight=False, markup=False)
    console.print(f"Table: {', '.join(map(str, files))}", highlight=False, markup=False, soft_wrap=True)


def step_costs(students: Students, methods: Sequence[Method], rounds: int, console: Console) -> dict[str, StepCost]:
    """What a step by each method costs, measured now, or read where this has been measured; empty without rounds."""
    distilling = [method for method in methods if method.loss != "none"]
    if not rounds or not distilling:
        return {}
    file = students.out / "step_cost.json"
    settings = json.loads(json.dumps({"rounds": rounds, "methods": [asdict(method) for method in methods]}))
    stored = json.loads(file.read_text()) if file.is_file() else {}
    if stored.get("settings") != settings:
        console.print(f"timing {rounds} training steps of every method side by side ...")
        costs = students.step_costs(methods, rounds)
        stored = {"settings": settings, "costs": {name: asdict(cost) for name, cost in costs.items()}}
        write_atomically(file, json.dumps(stored, indent=1))
    return {name: StepCost(**cost) for name, cost in stored["costs"].items()}


def weights_note(methods: Sequence[Method]) -> str:
    """With which weights the losses are compared, and what that does not say."""
    used = ", ".join(f"{m.title.removeprefix('student + ')} {m.weight:g}" for m in methods if m.loss != "none")
    return (
        f"Weights of the distillation losses: {used}. The losses are on different scales: the table compares the "
        "methods at these weights only."
    )
