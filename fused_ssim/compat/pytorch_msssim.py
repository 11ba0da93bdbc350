"""``ssim`` and ``SSIM`` with the signatures and results of the ``pytorch_msssim`` package.

Windows are "valid" and inputs (N, C, H, W) or (N, C, D, H, W). Where the fused kernels do not apply (a window tensor of
your own, even or above 11; volumes; a side shorter than the window, which that package leaves unsmoothed; a K of 0)
plain PyTorch computes the same definition.
"""

import warnings

import torch
from torch import Tensor, nn

from ..functional import ssim as fused
from ..window import gaussian_taps


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
    if X.shape != Y.shape:
        raise ValueError(f"Input images should have the same dimensions, but got {X.shape} and {Y.shape}.")
    # That package drops singleton axes behind the second.
    for axis in range(X.dim() - 1, 1, -1):
        X, Y = X.squeeze(axis), Y.squeeze(axis)
    if X.dim() not in (4, 5):
        raise ValueError(f"Input images should be 4-d or 5-d tensors, but got {X.shape}")
    if win is not None:
        win_size = win.shape[-1]
    if win_size % 2 != 1:
        raise ValueError("Window size should be odd.")
    if win is None and X.dim() == 4 and min(X.shape[-2:]) >= win_size and min(K) > 0:
        n, c, h, w = X.shape
        per_channel = fused(
            X.reshape(n * c, 1, h, w),
            Y.reshape(n * c, 1, h, w),
            data_range=float(data_range),
            window_size=win_size,
            sigma=float(win_sigma),
            k1=K[0],
            k2=K[1],
            padding="valid",
            reduction="sample",
        ).view(n, c)
    else:
        taps = X.new_tensor(gaussian_taps(win_size, win_sigma)) if win is None else win.flatten(0, -2)[0]
        per_channel = _plain(X, Y, float(data_range), taps.to(X), K)
    if nonnegative_ssim:
        per_channel = torch.relu(per_channel)
    return per_channel.mean() if size_average else per_channel.mean(1)


def _plain(X: Tensor, Y: Tensor, data_range: float, taps: Tensor, K: tuple[float, float] | list[float]) -> Tensor:
    """Mean SSIM of each channel, (N, C), for any number of spatial axes and any window."""

    def smooth(x: Tensor) -> Tensor:
        for axis in range(2, x.dim()):
            if x.shape[axis] < len(taps):
                warnings.warn(
                    f"axis {axis} of the input has {x.shape[axis]} pixels, fewer than the window: it is not smoothed",
                    stacklevel=5,
                )
                continue
            x = (x.unfold(axis, len(taps), 1) * taps).sum(-1)  # no matmul: autocast would compute it in 16 bits
        return x

    c1, c2 = (K[0] * data_range) ** 2, (K[1] * data_range) ** 2
    mu_x, mu_y = smooth(X), smooth(Y)
    contrast_structure = (2 * (smooth(X * Y) - mu_x * mu_y) + c2) / (
        smooth(X * X) - mu_x * mu_x + smooth(Y * Y) - mu_y * mu_y + c2
    )
    luminance = (2 * mu_x * mu_y + c1) / (mu_x * mu_x + mu_y * mu_y + c1)
    return (luminance * contrast_structure).flatten(2).mean(-1)


class SSIM(nn.Module):
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
        super().__init__()
        self.data_range, self.size_average = data_range, size_average
        self.win_size, self.win_sigma, self.K = win_size, win_sigma, K
        self.nonnegative_ssim = nonnegative_ssim

    def forward(self, X: Tensor, Y: Tensor) -> Tensor:
        return ssim(
            X,
            Y,
            data_range=self.data_range,
            size_average=self.size_average,
            win_size=self.win_size,
            win_sigma=self.win_sigma,
            K=self.K,
            nonnegative_ssim=self.nonnegative_ssim,
        )
