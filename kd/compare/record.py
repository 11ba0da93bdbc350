"""What a training leaves behind for the table: its figures, its detections, its step time and its memory."""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from kd.evaluation import CocoEvaluator

FIGURES = ("AP", "AP50", "AP75", "APS", "APM", "APL")


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished training; AP in percent, -1 where there is no ground truth."""

    name: str
    title: str
    """"<detector>, <model>" for people."""
    detector: str
    method: str
    """"teacher" or the method's name."""
    seed: int
    AP: float
    AP50: float
    AP75: float
    APS: float
    APM: float
    APL: float
    step_ms: float | None
    """Median training step in milliseconds; None for a teacher that came as a file."""
    steps: int
    seconds: float
    """Wall time of training and evaluation, interruptions left out."""
    parameters: int
    peak_memory_mb: float | None
    """CUDA: most memory allocated; CPU: largest resident size of the process. In MiB; None if not measured."""
    folder: str


def process_memory_mb(device: torch.device) -> float:
    """The process's peak so far, in MiB: of allocated CUDA memory, or on a CPU of its resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # Linux counts kibibytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class StepTimer(Callback):
    """Measures training steps: forward, backward and optimiser, without the loading of the batch.

    The times survive an interruption: they are kept in the checkpoint.
    """

    def __init__(self) -> None:
        super().__init__()
        self.times_ms: list[float] = []

    @property
    def median_ms(self) -> float:
        """Median time of a step in milliseconds; NaN before the first."""
        return statistics.median(self.times_ms) if self.times_ms else float("nan")

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.times_ms.append(1000 * (time.perf_counter() - self._start))

    def state_dict(self) -> dict[str, Any]:
        return {"times_ms": list(self.times_ms)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.times_ms = list(state_dict["times_ms"])


class Clock(Callback):
    """Seconds spent in training, kept in the checkpoint so that interruptions don't count."""

    def __init__(self) -> None:
        super().__init__()
        self._before, self._start = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """So far."""
        return self._before + time.perf_counter() - self._start

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before, self._start = self.seconds, time.perf_counter()

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._before = state_dict["seconds"]


class RunRecord(Callback):
    """Writes ``record.json`` and ``detections.pt`` when a run ends: the figures and detections of the last student.

    The last validation is used where it saw the last step's weights; otherwise the validation images are evaluated
    once more.

    Args:
        folder: where to write; the run's own folder.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)
        self._timer, self._clock = StepTimer(), Clock()
        self._validated_step = -1

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self._timer.on_train_batch_start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kw: Any) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._timer.on_train_batch_end()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._validated_step = trainer.global_step

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.fast_dev_run:
            return
        evaluator = pl_module.evaluator
        if self._validated_step != trainer.global_step:
            evaluator = _evaluated(pl_module, trainer.datamodule.val_dataloader())
        figures = evaluator.evaluate()
        images = evaluator.gathered_images()
        if not trainer.is_global_zero:
            return
        save_detections(images, self.folder)
        record = {
            **{name: figures[name] for name in FIGURES},
            "step_ms": self._timer.median_ms,
            "steps": trainer.global_step,
            "seconds": self._clock.seconds,
            "parameters": sum(p.numel() for p in pl_module.student.parameters()),
            "peak_memory_mb": process_memory_mb(pl_module.device),
        }
        write_atomically(self.folder / "record.json", json.dumps(record, indent=1))

    def state_dict(self) -> dict[str, Any]:
        return {**self._timer.state_dict(), **self._clock.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._timer.load_state_dict(state_dict)
        self._clock.load_state_dict(state_dict)


@torch.no_grad()
def _evaluated(module: pl.LightningModule, batches: Any) -> CocoEvaluator:
    evaluator = CocoEvaluator()
    student = module.student.eval()
    own = next(student.parameters())
    for images, targets in batches:
        evaluator.process(student([image.to(own) for image in images]), targets)
    return evaluator


def save_detections(images: dict[int, tuple[dict, dict]], folder: Path) -> None:
    """Write a :class:`kd.evaluation.CocoEvaluator`'s images to ``folder/detections.pt``."""
    stored = {
        "detections": {image_id: found for image_id, (found, _) in images.items()},
        "targets": {image_id: truth for image_id, (_, truth) in images.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(stored, folder / "detections.pt")


def write_result(result: Result) -> None:
    """Write ``result.json`` into the result's folder."""
    write_atomically(Path(result.folder) / "result.json", json.dumps(asdict(result), indent=1))


def write_atomically(file: Path, text: str) -> None:
    """Write ``text`` so that ``file`` holds all of it or is not touched."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)
