"""psi, the paper's min-max rescaling to [0, 1]."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Axes = Literal["tensor", "sample", "channel"]
_DIMENSIONS = {"tensor": (0, 1, 2, 3), "sample": (1, 2, 3), "channel": (2, 3)}


def check_axes(axes: str | None) -> None:
    """Raise ValueError unless ``axes`` is None or one of the rescaling axes."""
    if axes is not None and axes not in _DIMENSIONS:
        raise ValueError(f"normalize: got {axes!r}, expected None, 'tensor', 'sample' or 'channel'")


def min_max(x: Tensor, axes: Axes | None, detach_range: bool = False) -> Tensor:
    """Rescale [N, C, H, W] to [0, 1] over the whole tensor, every sample, or every channel of every sample.

    A constant part becomes 0. With ``detach_range`` minimum and maximum count as constants in the gradient.
    """
    if axes is None:
        return x
    low, high = x.amin(_DIMENSIONS[axes], keepdim=True), x.amax(_DIMENSIONS[axes], keepdim=True)
    if detach_range:
        low, high = low.detach(), high.detach()
    spread = high - low
    return (x - low) / spread.masked_fill(spread == 0, 1)
