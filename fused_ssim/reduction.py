"""From levels to what a call returns: the map, or a reduction in one operator call where a kernel serves."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import dispatch, ops, reference
from .checks import Level, check_inputs
from .options import SSIMOptions

REDUCTIONS = ("mean", "sum", "sample", "none")


class Pixel(NamedTuple):
    """What one pixel contributes: ``weight * (offset + slope * SSIM) + l1 * |x - y|``."""

    offset: float
    slope: float
    l1: float = 0.0


SSIM_PIXEL = Pixel(0.0, 1.0)
LOSS_PIXEL = Pixel(0.5, -0.5)


def single(
    x: Tensor,
    y: Tensor,
    options: SSIMOptions,
    pixel: Pixel,
    reduction: str,
    weight: Tensor | None,
    backend: str | None,
    x_name: str = "x",
    y_name: str = "y",
) -> Tensor:
    """The map of one pair, or its reduction, after the checks of its arguments."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    level = check_inputs(x, y, weight, options, x_name, y_name)
    backend = dispatch.choose(backend, level[0], options)
    if reduction != "none":
        return reduce_levels([level], options, pixel, [1.0], reduction, None, True, backend)
    result = map_of(*level, options, pixel, backend)
    return result if x.dim() == 4 else result.squeeze(0)


def map_of(x: Tensor, y: Tensor, weight: Tensor | None, options: SSIMOptions, pixel: Pixel, backend: str) -> Tensor:
    """What each pixel contributes, in the dtype of ``x``."""
    dtype = x.dtype
    if dtype in (torch.float16, torch.bfloat16) and (pixel != SSIM_PIXEL or weight is not None):
        # 1 - SSIM of an SSIM rounded to 16 bits has no correct digit where the loss is small.
        x, y = x.float(), y.float()
    result = _ssim_map(x, y, options, backend)
    if pixel != SSIM_PIXEL:
        result = pixel.offset + pixel.slope * result
    if pixel.l1:
        result = result + pixel.l1 * (x - y).abs()
    return (result if weight is None else result * weight).to(dtype)


def _ssim_map(x: Tensor, y: Tensor, options: SSIMOptions, backend: str) -> Tensor:
    return reference.ssim_map(x, y, options) if backend == "reference" else ops.ssim_map(x, y, options, backend)


def reduce_levels(
    levels: list[Level],
    options: SSIMOptions,
    pixel: Pixel,
    factors: list[float],
    reduction: str,
    normalize: str | None,
    detach_range: bool,
    backend: str,
) -> Tensor:
    """The reduction over all levels in one operator call (or through maps where no kernel serves)."""
    per_sample = reduction == "sample"
    weighted = levels[0][2] is not None
    # What divides a mean comes after the pixels' sum, and before that of the levels, where it is no constant: the
    # weights' sum, which only the device knows, and the size in a compiled program, which else served that size alone.
    divided = reduction != "sum" and (weighted or torch.compiler.is_compiling())
    pixels, counts = [], []
    for factor, (x, _, _) in zip(factors, levels, strict=True):
        n, c, h, w = x.shape
        margin = options.window_size - 1 if options.padding == "valid" else 0
        planes = c if per_sample else n * c
        counts.append(planes * (h - margin) * (w - margin))
        map_count = 1 if reduction == "sum" or divided else counts[-1]
        l1_count = map_count if margin == 0 or reduction == "sum" else map_count / counts[-1] * planes * h * w
        pixels.append(
            Pixel(factor * pixel.offset / map_count, factor * pixel.slope / map_count, factor * pixel.l1 / l1_count)
        )
    differentiable_weight = weighted and any(weight is not None and weight.requires_grad for _, _, weight in levels)
    if backend == "reference" or differentiable_weight:
        if normalize is not None:
            levels = [
                (reference.min_max(x, normalize, detach_range), reference.min_max(y, normalize, detach_range), weight)
                for x, y, weight in levels
            ]
        values = torch.stack(
            [
                _sum_of_map(*level, options, level_pixel, per_sample, backend)
                for level, level_pixel in zip(levels, pixels, strict=True)
            ]
        )
    else:
        scales = None
        if weighted and levels[0][0].dtype == torch.float16:
            levels, scales = _with_weights_up_to_one(levels, per_sample)
        total = not divided and scales is None and reduction != "level"
        values = ops.ssim_sums(levels, options, pixels, normalize, detach_range, per_sample, total, backend)
        if total:
            return values
        if scales is not None and not divided:  # the sum of the weights has the same scale
            values = values * scales.flatten()
    if divided and not weighted:
        values = torch.stack([value / count for value, count in zip(values, counts, strict=True)])
    elif divided:
        axes = (1, 2, 3) if per_sample else (0, 1, 2, 3)
        totals = torch.stack([weight.sum(axes) for _, _, weight in levels if weight is not None]).to(values.dtype)
        values = torch.where(totals == 0, torch.zeros_like(values), values / torch.where(totals == 0, 1.0, totals))
    if reduction == "level":
        return values
    return ops.sum_of_levels(values)


def _with_weights_up_to_one(levels: list[Level], per_sample: bool) -> tuple[list[Level], Tensor]:
    """The levels, and what was taken out of their weights, (L, 1 or N, 1, 1, 1).

    What is saved for backward holds the weights, and float16 neither what is far below 1 nor what is far above.
    """
    scaled: list[Level] = []
    scales = []
    for x, y, weight in levels:
        assert weight is not None
        compact = weight[tuple(slice(1 if stride == 0 else None) for stride in weight.stride())]
        scale = compact.abs().amax((1, 2, 3) if per_sample else (0, 1, 2, 3), keepdim=True)
        scale = torch.where((scale > 0) & scale.isfinite(), scale, 1.0)
        scaled.append((x, y, (compact / scale).expand(weight.shape)))
        scales.append(scale)
    return scaled, torch.stack(scales)


def _sum_of_map(
    x: Tensor, y: Tensor, weight: Tensor | None, options: SSIMOptions, pixel: Pixel, per_sample: bool, backend: str
) -> Tensor:
    axes = (1, 2, 3) if per_sample else (0, 1, 2, 3)
    if x.dtype in (torch.float16, torch.bfloat16):
        x, y = x.float(), y.float()
    values = pixel.offset + pixel.slope * _ssim_map(x, y, options, backend)
    values = (values if weight is None else values * weight).sum(axes)
    if pixel.l1:
        difference = (x - y).abs()
        values = values + pixel.l1 * (difference if weight is None else difference * weight).sum(axes)
    return values
