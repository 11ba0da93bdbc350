"""The L1 and L2 baselines of the paper: its feature loss with |.| and (.)^2 in the place of SSIM."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kd.losses.base import FeatureLoss, mean_of_valid
from kd.losses.rescale import Axes, check_axes, min_max


class _LpLoss(FeatureLoss):
    takes_mask = True

    def __init__(self, *, normalize: Axes | None = "channel", detach_range: bool = False) -> None:
        super().__init__()
        check_axes(normalize)
        self.normalize, self.detach_range = normalize, detach_range

    def rescaled(self, x: Tensor) -> Tensor:
        return min_max(x, self.normalize, self.detach_range)


class L1Loss(_LpLoss):
    """mean |psi(S) - psi(T)| per level.

    Args:
        normalize: axes of the min-max rescaling psi, which the paper's L_feat applies whatever the distance; None
            compares the features as they are.
        detach_range: treat minimum and maximum as constants in the gradient, see
            :class:`kd.losses.ssim.SSIMFeatureLoss`.
    """

    def level(self, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        if valid is None:
            return F.l1_loss(self.rescaled(student), self.rescaled(teacher))
        return mean_of_valid((self.rescaled(student) - self.rescaled(teacher)).abs(), valid).squeeze()


class L2Loss(_LpLoss):
    """mean (psi(S) - psi(T))^2 per level; arguments as :class:`L1Loss`."""

    def level(self, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        if valid is None:
            return F.mse_loss(self.rescaled(student), self.rescaled(teacher))
        return mean_of_valid((self.rescaled(student) - self.rescaled(teacher)).square(), valid).squeeze()
