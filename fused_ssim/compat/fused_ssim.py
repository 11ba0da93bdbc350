"""The function of the ``fused_ssim`` package that 3-D Gaussian splatting trainers import."""

import contextlib

import torch
from torch import Tensor

from ..options import SSIMOptions
from ..reduction import SSIM_PIXEL, single


def fused_ssim(img1: Tensor, img2: Tensor, padding: str = "same", train: bool = True) -> Tensor:
    """Mean SSIM of img1 and img2, (N, C, H, W) in [0, 1]; window 11, sigma 1.5, padding "same" or "valid".

    As in that package only img1 receives a gradient, and none with ``train=False``. Errors as in
    :func:`fused_ssim.ssim`.
    """
    if padding not in ("same", "valid"):
        raise ValueError(f"padding must be 'same' or 'valid', got {padding!r}")
    with contextlib.nullcontext() if train else torch.no_grad():
        img2 = img2.detach() if isinstance(img2, Tensor) else img2  # which is refused below
        return single(
            img1, img2, SSIMOptions(padding=padding), SSIM_PIXEL, "mean", None, None, x_name="img1", y_name="img2"
        )
