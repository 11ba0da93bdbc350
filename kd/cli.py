"""``kd fit | validate | test``: LightningCLI around the module and the data module."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from kd.callbacks import StopOnInterrupt, StudentWeights, checkpoints
from kd.coco import DataError
from kd.data import CocoDataModule
from kd.training import DetectionTraining, NonFiniteLossError


class DistillationCLI(LightningCLI):
    """Everything a run writes goes below ``trainer.default_root_dir``."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--save_every", type=int, default=500, help="steps between two writes of last.ckpt")
        parser.link_arguments("data.seed", "model.seed")

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        root = Path(self._get(self.config_init, "trainer.default_root_dir") or "runs/default")
        logger = self._get(self.config_init, "trainer.logger")
        if logger in (None, True) and not self._get(self.config_init, "trainer.fast_dev_run"):
            kwargs["logger"] = [TensorBoardLogger(root, name="", version=""), CSVLogger(root, name="csv")]
        trainer = super().instantiate_trainer(**{"default_root_dir": str(root), **kwargs})
        if self.subcommand == "fit":
            extra = [*checkpoints(root / "checkpoints", self._get(self.config_init, "save_every"))]
            extra += [StudentWeights(root), StopOnInterrupt()]
            if trainer.loggers:
                extra.append(LearningRateMonitor())
            # Behind the user's; Lightning wants checkpoints last of all.
            trainer.callbacks = [c for c in trainer.callbacks if type(c).__name__ != "ModelCheckpoint"]
            trainer.callbacks = trainer._callback_connector._reorder_callbacks([*trainer.callbacks, *extra])
        return trainer


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; errors in data, configuration and training end it with their message, not a traceback."""
    try:
        DistillationCLI(
            DetectionTraining,
            CocoDataModule,
            args=list(args) if args is not None else None,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"use_distributed_sampler": False, "num_sanity_val_steps": 0, "max_epochs": 12},
            parser_kwargs={"prog": "kd"},
        )
    except (DataError, NonFiniteLossError, FileNotFoundError) as error:
        sys.exit(f"kd: {error}")
