"""Is the teacher any good? Measured before training, because a broken one only shows as a student that gains
nothing."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from kd.evaluation import CocoEvaluator


class BadTeacherError(ValueError):
    """The teacher detects worse than asked for."""


class TeacherCheck(Callback):
    """Measures and logs the teacher's AP on validation images before the first step, and stops the run if it is bad.

    A teacher of which only backbone and FPN were converted from another library has no heads to measure; that is said.

    Args:
        images: on how many validation images, the first ones; 0 does not measure.
        min_ap: AP in percent below which the run stops; 0 never stops.
    """

    def __init__(self, images: int = 500, min_ap: float = 5.0) -> None:
        super().__init__()
        if images < 0 or not 0 <= min_ap <= 100:
            raise ValueError(f"teacher_check: got images {images}, min_ap {min_ap}; expected >= 0 and in [0, 100]")
        self.images, self.min_ap = images, min_ap

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        teacher, config = pl_module.distiller.teacher, pl_module.teacher_config
        if teacher is None or not self.images or trainer.global_step > 0 or trainer.fast_dev_run:
            return
        if not getattr(teacher, "heads_are_trained", True):
            rank_zero_info(
                f"teacher: AP not measured, {config.weights} gave backbone and FPN only ({config.weights_format})"
            )
            return
        figures = self._measure(trainer, pl_module)
        rank_zero_info(
            f"teacher: AP {figures['AP']:.1f}, AP50 {figures['AP50']:.1f} on {self.images} validation images or fewer"
        )
        for logger in trainer.loggers:
            logger.log_metrics({f"teacher/{name}": value for name, value in figures.items()}, step=0)
        if figures["AP"] < self.min_ap:
            raise BadTeacherError(
                f"teacher: its AP is {figures['AP']:.1f} on the first {self.images} validation images, below "
                f"teacher_check.min_ap={self.min_ap:g}. Check model.teacher.weights ({config.weights}) and its labels; "
                "with --teacher_check.min_ap 0 the run goes on all the same."
            )

    @torch.no_grad()
    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, float]:
        teacher, evaluator = pl_module.distiller.teacher, CocoEvaluator()
        own = next(teacher.parameters())  # trainer.precision has changed its type too
        share = -(-self.images // trainer.world_size)
        seen = 0
        for images, targets in trainer.datamodule.val_dataloader():
            evaluator.process(teacher([image.to(own) for image in images]), targets)
            seen += len(images)
            if seen >= share:
                break
        return evaluator.evaluate()
