"""The function of the ``fused_ssim`` package that 3-D Gaussian splatting trainers import."""

import torch
from torch import Tensor

from ..functional import ssim


def fused_ssim(img1: Tensor, img2: Tensor, padding: str = "same", train: bool = True) -> Tensor:
    """Mean SSIM of img1 and img2, (N, C, H, W) in [0, 1]; window 11, sigma 1.5, padding "same" or "valid".

    As in that package only img1 receives a gradient, and none with ``train=False``. Errors as in
    :func:`fused_ssim.ssim`.
    """
    if padding not in ("same", "valid"):
        raise ValueError(f"padding must be 'same' or 'valid', got {padding!r}")
    if not train:
        with torch.no_grad():
            return ssim(img1, img2, padding=padding)
    return ssim(img1, img2.detach(), padding=padding)
