"""The small Triton kernels around the large one: values from the sums of units, ranges of planes, scaled gradients."""

from typing import NamedTuple

import triton
import triton.language as tl

from .triton_kernels import SUMS, View, from_bits, pick, pick_view

BLOCK = 1024
_BLOCK, _SUMS = tl.constexpr(BLOCK), tl.constexpr(SUMS)


class Total(NamedTuple):
    """How the values of one level follow from its units; doubles by their bits."""

    order: int  # of the level in the launch
    first: int  # first unit in the table of sums
    units: int  # units of one value
    offset: int  # of ``offset * seeds + slope * SSIM + l1 * |x - y|``
    slope: int
    l1: int
    count: int  # pixels of one value, which is its sum of seeds where there are none


@triton.jit
def sum_column(slots, first, units, column: tl.constexpr):
    """The sum of one column of the table of sums, in float64 and always in the same order."""
    total = tl.zeros((_BLOCK,), tl.float64)
    for begin in range(0, units, _BLOCK):
        unit = begin + tl.arange(0, _BLOCK)
        total += tl.load(slots + (first + unit) * _SUMS + column, mask=unit < units, other=0.0).to(tl.float64)
    return tl.sum(total)


@triton.jit
def values_kernel(
    totals,
    sums,
    values,
    samples,
    compute: tl.constexpr,
    seeds: tl.constexpr,
    l1: tl.constexpr,
):
    """One program for each value."""
    place = tl.program_id(0)
    level, sample = place // samples, place % samples
    order = [total.order for total in totals]
    units = pick([total.units for total in totals], order, level)
    first = pick([total.first for total in totals], order, level) + sample * units
    slots = sums.to(tl.int64).to(tl.pointer_type(compute))
    ssim = sum_column(slots, first, units, 0)
    if seeds:
        seed = sum_column(slots, first, units, 1)
    else:
        seed = pick([total.count for total in totals], order, level).to(tl.float64)
    value = from_bits(pick([total.offset for total in totals], order, level), tl.float64) * seed
    value += from_bits(pick([total.slope for total in totals], order, level), tl.float64) * ssim
    if l1:
        value += from_bits(pick([total.l1 for total in totals], order, level), tl.float64) * sum_column(
            slots, first, units, 2
        )
    tl.store(values.to(tl.int64).to(tl.pointer_type(compute)) + place, value.to(compute))


class Plane(NamedTuple):
    """The planes of one level, and which of them share a range."""

    x: View
    y: View
    c: int
    h: int
    w: int
    first: int  # first plane in the table of extremes
    first_range: int
    range_planes: int


@triton.jit
def pixel_offsets(begin, h, w, h_stride, w_stride):
    """A block of pixels of a plane, row by row: their offsets, and which of them exist."""
    index: tl.constexpr = h_stride.dtype
    begin = w * 0 + begin  # a tensor, also where the interpreter counts with numbers
    pixel, width = begin.to(index) + tl.arange(0, _BLOCK).to(index), w.to(index)
    return pixel // width * h_stride + pixel % width * w_stride, pixel < h * w


@triton.jit
def extremes_kernel(levels, extremes, dtype: tl.constexpr, compute: tl.constexpr, index: tl.constexpr):
    """Minimum and maximum of one plane of x (axis 1 of the grid: 0) or y (1), to (planes, 2, 2). NaNs pass."""
    unit, side = tl.program_id(0), tl.program_id(1)
    firsts = [level.first for level in levels]
    plane = unit - pick(firsts, firsts, unit)
    channels = pick([level.c for level in levels], firsts, unit)
    h, w = pick([level.h for level in levels], firsts, unit), pick([level.w for level in levels], firsts, unit)
    n, c = plane // channels, plane % channels
    if side == 0:
        data, h_stride, w_stride = pick_view([level.x for level in levels], firsts, unit, n, c, dtype, index)
    else:
        data, h_stride, w_stride = pick_view([level.y for level in levels], firsts, unit, n, c, dtype, index)
    low = tl.full((_BLOCK,), float("inf"), compute)
    high = tl.full((_BLOCK,), float("-inf"), compute)
    for begin in range(0, h * w, _BLOCK):
        offsets, mask = pixel_offsets(begin, h, w, h_stride, w_stride)
        values = tl.load(data + offsets, mask=mask, other=0.0).to(compute)
        low = tl.where(mask & (values < low), values, low)
        high = tl.where(mask & (values > high), values, high)
    out = extremes.to(tl.int64).to(tl.pointer_type(compute)) + (unit.to(tl.int64) * 2 + side) * 2
    tl.store(out, tl.min(low))
    tl.store(out + 1, tl.max(high))


@triton.jit
def ranges_kernel(levels, extremes, ranges, data_range, compute: tl.constexpr, tiny: tl.constexpr):
    """Low, high and scale of the planes that share a range, to (ranges, 2, 3)."""
    unit, side = tl.program_id(0), tl.program_id(1)
    firsts = [level.first_range for level in levels]
    planes = pick([level.range_planes for level in levels], firsts, unit)
    first = pick([level.first for level in levels], firsts, unit) + (unit - pick(firsts, firsts, unit)) * planes
    source = extremes.to(tl.int64).to(tl.pointer_type(compute)) + side * 2
    lows = tl.full((_BLOCK,), float("inf"), compute)
    highs = tl.full((_BLOCK,), float("-inf"), compute)
    for begin in range(0, planes, _BLOCK):
        plane = begin + tl.arange(0, _BLOCK)
        at = source + (first + plane) * 4
        lows = tl.minimum(lows, tl.load(at, mask=plane < planes, other=float("inf")))
        highs = tl.maximum(highs, tl.load(at + 1, mask=plane < planes, other=float("-inf")))
    low, high = tl.min(lows), tl.max(highs)
    extent = high - low
    constant = extent < tiny  # then everything becomes 0
    scale = 1.0 / (tl.where(constant, 1.0, extent).to(tl.float64) * from_bits(data_range, tl.float64))
    out = ranges.to(tl.int64).to(tl.pointer_type(compute)) + (unit.to(tl.int64) * 2 + side) * 3
    tl.store(out, low)
    tl.store(out + 1, high)
    tl.store(out + 2, tl.where(constant, 0.0, scale).to(compute))


class Gradient(NamedTuple):
    """A gradient to be scaled, in planes of which each takes some blocks."""

    grad: View
    c: int
    h: int
    w: int
    blocks: int
    first: int  # first block in the launch
    divisor: int  # bits


@triton.jit
def scale_kernel(
    grads,
    factor,
    level_stride,
    sample_stride,
    dtype: tl.constexpr,
    factor_dtype: tl.constexpr,
    compute: tl.constexpr,
    index: tl.constexpr,
):
    """grads[i] *= factor[i, n] / divisor[i]; leaves at once where that is 1."""
    unit = tl.program_id(0)
    firsts = [grad.first for grad in grads]
    local = unit - pick(firsts, firsts, unit)
    blocks = pick([grad.blocks for grad in grads], firsts, unit)
    channels = pick([grad.c for grad in grads], firsts, unit)
    plane, block = local // blocks, local % blocks
    n, c = plane // channels, plane % channels
    level = local * 0
    for i in tl.static_range(1, len(grads)):
        level = tl.where(unit >= firsts[i], i, level)
    source = factor.to(tl.int64).to(tl.pointer_type(factor_dtype))
    by = tl.load(source + level * level_stride + n * sample_stride).to(tl.float64)
    by = by / from_bits(pick([grad.divisor for grad in grads], firsts, unit), tl.float64)
    if by != 1.0:
        h, w = pick([grad.h for grad in grads], firsts, unit), pick([grad.w for grad in grads], firsts, unit)
        data, h_stride, w_stride = pick_view([grad.grad for grad in grads], firsts, unit, n, c, dtype, index)
        offsets, mask = pixel_offsets(block * _BLOCK, h, w, h_stride, w_stride)
        values = tl.load(data + offsets, mask=mask, other=0.0).to(compute)
        tl.store(data + offsets, (values * by.to(compute)).to(dtype), mask=mask)
