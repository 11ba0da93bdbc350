"""``ssim``, ``ms_ssim``, ``SSIM`` and ``MS_SSIM`` with the signatures and results of the ``pytorch_msssim`` package.

Windows are "valid" and inputs (N, C, H, W) or (N, C, D, H, W). Where the fused kernels do not apply (a window tensor of
your own, even or above 11; volumes; a side shorter than the window, which that package leaves unsmoothed; a K of 0)
plain PyTorch computes the same definition.
"""

import warnings
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..functional import ssim as fused
from ..window import gaussian_taps

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the scales of MS-SSIM, finest first (Wang, Simoncelli and Bovik 2003)."""


def ssim(
    X: Tensor,
    Y: Tensor,
    data_range: float = 255,
    size_average: bool = True,
    win_size: int = 11,
    win_sigma: float = 1.5,
    win: Tensor | None = None,
    K: tuple[float, float] | list[float] = (0.01, 0.03),
    nonnegative_ssim: bool = False,
) -> Tensor:
    """SSIM averaged over the batch (a scalar), or with ``size_average=False`` one value per sample, (N,).

    ``nonnegative_ssim`` clips the value of each channel at 0. Raises ValueError for unequal shapes, an even window or a
    wrong number of axes, as the original does.
    """
    X, Y, win_size = _checked(X, Y, win, win_size)
    per_channel = _per_channel(X, Y, data_range, win_size, win_sigma, win, K)
    if nonnegative_ssim:
        per_channel = torch.relu(per_channel)
    return per_channel.mean() if size_average else per_channel.mean(1)


def ms_ssim(
    X: Tensor,
    Y: Tensor,
    data_range: float = 255,
    size_average: bool = True,
    win_size: int = 11,
    win_sigma: float = 1.5,
    win: Tensor | None = None,
    weights: list[float] | None = None,
    K: tuple[float, float] | list[float] = (0.01, 0.03),
) -> Tensor:
    """MS-SSIM averaged over the batch (a scalar), or with ``size_average=False`` one value per sample, (N,).

    The product over scales, each half as large as the one before, of the mean contrast times structure, and at the
    coarsest of the mean SSIM, to the power of ``weights`` (default: SCALE_WEIGHTS); one pass a scale. A mean below 0
    counts as 0; its gradient is 0 where that of the original is NaN.

    Raises ValueError for what :func:`ssim` refuses and for images too small for the scales: with five of them, both
    sides must be larger than ``16 (win_size - 1)``.
    """
    X, Y, win_size = _checked(X, Y, win, win_size)
    weights = list(SCALE_WEIGHTS) if weights is None else list(weights)
    least = (win_size - 1) * 2 ** min(len(weights) - 1, 4)
    if not weights or min(X.shape[-2:]) <= least:
        raise ValueError(
            f"weights must hold a number for each scale, and the images be larger than {least} pixels for "
            f"{len(weights)} scales with win_size={win_size}, got {tuple(X.shape)}"
        )
    pool = functional.avg_pool2d if X.dim() == 4 else functional.avg_pool3d
    factors = []
    for scale, weight in enumerate(weights):
        last = scale == len(weights) - 1
        means = _per_channel(X, Y, data_range, win_size, win_sigma, win, K, luminance=last)
        cut = means <= 0  # not so of a NaN, which stays
        factors.append(torch.where(cut, 0.0, torch.where(cut, 1.0, means) ** weight))
        if not last:
            margin = [side % 2 for side in X.shape[2:]]
            X, Y = pool(X, kernel_size=2, padding=margin), pool(Y, kernel_size=2, padding=margin)
    result = reduce(torch.mul, factors)
    return result.mean() if size_average else result.mean(1)


def _checked(X: Tensor, Y: Tensor, win: Tensor | None, win_size: int) -> tuple[Tensor, Tensor, int]:
    """The images without the axes that this package drops, and the size of the window."""
    if X.shape != Y.shape:
        raise ValueError(f"Input images should have the same dimensions, but got {X.shape} and {Y.shape}.")
    for axis in range(X.dim() - 1, 1, -1):  # those of one entry, behind the second
        X, Y = X.squeeze(axis), Y.squeeze(axis)
    if X.dim() not in (4, 5):
        raise ValueError(f"Input images should be 4-d or 5-d tensors, but got {X.shape}")
    if win is not None:
        win_size = win.shape[-1]
    if win_size % 2 != 1:
        raise ValueError("Window size should be odd.")
    return X, Y, win_size


def _per_channel(
    X: Tensor,
    Y: Tensor,
    data_range: float,
    win_size: int,
    win_sigma: float,
    win: Tensor | None,
    K: tuple[float, float] | list[float],
    luminance: bool = True,
) -> Tensor:
    """The mean of each channel, (N, C), of SSIM or, without luminance, of contrast times structure."""
    if win is None and X.dim() == 4 and min(X.shape[-2:]) >= win_size and min(K) > 0:
        n, c, h, w = X.shape
        return fused(
            X.reshape(n * c, 1, h, w),
            Y.reshape(n * c, 1, h, w),
            data_range=float(data_range),
            window_size=win_size,
            sigma=float(win_sigma),
            k1=K[0],
            k2=K[1],
            exponents=(float(luminance), 1.0, 1.0),
            padding="valid",
            reduction="sample",
        ).view(n, c)
    taps = X.new_tensor(gaussian_taps(win_size, win_sigma)) if win is None else win.flatten(0, -2)[0]
    return _plain(X, Y, float(data_range), taps.to(X), K, luminance)


def _plain(
    X: Tensor,
    Y: Tensor,
    data_range: float,
    taps: Tensor,
    K: tuple[float, float] | list[float],
    luminance: bool,
) -> Tensor:
    """:func:`_per_channel` for any number of spatial axes and any window."""

    def smooth(x: Tensor) -> Tensor:
        for axis in range(2, x.dim()):
            if x.shape[axis] < len(taps):
                warnings.warn(
                    f"axis {axis} of the input has {x.shape[axis]} pixels, fewer than the window: it is not smoothed",
                    stacklevel=6,
                )
                continue
            x = (x.unfold(axis, len(taps), 1) * taps).sum(-1)  # no matmul: autocast would compute it in 16 bits
        return x

    c1, c2 = (K[0] * data_range) ** 2, (K[1] * data_range) ** 2
    mu_x, mu_y = smooth(X), smooth(Y)
    pixels = (2 * (smooth(X * Y) - mu_x * mu_y) + c2) / (smooth(X * X) - mu_x * mu_x + smooth(Y * Y) - mu_y * mu_y + c2)
    if luminance:
        pixels = (2 * mu_x * mu_y + c1) / (mu_x * mu_x + mu_y * mu_y + c1) * pixels
    return pixels.flatten(2).mean(-1)


class _Module(nn.Module):
    """Keeps the options of a function, each under its name, and calls it with them."""

    def __init__(self, function: Callable[..., Tensor], **options: Any) -> None:
        super().__init__()
        self._function, self._options = function, tuple(options)
        for name, value in options.items():
            setattr(self, name, value)

    def forward(self, X: Tensor, Y: Tensor) -> Tensor:
        return self._function(X, Y, **{name: getattr(self, name) for name in self._options})


class SSIM(_Module):
    """Module form of :func:`ssim`; ``channel`` and ``spatial_dims`` are accepted for compatibility and not needed."""

    def __init__(
        self,
        data_range: float = 255,
        size_average: bool = True,
        win_size: int = 11,
        win_sigma: float = 1.5,
        channel: int = 3,
        spatial_dims: int = 2,
        K: tuple[float, float] | list[float] = (0.01, 0.03),
        nonnegative_ssim: bool = False,
    ) -> None:
        super().__init__(
            ssim,
            data_range=data_range,
            size_average=size_average,
            win_size=win_size,
            win_sigma=win_sigma,
            K=K,
            nonnegative_ssim=nonnegative_ssim,
        )


class MS_SSIM(_Module):
    """Module form of :func:`ms_ssim`; ``channel`` and ``spatial_dims`` as in :class:`SSIM`."""

    def __init__(
        self,
        data_range: float = 255,
        size_average: bool = True,
        win_size: int = 11,
        win_sigma: float = 1.5,
        channel: int = 3,
        spatial_dims: int = 2,
        weights: list[float] | None = None,
        K: tuple[float, float] | list[float] = (0.01, 0.03),
    ) -> None:
        super().__init__(
            ms_ssim,
            data_range=data_range,
            size_average=size_average,
            win_size=win_size,
            win_sigma=win_sigma,
            weights=weights,
            K=K,
        )
