"""SSIM in plain PyTorch: any device, any floating dtype, twice differentiable.

This file holds no hand-written derivative, so it can judge the kernels that do. The symbols are those of Wang et al.,
"Image quality assessment: from error visibility to structural similarity" (2004), and of docs/math.md.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .options import POWER_FLOOR, VARIANCE_EPSILON, SSIMOptions
from .window import gaussian_taps, reflect_index


def reflect_pad(x: Tensor, radius: int) -> Tensor:
    """Mirror the last two axes by ``radius`` pixels, edge not repeated; folding as often as needed."""
    for axis in (-2, -1):
        length = x.shape[axis]
        index = [reflect_index(i, length) for i in range(-radius, length + radius)]
        x = x.index_select(axis, torch.tensor(index, device=x.device))
    return x


def gaussian_filter(x: Tensor, options: SSIMOptions) -> Tensor:
    """The local mean of each channel of ``x`` (N, C, H, W) under the Gaussian window; (N, C, H', W')."""
    radius = options.window_size // 2
    if options.padding == "reflect":
        x = reflect_pad(x, radius)
    elif options.padding == "same":
        x = F.pad(x, (radius, radius, radius, radius))
    taps = gaussian_taps(options.window_size, options.sigma)
    for axis in (-2, -1):
        # Shifted copies, not a convolution: that has no fast kernel for one channel and is 16 bits wide under autocast.
        length = x.shape[axis] - len(taps) + 1
        shifted = [x.narrow(axis, k, length) for k in range(len(taps))]
        x = shifted[0] * taps[0]
        for tap, view in zip(taps[1:], shifted[1:], strict=True):
            x = torch.add(x, view, alpha=tap)
    return x


def power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent``; except for the exponents 0 and 1, a base below ``POWER_FLOOR`` counts as the floor.

    So a negative structure under a fractional power is no NaN, and every gradient stays finite.
    """
    if exponent == 1.0:
        return base
    if exponent == 0.0:
        return base**0.0  # ones with a gradient of zero, where ones_like would cut the graph
    return base.clamp(min=POWER_FLOOR) ** exponent


def luminance_contrast_structure(x: Tensor, y: Tensor, options: SSIMOptions) -> tuple[Tensor, Tensor, Tensor]:
    """The three component maps l, c, s of SSIM, each (N, C, H', W'); paper Eq. (3)."""
    x, y = x / options.data_range, y / options.data_range
    c1, c2 = options.k1**2, options.k2**2
    mu_x, mu_y = gaussian_filter(x, options), gaussian_filter(y, options)
    var_x = (gaussian_filter(x * x, options) - mu_x * mu_x).clamp(min=0.0) + VARIANCE_EPSILON
    var_y = (gaussian_filter(y * y, options) - mu_y * mu_y).clamp(min=0.0) + VARIANCE_EPSILON
    cov_xy = gaussian_filter(x * y, options) - mu_x * mu_y + VARIANCE_EPSILON
    deviations = (var_x * var_y).sqrt()
    luminance = (2.0 * mu_x * mu_y + c1) / (mu_x * mu_x + mu_y * mu_y + c1)
    contrast = (2.0 * deviations + c2) / (var_x + var_y + c2)
    structure = (cov_xy + c2 / 2.0) / (deviations + c2 / 2.0)
    return luminance, contrast, structure


def ssim_map(x: Tensor, y: Tensor, options: SSIMOptions) -> Tensor:
    """SSIM of each pixel: ``luminance**alpha * contrast**beta * structure**gamma``; (N, C, H', W').

    Where ``beta == gamma`` the product contrast * structure has the closed form
    ``(2 cov_xy + C2) / (var_x + var_y + C2)``, which needs no square root and is what everybody calls SSIM.
    """
    dtype = x.dtype
    if dtype in (torch.float16, torch.bfloat16):
        x, y = x.float(), y.float()
    alpha, beta, gamma = options.exponents
    if beta != gamma:
        luminance, contrast, structure = luminance_contrast_structure(x, y, options)
        return (power(luminance, alpha) * power(contrast, beta) * power(structure, gamma)).to(dtype)
    x, y = x / options.data_range, y / options.data_range
    c1, c2 = options.k1**2, options.k2**2
    mu_x, mu_y = gaussian_filter(x, options), gaussian_filter(y, options)
    luminance = (2.0 * mu_x * mu_y + c1) / (mu_x * mu_x + mu_y * mu_y + c1)
    var_x = gaussian_filter(x * x, options) - mu_x * mu_x
    var_y = gaussian_filter(y * y, options) - mu_y * mu_y
    cov_xy = gaussian_filter(x * y, options) - mu_x * mu_y
    contrast_structure = (2.0 * cov_xy + c2) / (var_x + var_y + c2)
    return (power(luminance, alpha) * power(contrast_structure, beta)).to(dtype)


def min_max(x: Tensor, axes: str, detach_range: bool = True) -> Tensor:
    """psi of the paper: ``(x - min) / (max - min)`` over ``axes`` of x (N, C, H, W); a constant region becomes 0.

    axes: "tensor" (one range), "sample" (one per n), "channel" (one per n and c). ``detach_range`` treats min and
    max as constants; otherwise their gradient is shared evenly among the pixels that attain them. 16-bit x gives
    float32.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    dims = {"tensor": (0, 1, 2, 3), "sample": (1, 2, 3), "channel": (2, 3)}[axes]
    source = x.detach() if detach_range else x
    low, high = source.amin(dims, keepdim=True), source.amax(dims, keepdim=True)
    extent = high - low
    # NaN compares false, so a region with a NaN keeps its NaN.
    constant = extent < torch.finfo(x.dtype).tiny
    return torch.where(
        constant, torch.zeros_like(x), (x - low) / torch.where(constant, torch.ones_like(extent), extent)
    )
