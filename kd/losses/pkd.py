"""PKD: Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient",
NeurIPS 2022."""

from __future__ import annotations

from torch import Tensor

from kd.losses.base import FeatureLoss, mean_of_valid


class PKDLoss(FeatureLoss):
    """Half the mean squared difference of features standardised per channel over batch and space; that is 1 minus their
    Pearson correlation, averaged over channels. With a mask all of it is over the valid cells.

    The authors' weight is 10 for RetinaNet and 6 for Faster R-CNN.

    Args:
        eps: lower bound of the standard deviation; exactly constant channels count as 0 and get no gradient.
    """

    takes_mask = True

    def __init__(self, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def standardised(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        centred = x - mean_of_valid(x, valid, (0, 2, 3))
        variance = mean_of_valid(centred.square(), valid, (0, 2, 3))
        # A dead channel would otherwise send back a gradient of 1 / eps.
        dead = variance == 0
        return (centred / (variance + self.eps**2).sqrt()).masked_fill(dead, 0)

    def level(self, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        difference = self.standardised(student, valid) - self.standardised(teacher, valid)
        return mean_of_valid(difference.square(), valid).squeeze() / 2
