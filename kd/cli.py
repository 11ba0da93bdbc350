"""``kd fit | validate | test``: LightningCLI around the module and the data module."""

from __future__ import annotations

import itertools
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from kd.callbacks import AtomicCheckpointIO, StopOnInterrupt, StudentWeights, checkpoints
from kd.coco import DataError
from kd.data import CocoDataModule
from kd.run_folder import flat
from kd.teacher_check import BadTeacherError, TeacherCheck
from kd.training import ConfigurationError, DetectionTraining, NonFiniteLossError, student_state

DEFAULT_ROOT = "runs/default"


class SaveConfig(SaveConfigCallback):
    """Saves every option beside the run: ``config.yaml`` of a training, ``validate/config_validate.yaml`` of an
    evaluation.

    Where the folder already holds other options, those are kept beside it (``config_1.yaml``, ...), and that is said.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            self.config_filename = f"config_{trainer.state.fn.value}.yaml"
        folder = Path(trainer.log_dir)  # in every process, because Lightning broadcasts it
        if trainer.is_global_zero and not self.already_saved:
            self._keep_earlier(folder / self.config_filename)
        super().setup(trainer, pl_module, stage)

    def _keep_earlier(self, file: Path) -> None:
        if not file.is_file():
            return
        before = flat(yaml.safe_load(file.read_text(encoding="utf-8")))
        now = flat(yaml.safe_load(self.parser.dump(self.config, skip_none=False)))
        # Resuming is no other run.
        changed = [key for key in {**before, **now} if key != "ckpt_path" and before.get(key) != now.get(key)]
        if not changed:
            return
        taken = (file.with_name(f"{file.stem}_{number}.yaml") for number in itertools.count(1))
        kept = next(name for name in taken if not name.exists())
        file.replace(kept)
        listed = ", ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in changed[:3])
        rank_zero_warn(
            f"{file}: this run has other options than the one before it in this folder ({listed}"
            f"{', ...' if len(changed) > 3 else ''}); the earlier ones are kept as {kept.name}"
        )


class DistillationCLI(LightningCLI):
    """Everything a run writes goes below ``trainer.default_root_dir``."""

    def before_instantiate_classes(self) -> None:
        """Without training there is nothing to distil, so the teacher's file need not be there."""
        if self.subcommand != "fit":
            config = self.config[self.subcommand]
            config.model.teacher = None
            # Lightning finds them in training only, and would evaluate the initial weights.
            if config.ckpt_path in ("last", "best"):
                folder = Path(config.trainer.default_root_dir or DEFAULT_ROOT) / "checkpoints"
                config.ckpt_path = str(_newest(folder, config.ckpt_path))

    def before_fit(self) -> None:
        """What is wrong with a checkpoint is said before Lightning meets it."""
        path = self.config[self.subcommand].ckpt_path
        if path == "last":
            path = _newest_of(Path(self.trainer.default_root_dir) / "checkpoints", "last")
        check_checkpoint(path, self.model, resumes=True)

    def before_validate(self) -> None:
        """The AP of heads that nobody trained says nothing."""
        if path := self.config[self.subcommand].ckpt_path:
            check_checkpoint(path, self.model)
            return
        student = self.model.student_config
        what = None
        if student.weights is None:
            what = "nothing says which weights"
        elif not getattr(self.model.student, "heads_are_trained", True):
            what = f"{student.weights} gave backbone and FPN only ({student.weights_format}), its heads are untrained"
        if what:
            raise ConfigurationError(
                f"{self.subcommand}: {what}; give --ckpt_path of a run, or model.student.weights of a whole detector"
            )

    before_test = before_validate

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
        root = Path(self._get(self.config_init, "trainer.default_root_dir") or DEFAULT_ROOT)
        logger = self._get(self.config_init, "trainer.logger")
        if logger in (None, True) and not self._get(self.config_init, "trainer.fast_dev_run"):
            # An evaluation is logged at step 0, where it would be a point of the training's curves.
            names = ("", "csv") if self.subcommand == "fit" else (self.subcommand, self.subcommand)
            kwargs["logger"] = [TensorBoardLogger(root, name=names[0], version=""), CSVLogger(root, name=names[1])]
        if self.subcommand == "fit":
            plugins = self._get(self.config_init, "trainer.plugins") or []
            plugins = plugins if isinstance(plugins, list) else [plugins]
            if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
                kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
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

    def _parse_ckpt_path(self) -> None:
        # Lightning would let the options stored in a checkpoint go before the command line's.
        pass

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


def check_checkpoint(path: str | Path | None, module: DetectionTraining, resumes: bool = False) -> None:
    """Raise ConfigurationError unless ``path``, if it is a file, is a training's checkpoint of ``module``'s student; if
    training ``resumes`` from it, one that trained the same parameters."""
    if path is None or not Path(path).is_file():
        return
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # unpickling fails in many ways
        raise ConfigurationError(f"ckpt_path: {path} can not be read as a checkpoint ({error})") from error
    try:
        own, stored = module.student.state_dict(), student_state(content)
    except (TypeError, KeyError, ValueError) as error:
        raise ConfigurationError(
            f"ckpt_path: {path} is no checkpoint of a training (those are in its folder checkpoints); "
            "weights alone go into model.student.weights"
        ) from error
    wrong = [k for k in {**own, **stored} if k not in own or k not in stored or own[k].shape != stored[k].shape]
    if wrong:
        raise ConfigurationError(
            f"ckpt_path: {path} is of another student: {len(wrong)} of its weights are missing, unexpected or of "
            f"another shape, {wrong[0]} the first; its options are in the config.yaml of its run"
        )
    if resumes:
        _check_trained(path, content, module)


def _check_trained(path: str | Path, content: Mapping[str, Any], module: DetectionTraining) -> None:
    # The optimiser's state belongs to parameters by their number only.
    before, now = _adapters(content["state_dict"]), _adapters(module.state_dict())
    if before != now:
        raise ConfigurationError(
            f"ckpt_path: {path} was trained with {before}, this run has {now}; resume with its model.loss, weight, "
            "adapters, level_map and teacher, or give its student's weights as model.student.weights"
        )
    groups = [group for state in content.get("optimizer_states", []) for group in state["param_groups"]]
    trained, own = sum(len(group["params"]) for group in groups), sum(p.requires_grad for p in module.parameters())
    if groups and trained != own:
        was, is_ = (flat(c.get("student", {})) for c in (content.get("hyper_parameters", {}), module.hparams))
        changed = [
            f"model.student.{k} was {was.get(k)}, is {is_.get(k)}" for k in {**was, **is_} if was.get(k) != is_.get(k)
        ]
        raise ConfigurationError(
            f"ckpt_path: {path} trained {trained} parameters, this run would train {own}"
            + "".join(f"; {text}" for text in changed)
            + "; resume with its options, or give its student's weights as model.student.weights"
        )
    name, own_name = "adamw" if groups and "betas" in groups[0] else "sgd", module.optimizer_config.name
    if groups and name != own_name:
        raise ConfigurationError(
            f"ckpt_path: {path} was trained with {name}, whose moments are not those of {own_name!r}, this "
            "run's model.optimizer.name; resume with the same, or give its student's weights as model.student.weights"
        )


def _adapters(state: Mapping[str, torch.Tensor]) -> str:
    prefix, suffix = "distiller.adapters.", ".weight"
    found = [
        f"{name.removeprefix(prefix).removesuffix(suffix)} ({value.shape[1]} to {value.shape[0]} channels)"
        for name, value in state.items()
        if name.startswith(prefix) and name.endswith(suffix)
    ]
    return f"adapters on the levels {', '.join(found)}" if found else "no adapters"


def _newest(folder: Path, name: str) -> Path:
    if found := _newest_of(folder, name):
        return found
    raise ConfigurationError(f"--ckpt_path {name}: no {name}*.ckpt in {folder}; give a checkpoint's path")


def _newest_of(folder: Path, name: str) -> Path | None:
    return max(folder.glob(f"{name}*.ckpt"), key=lambda file: file.stat().st_mtime_ns, default=None)


def _sentence(error: Exception) -> str:
    # A loading process hands its error over with its traceback in front.
    return str(error).rsplit(f"{type(error).__module__}.{type(error).__qualname__}: ", 1)[-1].strip()
