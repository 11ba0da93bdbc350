"""psi, the paper's min-max rescaling to [0, 1]."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from fused_ssim import reference

Axes = Literal["tensor", "sample", "channel"]


def check_axes(axes: str | None) -> None:
    """Raise ValueError unless ``axes`` is None or one of the rescaling axes."""
    if axes is not None and axes not in get_args(Axes):
        raise ValueError(f"normalize: got {axes!r}, expected None, 'tensor', 'sample' or 'channel'")


def min_max(x: Tensor, axes: Axes | None, detach_range: bool = False) -> Tensor:
    """Rescale [N, C, H, W] by :func:`fused_ssim.reference.min_max`, or not at all where ``axes`` is None."""
    return x if axes is None else reference.min_max(x, axes, detach_range)
