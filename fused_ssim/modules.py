"""nn.Module forms: they hold settings and call the functions of the same name."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .functional import l1_ssim_loss, pyramid_ssim_loss, ssim, ssim_loss


class _Settings(nn.Module):
    """Keeps the keyword arguments of a function of :mod:`fused_ssim.functional`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())


class SSIM(_Settings):
    """:func:`fused_ssim.ssim` with fixed settings: ``SSIM(data_range=255)(x, y)``."""

    def forward(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        return ssim(x, y, weight=weight, **self.settings)


class SSIMLoss(_Settings):
    """:func:`fused_ssim.ssim_loss` with fixed settings."""

    def forward(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        return ssim_loss(x, y, weight=weight, **self.settings)


class L1SSIMLoss(_Settings):
    """:func:`fused_ssim.l1_ssim_loss` with fixed settings."""

    def forward(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        return l1_ssim_loss(x, y, weight=weight, **self.settings)


class PyramidSSIMLoss(_Settings):
    """:func:`fused_ssim.pyramid_ssim_loss` with fixed settings."""

    def forward(
        self, xs: Sequence[Tensor], ys: Sequence[Tensor], weight: Sequence[Tensor] | None = None
    ) -> Tensor | list[Tensor]:
        return pyramid_ssim_loss(xs, ys, weight=weight, **self.settings)
