"""What a run does besides training: checkpoints, the student's own file, a clean stop."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from kd.training import NonFiniteLossError, student_state


def checkpoints(directory: str | Path, every_n_steps: int = 500) -> list[ModelCheckpoint]:
    """Checkpoints in ``directory``: ``best.ckpt`` by AP; ``last.ckpt`` every ``every_n_steps`` steps, after every
    validation, and when a run is stopped. ``--ckpt_path last`` goes on from the newest."""
    common: dict[str, Any] = {"dirpath": str(directory), "enable_version_counter": False}
    return [
        _FiniteCheckpoint(filename="best", monitor="AP", mode="max", save_on_train_epoch_end=False, **common),
        _FiniteCheckpoint(filename="last", every_n_train_steps=every_n_steps, save_on_exception=True, **common),
        _FiniteCheckpoint(filename="last_epoch", save_on_train_epoch_end=True, **common),
    ]


class _FiniteCheckpoint(ModelCheckpoint):
    """Weights that are or gave a NaN are of no use to a resumed run, so the last good ones stay."""

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, NonFiniteLossError):
            super().on_exception(trainer, pl_module, exception)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        # A finite loss can have a gradient that is not, whose step would be saved before the next loss shows it.
        trainer.lightning_module.check_weights()
        super()._save_checkpoint(trainer, filepath)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints beside their place and then renames them.

    Lightning's own writes to the system's temporary folder: from another file system it copies the file onto the
    checkpoint before, so that of a run killed by then neither is whole.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        save_atomically(checkpoint, Path(path))


class StudentWeights(Callback):
    """Writes the student's weights alone, best and last, when a run ends: ``student_best.pth``, ``student_last.pth``.

    They load into the plain torchvision model: ``model.load_state_dict(torch.load(path, weights_only=True))``.
    """

    def __init__(self, directory: str | Path) -> None:
        super().__init__()
        self.directory = Path(directory)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        save_atomically(pl_module.student.state_dict(), self.directory / "student_last.pth")
        for callback in trainer.checkpoint_callbacks:
            best = getattr(callback, "best_model_path", "")
            if getattr(callback, "monitor", None) == "AP" and best:
                checkpoint = torch.load(best, map_location="cpu", weights_only=True)
                save_atomically(student_state(checkpoint), self.directory / "student_best.pth")


class StopOnInterrupt(Callback):
    """Ctrl-C and SIGTERM end the run after the current step, all batches that it accumulates included, so that the
    checkpoint then written is a consistent one.

    A second Ctrl-C stops at once; SIGTERM does not wait for the end of a validation. With several processes Lightning's
    own handling stays in place.
    """

    def __init__(self) -> None:
        super().__init__()
        self._interrupted = self._terminated = self._holds_gradients = False
        self._previous: Any = None
        self._lightnings: Any = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size == 1:
            self._previous = signal.signal(signal.SIGINT, self._interrupt)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning's handler of SIGTERM is there by now; when the run ends, it puts back the one before its own.
        if trainer.world_size == 1:
            self._lightnings = signal.signal(signal.SIGTERM, partial(self._terminate, trainer))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # A checkpoint holds no gradients.
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        self._holds_gradients = not stepped
        if self._interrupted and stepped:
            raise KeyboardInterrupt
        if self._terminated and stepped:
            self._leave_to_lightning()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True

    def _terminate(self, trainer: pl.Trainer, number: int, frame: FrameType | None) -> None:
        self._terminated = True
        if trainer.validating and not self._holds_gradients:
            self._leave_to_lightning()

    def _leave_to_lightning(self) -> None:
        """Its handler of SIGTERM ends the run after the batch in progress."""
        signal.signal(signal.SIGTERM, self._lightnings)
        signal.raise_signal(signal.SIGTERM)


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write ``state`` so that ``path`` holds all of it or is not touched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(state, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
