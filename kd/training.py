"""The LightningModule that trains a student, with or without a teacher."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from kd.distiller import Adapters, distill
from kd.evaluation import CocoEvaluator
from kd.models import DetectorConfig, build
from kd.optimization import OptimizerConfig, ScheduleConfig
from kd.sampling import GroupedBatchSampler

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


class ConfigurationError(ValueError):
    """The options of a run do not fit each other or the data."""


class NonFiniteLossError(FloatingPointError):
    """A loss, or the weights after a step, are NaN or infinite; the message names the images."""


_ADVICE = (
    "Lower optimizer.lr, clip gradients (trainer.gradient_clip_val) or look at these images' annotations. "
    "No checkpoint holds these weights; --ckpt_path last goes on from the last good one, if there is one."
)


class DetectionTraining(pl.LightningModule):
    """Trains ``student`` on COCO targets and, with a teacher, on the teacher's FPN features.

    Args:
        student: the detector to train.
        teacher: the detector to learn from; None trains plainly, as ``loss="none"`` does.
        loss: "ssim", "l1", "l2", "pkd", "cwd" or "none".
        weight: lambda, the weight of the distillation loss (the paper: 2 to 4).
        loss_options: options of the loss, see :mod:`kd.losses`.
        adapters: "auto", "always" or "never", see :class:`kd.Distiller`.
        level_map: student FPN level -> teacher FPN level where their names differ.
        mask_padding: leave the padding of a batch out of the distillation loss, see :class:`kd.Distiller`.
        optimizer, schedule: how to optimise.
        seed: seed of what happens at random in a step (proposal sampling, multi-scale sizes). A step's randomness
            depends on this, the epoch and the batch only, so a resumed run equals an uninterrupted one.
        log_components_every: steps between two measurements of SSIM's components per level; 0 for never.
        class_metrics: also report AP per class.
    """

    def __init__(
        self,
        student: DetectorConfig,
        teacher: DetectorConfig | None = None,
        *,
        loss: str = "ssim",
        weight: float = 4.0,
        loss_options: dict[str, Any] | None = None,
        adapters: Adapters = "auto",
        level_map: dict[str, str] | None = None,
        mask_padding: bool = False,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 (frozen)
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008 (frozen)
        seed: int = 0,
        log_components_every: int = 0,
        class_metrics: bool = False,
    ) -> None:
        super().__init__()
        self.student_config, self.teacher_config = student, teacher
        if teacher is None:
            loss = "none"
        self.distiller = distill(
            build(student),
            build(teacher) if loss != "none" and weight > 0 else None,
            loss,
            weight,
            adapters=adapters,
            level_map=level_map,
            mask_padding=mask_padding,
            **(loss_options or {}),
        )
        self.optimizer_config, self.schedule_config = optimizer, schedule
        self.seed, self.log_components_every = seed, log_components_every
        self.class_metrics = class_metrics
        self.evaluator = CocoEvaluator()
        self._image_ids: list[int] = []
        # Plain containers: a checkpoint has to be readable with weights_only=True.
        self.save_hyperparameters(
            {
                "student": asdict(student),
                "teacher": asdict(teacher) if teacher else None,
                "loss": loss,
                "weight": weight,
            }
        )

    @property
    def student(self) -> torch.nn.Module:
        """The detector being trained."""
        return self.distiller.student

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Detections of the student, which must be in evaluation mode."""
        return self.student(images)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Evaluating a distilled student needs neither its teacher nor its adapters.
        if not self.distiller.distils:
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("distiller.adapters.")}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        self.trainer.fit_loop.setup_data()  # which estimated_stepping_batches only does where there are epochs to count
        total_steps = self.trainer.estimated_stepping_batches
        if self.schedule_config.name == "one_cycle" and not math.isfinite(total_steps):
            raise ConfigurationError(
                "schedule.name: 'one_cycle' needs to know the last step; give trainer.max_epochs or trainer.max_steps"
            )
        steps_per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        optimizer = self.optimizer_config.build(self.distiller)
        scheduler = self.schedule_config.build(optimizer, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        if self.trainer.world_size > 1 and self.trainer._accelerator_connector.use_distributed_sampler:
            raise ConfigurationError(
                "trainer.use_distributed_sampler: set it to False; the data module distributes the images itself"
            )
        self._check_labels("train")

    def on_train_start(self) -> None:
        # A resumed run goes on behind the batches of this epoch that it has already seen.
        seen = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed
        sampler = getattr(self.trainer.train_dataloader, "batch_sampler", None)
        if isinstance(sampler, GroupedBatchSampler):
            sampler.skip = seen % int(self.trainer.num_training_batches)
            warnings.filterwarnings("ignore", message=".*your dataloader is not resumable")
        if self.trainer.global_step > 0:
            self._put_options_before_the_checkpoints()

    def _put_options_before_the_checkpoints(self) -> None:
        """A checkpoint's optimiser and schedule bring their rates with them; a resumed run keeps to its own options,
        and takes from there only the moments and how far the schedule is."""
        made = self.configure_optimizers()
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        for group, own in zip(optimizer.param_groups, made["optimizer"].param_groups, strict=True):
            group.update({name: value for name, value in own.items() if name != "params"})
        scheduler: Any = self.lr_schedulers()
        reached = {"last_epoch": scheduler.last_epoch - 1, "_step_count": scheduler._step_count}
        scheduler.load_state_dict({**made["lr_scheduler"]["scheduler"].state_dict(), **reached})
        scheduler.step()  # to the step at which the checkpoint was written

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch
        self._image_ids = [int(target["image_id"]) for target in targets]
        torch.manual_seed(self._step_seed(batch_idx))
        every = self.log_components_every
        self.distiller.log_components = every > 0 and batch_idx % every == 0
        losses = self.distiller(images, targets)
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            raise NonFiniteLossError(
                f"epoch {self.current_epoch}, batch {batch_idx}: "
                + ", ".join(f"{name} is {value.item()}" for name, value in losses.items())
                + f"; image ids {self._image_ids}. {_ADVICE}"
            )
        size = len(images)
        self.log("loss", total.detach(), prog_bar=True, batch_size=size)
        self.log_dict({name: value.detach() for name, value in losses.items()}, prog_bar=True, batch_size=size)
        self.log_dict({f"distill/{k}": v for k, v in self.distiller.level_losses.items()}, batch_size=size)
        self._log_components()
        return total

    def _log_components(self) -> None:
        """Not by ``self.log``, which writes the last value again in every step that is logged, measured or not, and
        no step in between: a curve of stairs, each a few steps late."""
        measured = {
            f"{part}/{level}": float(value)
            for level, parts in self.distiller.level_components.items()
            for part, value in zip(("luminance", "contrast", "structure"), parts, strict=True)
        }
        if measured:
            for logger in self.loggers:
                logger.log_metrics(measured, step=self.global_step)

    def check_weights(self) -> None:
        """Raise :class:`NonFiniteLossError` unless all weights that a checkpoint would hold are finite."""
        wrong = [name for name, value in self.state_dict().items() if not torch.isfinite(value).all()]
        if wrong:
            raise NonFiniteLossError(
                f"epoch {self.current_epoch}, after step {self.trainer.global_step}: {len(wrong)} of the weights are "
                f"not finite, {wrong[0].removeprefix('distiller.')} the first; image ids of the last batch "
                f"{self._image_ids}. {_ADVICE}"
            )

    def on_validation_start(self) -> None:
        self._check_labels("val")

    def on_validation_epoch_start(self) -> None:
        self.evaluator.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, targets = batch
        self.evaluator.process(self.student(images), targets)

    def on_validation_epoch_end(self) -> None:
        data = self.trainer.datamodule
        names = data.val.label_names if self.class_metrics and data is not None else None
        figures = self.evaluator.evaluate(names)
        # Equal in every process: each has gathered all images.
        for name, value in figures.items():
            self.log(name, torch.tensor(value, device=self.device), prog_bar=name == "AP")

    on_test_start = on_validation_start
    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def _step_seed(self, batch_idx: int) -> int:
        seed = (self.seed * 1_000_003 + self.current_epoch) * 1_000_003 + batch_idx
        return (seed * 1_000_003 + self.global_rank) % 2**63

    def _check_labels(self, split: str) -> None:
        dataset = getattr(self.trainer.datamodule, split, None)
        if dataset is not None and dataset.num_classes > _num_classes(self.student_config):
            raise ConfigurationError(
                f"model.student.num_classes: {_num_classes(self.student_config)} is too few for "
                f"{dataset.annotations}, whose largest label is {dataset.num_classes - 1}; use at least "
                f"{dataset.num_classes}, or data.labels=contiguous"
            )


def _num_classes(config: DetectorConfig) -> int:
    return int(config.options.get("num_classes", config.num_classes))


def student_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The student's own state dict out of a training checkpoint; it fits the plain torchvision model."""
    prefix = "distiller.student."
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    if not state:
        raise ValueError("checkpoint: no student in it (expected a checkpoint written by kd fit)")
    return state
