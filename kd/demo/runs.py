"""The demo's trainings: which ones there are, and each of them done at most once, with Lightning and ``kd``."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from rich.console import Console

from kd.callbacks import AtomicCheckpointIO, StopOnInterrupt, StudentWeights
from kd.compare.methods import Method
from kd.compare.record import FIGURES, Clock, Result, StepTimer, save_detections, write_atomically, write_result
from kd.compare.students import COMPONENTS_EVERY
from kd.data import CocoDataModule
from kd.demo.progress import TrainingProgress
from kd.demo.recipe import DetectorRecipe, Recipe
from kd.models import DetectorConfig
from kd.optimization import OptimizerConfig, ScheduleConfig
from kd.training import DetectionTraining

#: Raised when a change of the code changes what a stored result means.
FORMAT = 2


@dataclass(frozen=True)
class Run:
    """One training: a detector's teacher, or its student by one method with one seed."""

    detector: DetectorRecipe
    method: Method | None
    """None for the teacher."""
    seed: int

    @property
    def name(self) -> str:
        """Folder below the output's ``runs``."""
        role = "teacher" if self.method is None else f"student-{self.method.name}"
        return f"{self.detector.name}/{role}-seed{self.seed}"

    @property
    def title(self) -> str:
        """Name for people."""
        return f"{self.detector.title}, " + ("teacher" if self.method is None else self.method.title)

    @property
    def steps(self) -> int:
        """Optimiser steps of the training."""
        return self.detector.teacher_steps if self.method is None else self.detector.student_steps


def plan(recipe: Recipe, seeds: int) -> list[Run]:
    """All trainings in the order in which they run: per detector its teacher, then the students, seed by seed."""
    if seeds < 1:
        raise ValueError(f"seeds: got {seeds}, expected at least 1")
    runs = []
    for detector in recipe.detectors:
        runs.append(Run(detector, None, 0))
        runs += [Run(detector, method, seed) for seed in range(seeds) for method in recipe.methods]
    return runs


class Trainings:
    """Does the runs of a plan below one folder, and remembers what is done.

    Args:
        out: output folder; every run writes below ``out/runs``.
        data_root: COCO folder of the images.
        backbone_weights: file with ImageNet features of MobileNetV2.
        recipe: how to train.
        console: where progress is shown.
    """

    def __init__(
        self, out: Path, data_root: Path, backbone_weights: Path | None, recipe: Recipe, console: Console
    ) -> None:
        self.out, self.data_root, self.recipe, self.console = out, data_root, recipe, console
        self.backbone_weights = None if backbone_weights is None else str(backbone_weights)
        data = self._data_module(0)
        data.setup("fit")
        self.num_classes = data.val.num_classes
        self.class_names = data.val.label_names
        self.images = (len(data.train), len(data.val))
        self.validation = data.val
        self._identity = {
            "format": FORMAT,
            "weights": backbone_weights and hashlib.sha256(Path(backbone_weights).read_bytes()).hexdigest(),
            "data": [_sha256(path) for _, path in (data.train_paths, data.val_paths)],
        }

    def folder(self, run: Run) -> Path:
        """Where the run keeps its files."""
        return self.out / "runs" / run.name

    def finished(self, run: Run) -> Result | None:
        """The run's result if it was done by this very recipe."""
        file = self.folder(run) / "result.json"
        if self._fingerprint(run) != _read(self.folder(run) / "recipe.json").get("fingerprint") or not file.is_file():
            return None
        return Result(**{**json.loads(file.read_text()), "title": run.title, "folder": str(self.folder(run))})

    def do(self, run: Run) -> Result:
        """Trains and evaluates; goes on from the last checkpoint, or returns the result if there is one already."""
        done = self.finished(run)
        if done is not None:
            return done
        folder = self.folder(run)
        stored = _read(folder / "recipe.json").get("fingerprint")
        if stored is not None and stored != self._fingerprint(run):
            self.console.print(
                f"{run.title}: the recipe, data or weights changed since {folder} was made; starting afresh"
            )
        if stored != self._fingerprint(run):
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        recipe_text = {"fingerprint": self._fingerprint(run), **self._settings(run)}
        write_atomically(folder / "recipe.json", json.dumps(recipe_text, indent=1, default=str))
        write_atomically(folder / "config.yaml", yaml.safe_dump(self._configuration(run), sort_keys=False))
        checkpoint = folder / "last.ckpt"
        if checkpoint.is_file():
            self.console.print(f"{run.title}: going on from {checkpoint}")
        return self._train_and_evaluate(run, folder, checkpoint if checkpoint.is_file() else None)

    def _train_and_evaluate(self, run: Run, folder: Path, checkpoint: Path | None) -> Result:
        pl.seed_everything(run.seed, verbose=False)
        module, data, timer = self._module(run), self._data_module(run.seed), StepTimer()
        clock = Clock()
        attempt = len(list(folder.glob("curve/part*")))
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=run.steps,
            max_epochs=math.ceil(run.steps / (self.images[0] // self.recipe.batch_size)),
            gradient_clip_val=self.recipe.clip_norm,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            plugins=[AtomicCheckpointIO()],
            default_root_dir=str(folder),
            logger=[
                CSVLogger(
                    folder, name="curve", version=f"part{attempt}", flush_logs_every_n_steps=self.recipe.save_every
                ),
                TensorBoardLogger(self.out / "tensorboard", name=run.name, version=""),
            ],
            log_every_n_steps=10,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[
                TrainingProgress(run.title, self.console),
                timer,
                clock,
                StopOnInterrupt(),
                StudentWeights(folder),
                ModelCheckpoint(
                    folder, "last", every_n_train_steps=self.recipe.save_every,
                    save_on_exception=True, enable_version_counter=False,
                ),
            ],
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", module="torch.optim.lr_scheduler")
            trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
            started = time.perf_counter()
            figures = self._evaluate(module, data, folder)
        result = Result(
            name=run.name,
            title=run.title,
            detector=run.detector.name,
            method="teacher" if run.method is None else run.method.name,
            seed=run.seed,
            **{name: figures[name] for name in FIGURES},
            step_ms=timer.median_ms,
            steps=trainer.global_step,
            seconds=clock.seconds + time.perf_counter() - started,
            parameters=sum(p.numel() for p in module.student.parameters()),
            peak_memory_mb=None,
            folder=str(folder),
        )
        write_result(result)
        return result

    def _evaluate(self, module: DetectionTraining, data: CocoDataModule, folder: Path) -> dict[str, float]:
        trainer = pl.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, use_distributed_sampler=False,
        )  # fmt: skip
        figures = trainer.validate(module, datamodule=data, verbose=False)[0]
        save_detections(module.evaluator.images, folder)
        return figures

    def _configuration(self, run: Run) -> dict[str, Any]:
        """The run as a configuration of ``kd fit`` has it."""
        student = run.detector.config(
            "teacher" if run.method is None else "student",
            self.num_classes, self.recipe.image_size, self.backbone_weights,
        )  # fmt: skip
        method = run.method or Method(name="none", title="", loss="none")
        teacher = None if method.loss == "none" else asdict(self._trained_teacher(run))
        configuration = {
            "seed_everything": run.seed,
            "trainer": {"max_steps": run.steps, "gradient_clip_val": self.recipe.clip_norm},
            "model": {
                "student": asdict(student),
                "teacher": teacher,
                "loss": method.loss,
                "weight": method.weight,
                "loss_options": dict(method.options),
                "adapters": method.adapters,
                "level_map": None,
                "optimizer": asdict(self.recipe.optimizer(run.detector)),
                "schedule": asdict(self.recipe.schedule()),
                "log_components_every": COMPONENTS_EVERY,
            },
            "data": self._data_options(run.seed),
        }
        # Plain lists in the place of tuples.
        return json.loads(json.dumps(configuration))

    def _module(self, run: Run) -> DetectionTraining:
        model = self._configuration(run)["model"]
        teacher = model.pop("teacher")
        return DetectionTraining(
            DetectorConfig(**model.pop("student")),
            None if teacher is None else DetectorConfig(**teacher),
            optimizer=OptimizerConfig(**model.pop("optimizer")),
            schedule=ScheduleConfig(**model.pop("schedule")),
            seed=run.seed,
            **model,
        )

    def _trained_teacher(self, run: Run) -> DetectorConfig:
        config = run.detector.config("teacher", self.num_classes, self.recipe.image_size, None)
        file = self.folder(Run(run.detector, None, 0)) / "student_last.pth"
        return DetectorConfig(**{**config.__dict__, "weights": str(file)})

    def _data_options(self, seed: int) -> dict[str, Any]:
        return {
            "root": str(self.data_root),
            "batch_size": self.recipe.batch_size,
            "eval_batch_size": self.recipe.eval_batch_size,
            "workers": 0,
            "labels": "contiguous",
            "flip": self.recipe.flip,
            "seed": seed,
        }

    def _data_module(self, seed: int) -> CocoDataModule:
        return CocoDataModule(**self._data_options(seed))

    def _settings(self, run: Run) -> dict[str, Any]:
        recipe = asdict(self.recipe)
        for other in ("detectors", "methods", "budget_min", "resamples", "data", "save_every"):
            del recipe[other]
        settings = {**self._identity, "recipe": recipe, "detector": asdict(run.detector), "seed": run.seed}
        del settings["detector"]["title"]
        if run.method is None:
            del settings["detector"]["student"], settings["detector"]["student_steps"]
            return settings
        settings["method"] = asdict(run.method)
        del settings["method"]["title"]
        if run.method.loss == "none":
            del settings["detector"]["teacher"], settings["detector"]["teacher_steps"]
        return settings

    def _fingerprint(self, run: Run) -> str:
        return hashlib.sha256(json.dumps(self._settings(run), sort_keys=True, default=str).encode()).hexdigest()


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
