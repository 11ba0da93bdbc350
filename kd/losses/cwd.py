"""CWD: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kd.losses.base import FeatureLoss


class CWDLoss(FeatureLoss):
    """Kullback-Leibler divergence of the student's from the teacher's spatial softmax, mean over samples and channels,
    times the squared temperature. With a mask the softmax is over the valid cells.

    Args:
        temperature: softmax temperature, > 0; the authors use 1 on features (with a weight of 10 for detectors).
    """

    takes_mask = True

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature: got {temperature}, expected a positive number")
        self.temperature = temperature

    def level(self, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        logits = [x.flatten(2) / self.temperature for x in (student, teacher)]
        if valid is not None:
            # Not -inf: 0 * (inf - inf) is no number.
            logits = [x.masked_fill(valid.flatten(2) == 0, -1e30) for x in logits]
        log_student, log_teacher = (F.log_softmax(x, dim=2) for x in logits)
        divergence = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
        return divergence * self.temperature**2 / (student.shape[0] * student.shape[1])
