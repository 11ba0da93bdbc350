"""``kd fit | validate | test``: LightningCLI around the module and the data module."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from kd.callbacks import StopOnInterrupt, StudentWeights, checkpoints
from kd.coco import DataError
from kd.data import CocoDataModule
from kd.teacher_check import BadTeacherError, TeacherCheck
from kd.training import ConfigurationError, DetectionTraining, NonFiniteLossError


class SaveConfig(SaveConfigCallback):
    """Saves every option beside the run: ``config.yaml`` of a training, ``config_validate.yaml`` of an evaluation."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            self.config_filename = f"config_{trainer.state.fn.value}.yaml"
        super().setup(trainer, pl_module, stage)


class DistillationCLI(LightningCLI):
    """Everything a run writes goes below ``trainer.default_root_dir``."""

    def before_instantiate_classes(self) -> None:
        """Without training there is nothing to distil, so the teacher's file need not be there."""
        if self.subcommand != "fit":
            self.config[self.subcommand].model.teacher = None

    def instantiate_classes(self) -> None:
        """Lightning's, with one kind of error for all options that do not fit."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise ConfigurationError(str(error)) from error

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--save_every", type=int, default=500, help="steps between two writes of last.ckpt")
        parser.add_lightning_class_args(TeacherCheck, "teacher_check")
        parser.link_arguments("data.seed", "model.seed")

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        root = Path(self._get(self.config_init, "trainer.default_root_dir") or "runs/default")
        logger = self._get(self.config_init, "trainer.logger")
        if logger in (None, True) and not self._get(self.config_init, "trainer.fast_dev_run"):
            kwargs["logger"] = [TensorBoardLogger(root, name="", version=""), CSVLogger(root, name="csv")]
        if self.subcommand == "fit":
            given = self._get(self.config_init, "trainer.callbacks") or []
            kwargs["callbacks"] = [
                *(given if isinstance(given, list) else [given]),
                LearningRateMonitor(),
                StudentWeights(root),
                StopOnInterrupt(),
                *checkpoints(root / "checkpoints", self._get(self.config_init, "save_every")),
            ]
            if kwargs.get("logger", logger) is False:
                kwargs["callbacks"] = [c for c in kwargs["callbacks"] if not isinstance(c, LearningRateMonitor)]
        return super().instantiate_trainer(**{"default_root_dir": str(root), **kwargs})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's fit, validate and test, always with ``weights_only=True``."""
        skipped = {"model", "dataloaders", "datamodule", "weights_only"}
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
            "validate": skipped,
            "test": skipped,
        }

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        # Lightning's own default would unpickle whatever a checkpoint from the network holds.
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; errors in data, configuration and training end it with their message, not a traceback."""
    try:
        DistillationCLI(
            DetectionTraining,
            CocoDataModule,
            args=list(args) if args is not None else None,
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"use_distributed_sampler": False, "num_sanity_val_steps": 0, "max_epochs": 12},
            parser_kwargs={"prog": "kd"},
        )
    except (ConfigurationError, DataError, BadTeacherError, NonFiniteLossError, FileNotFoundError) as error:
        sys.exit(f"kd: {_sentence(error)}")
    except SIGTERMException:
        # Lightning has saved last.ckpt by now, but would end with 0 as if the run were complete.
        sys.exit(128 + signal.SIGTERM)


def _sentence(error: Exception) -> str:
    # A loading process hands its error over with its traceback in front.
    return str(error).rsplit(f"{type(error).__module__}.{type(error).__qualname__}: ", 1)[-1].strip()
