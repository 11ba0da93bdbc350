"""PKD: Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient",
NeurIPS 2022."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kd.losses.base import FeatureLoss


class PKDLoss(FeatureLoss):
    """Half the mean squared difference of features standardised per channel over batch and space; that is 1 minus their
    Pearson correlation, averaged over channels.

    The authors' weight is 10 for RetinaNet and 6 for Faster R-CNN.

    Args:
        eps: lower bound of the standard deviation; exactly constant channels count as 0 and get no gradient.
    """

    def __init__(self, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def standardised(self, x: Tensor) -> Tensor:
        centred = x - x.mean((0, 2, 3), keepdim=True)
        variance = centred.square().mean((0, 2, 3), keepdim=True)
        # A dead channel would otherwise send back a gradient of 1 / eps.
        dead = variance == 0
        return (centred / (variance + self.eps**2).sqrt()).masked_fill(dead, 0)

    def level(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(self.standardised(student), self.standardised(teacher)) / 2
