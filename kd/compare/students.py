"""The students of a comparison: each trained by ``kd fit`` at most once, in a process of its own."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from kd.compare.methods import Method
from kd.compare.record import FIGURES, Result, save_detections, write_atomically, write_result
from kd.compare.step_cost import StepCost, distilling_steps, measure
from kd.data import CocoDataModule
from kd.distiller import distill
from kd.evaluation import CocoEvaluator
from kd.models import DetectorConfig, build
from kd.optimization import OptimizerConfig
from kd.run_folder import flat

#: Raised when a change of the code changes what a stored result means.
FORMAT = 1
#: What does not change the weights that a training ends with.
WITHOUT_EFFECT: Mapping[str, Sequence[str]] = {
    "trainer": (
        "default_root_dir", "logger", "callbacks", "log_every_n_steps", "enable_progress_bar", "enable_model_summary",
        "enable_checkpointing", "check_val_every_n_epoch", "val_check_interval", "limit_val_batches", "profiler",
    ),
    "data": ("root", "workers", "eval_batch_size", "val_images", "train_images"),
    "model": ("log_components_every", "class_metrics"),
}  # fmt: skip
#: Steps between two measurements of SSIM's components where the configuration asks for none: the report draws them.
COMPONENTS_EVERY = 50

Launch = Callable[[Sequence[str]], None]
Configuration = dict[str, Any]
COMMAND = [sys.executable, "-m", "kd"]
DETECTOR_TITLES = {"retinanet": "RetinaNet", "faster_rcnn": "Faster R-CNN"}


class TrainingFailed(RuntimeError):
    """A student's training ended with an error; what it said is above on the terminal."""


class ChangedSettings(ValueError):
    """The output folder holds a training with other settings; the message names them."""


@dataclass(frozen=True)
class Student:
    """One training of a comparison."""

    method: Method
    seed: int

    @property
    def name(self) -> str:
        """Folder below the output's ``students``."""
        return f"{self.method.name}-seed{self.seed}"


def resolved(arguments: Sequence[str]) -> Configuration:
    """The whole configuration that ``kd fit`` with these arguments would run: checked, with defaults, nothing built.

    Raises:
        SystemExit: the arguments are wrong; the message is on the terminal.
    """
    from kd.cli import main

    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            main(["fit", *arguments, "--print_config"])
    except SystemExit as stopped:
        if stopped.code not in (0, None):
            raise
    return yaml.safe_load(printed.getvalue())


def launch(arguments: Sequence[str]) -> None:
    """Run ``kd`` with these arguments in a process of its own; signals that end this process reach it first, so that
    it saves its state.

    Raises:
        TrainingFailed: it ended with an error.
        KeyboardInterrupt: it was interrupted.
    """
    process = subprocess.Popen([*COMMAND, *arguments])

    def forward(number: int, frame: object) -> None:
        process.send_signal(number)

    before = signal.signal(signal.SIGTERM, forward)
    try:
        while True:
            try:
                status = process.wait()
                break
            except KeyboardInterrupt:
                # The terminal has sent it to the process too, which now ends after its current step.
                continue
    finally:
        signal.signal(signal.SIGTERM, before)
    if status in (128 + signal.SIGTERM, -signal.SIGTERM):
        sys.exit(128 + signal.SIGTERM)
    if status in (128 + signal.SIGINT, -signal.SIGINT):
        raise KeyboardInterrupt
    if status:
        raise TrainingFailed(f"kd {' '.join(arguments)} ended with status {status}")


class Students:
    """Trains the students of one comparison below one folder, and remembers what is done.

    Args:
        out: the comparison's folder; every student writes below ``out/students``.
        config: what :func:`resolved` gives. Its ``model.loss`` and what belongs to it are the methods' to set.
        console: where it is said what goes on.
        launch: runs ``kd`` with a list of arguments.

    Raises:
        kd.coco.DataError: the data are missing or wrong.
    """

    def __init__(self, out: Path, config: Configuration, console: Console, launch: Launch = launch) -> None:
        self.out, self.config, self.console, self._launch = out, config, console, launch
        data = CocoDataModule(**config["data"])
        data.setup("fit")
        assert data.train is not None and data.val is not None
        self.images = (len(data.train), len(data.val))
        self.validation = data.val
        self._data = data
        name = config["model"]["student"]["name"]
        self.detector = DETECTOR_TITLES.get(name, name)
        self._files = {
            "train_annotations": _sha256(data.train_paths[1]),
            "val_annotations": _sha256(data.val_paths[1]),
            **{
                f"{role}.weights": _sha256(Path(weights))
                for role in ("student", "teacher")
                if (weights := (config["model"][role] or {}).get("weights")) and Path(weights).is_file()
            },
        }

    @property
    def device(self) -> torch.device:
        """Where the configuration trains."""
        on_cpu = self.config["trainer"]["accelerator"] == "cpu" or not torch.cuda.is_available()
        return torch.device("cpu" if on_cpu else "cuda")

    def folder(self, student: Student) -> Path:
        """Where the student's training keeps its files."""
        return self.out / "students" / student.name

    def finished(self, student: Student) -> Result | None:
        """The student's result, if it has been trained.

        Raises:
            ChangedSettings: it has been trained with other settings, or its training has begun with others.
        """
        folder = self.folder(student)
        self._check_settings(student)
        file = folder / "result.json"
        if not file.is_file():
            return None
        stored = json.loads(file.read_text())
        return Result(**{**stored, "title": self._title(student.method), "folder": str(folder)})

    def do(self, student: Student) -> Result:
        """Train and evaluate; goes on from the last checkpoint, or returns the result if there is one already.

        Raises:
            ChangedSettings: see :meth:`finished`.
            TrainingFailed: the training ended with an error.
        """
        if done := self.finished(student):
            return done
        folder = self.folder(student)
        config = self.configuration(student)
        write_atomically(folder / "settings.json", json.dumps(self._settings(student), indent=1))
        given = folder / "given.yaml"
        write_atomically(given, yaml.safe_dump(config, sort_keys=False))
        arguments = ["fit", "--config", str(given)]
        if any(folder.glob("checkpoints/last*.ckpt")):
            self.console.print(f"{student.name}: going on from its last checkpoint", highlight=False, markup=False)
            arguments += ["--ckpt_path", "last"]
        self._launch(arguments)
        record = folder / "record.json"
        if not record.is_file():
            raise TrainingFailed(f"{student.name}: the training ended without {record}")
        result = Result(
            name=student.name,
            title=self._title(student.method),
            detector=self.detector,
            method=student.method.name,
            seed=student.seed,
            folder=str(folder),
            **json.loads(record.read_text()),
        )
        write_result(result)
        return result

    def teacher(self) -> Result | None:
        """The teacher's figures on the validation images, measured once; None where it has no heads to measure."""
        section = self.config["model"]["teacher"]
        config = DetectorConfig(**section)
        if config.weights is None:
            return None
        folder = self.out / "teacher"
        file, settings = folder / "result.json", {"teacher": section, **self._files}
        if file.is_file() and json.loads((folder / "settings.json").read_text()) == settings:
            return Result(**{**json.loads(file.read_text()), "folder": str(folder)})
        model, evaluator = build(config).to(self.device).eval(), CocoEvaluator()
        if not getattr(model, "heads_are_trained", True):
            self.console.print(
                f"teacher: AP not measured, {config.weights} gave backbone and FPN only ({config.weights_format})",
                highlight=False, markup=False,
            )  # fmt: skip
            return None
        self.console.print("measuring the teacher ...")
        with torch.no_grad():
            for images, targets in self._data.val_dataloader():
                evaluator.process(model([image.to(self.device) for image in images]), targets)
        figures = evaluator.evaluate()
        file.unlink(missing_ok=True)  # from here on it is of other settings
        save_detections(evaluator.images, folder)
        write_atomically(folder / "settings.json", json.dumps(settings))
        result = Result(
            name="teacher",
            title=f"{self.detector}, teacher",
            detector=self.detector,
            method="teacher",
            seed=0,
            **{name: figures[name] for name in FIGURES},
            step_ms=None,
            steps=0,
            seconds=0.0,
            parameters=sum(p.numel() for p in model.parameters()),
            peak_memory_mb=None,
            folder=str(folder),
        )
        write_result(result)
        return result

    def step_costs(self, methods: Sequence[Method], rounds: int) -> dict[str, StepCost]:
        """What a training step by each method costs, see :func:`kd.compare.step_cost.measure`. On the configuration's
        device, with its precision, on the first training batch."""
        model, device = self.config["model"], self.device
        teacher = build(DetectorConfig(**model["teacher"]))
        distillers = {
            method.name: distill(
                build(DetectorConfig(**model["student"])),
                teacher if method.loss != "none" else None,
                method.loss,
                method.weight,
                adapters=method.adapters,
                level_map=model["level_map"],
                mask_padding=model["mask_padding"],
                **method.options,
            ).to(device)
            for method in methods
        }
        images, targets = next(iter(self._data.train_dataloader()))
        batch = (
            [image.to(device) for image in images],
            [{key: value.to(device) for key, value in target.items()} for target in targets],
        )
        optimizer = OptimizerConfig(**model["optimizer"])
        steps = distilling_steps(distillers, optimizer.build, batch, self.config["trainer"]["precision"])
        return measure(steps, rounds, device)

    def configuration(self, student: Student) -> Configuration:
        """What ``kd fit`` is given to train ``student``."""
        made = deepcopy(self.config)
        folder = self.folder(student)
        made["seed_everything"] = made["data"]["seed"] = student.seed
        made["model"].update(student.method.model_section())
        made["model"]["log_components_every"] = made["model"].get("log_components_every") or COMPONENTS_EVERY
        trainer = made["trainer"]
        trainer["default_root_dir"] = str(folder)
        callbacks = trainer.get("callbacks") or []
        trainer["callbacks"] = [
            *(callbacks if isinstance(callbacks, list) else [callbacks]),
            {"class_path": "kd.compare.record.RunRecord", "init_args": {"folder": str(folder)}},
        ]
        # The teacher is measured once for all students.
        made["teacher_check"] = {"images": 0}
        made.pop("ckpt_path", None)
        return made

    def _title(self, method: Method) -> str:
        return f"{self.detector}, {method.title}"

    def _settings(self, student: Student) -> Configuration:
        """All that the student's weights depend on, as JSON has it."""
        config = self.configuration(student)
        for section, names in WITHOUT_EFFECT.items():
            for name in names:
                config[section].pop(name, None)
        for name in ("save_every", "teacher_check", "weights_only"):
            config.pop(name, None)
        if not config["model"]["mask_padding"]:
            del config["model"]["mask_padding"]  # so that trainings from before there was a choice stand
        files = {k: v for k, v in self._files.items() if config["model"]["teacher"] or k != "teacher.weights"}
        return json.loads(json.dumps({"format": FORMAT, **config, "files": files}))

    def _check_settings(self, student: Student) -> None:
        file = self.folder(student) / "settings.json"
        if not file.is_file():
            return
        before, now = flat(json.loads(file.read_text())), flat(self._settings(student))
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            listed = ", ".join(f"{k} (was {before.get(k)}, is {now.get(k)})" for k in changed[:3])
            raise ChangedSettings(
                f"{self.folder(student)} was trained with other settings: {listed}"
                + (" ..." if len(changed) > 3 else "")
                + ". Name another folder with --out, or delete this one."
            )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
