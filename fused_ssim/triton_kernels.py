"""The Triton kernels: what is loaded, filtered and stored where. Formulas are in triton_math.py.

A program marches down one unit: a strip of columns and a band of rows of one (n, c) plane. Each step takes ROWS rows:

    new rows of x, y  ->  u, v  ->  moments  ->  SSIM and its partials  ->  gradient rows, 8 behind the partials

A separable filter is a product with a banded Toeplitz matrix on each side, ``down @ block @ across``. ROWS = 16 results
of the vertical filter see 26 rows, so the block before and the block after hold all that they need: rows overlap
nothing, each pixel is read once, and only the rows before survive a step. Columns overlap by 2 * REACH on each side.

Why products: the filters need neighbours in both directions, and Triton has no registers or shared memory to shift
by hand. On paper, not measured on a device: for each pixel of a block of 32 columns and the gradient by x, products
take 7 * (32 + 32) * 3 = 1344 multiplications of tensor cores (three for one of float32: plain tf32 errs by 1e-3), of a
block of 64 columns 7 * (32 + 64) * 3 = 2016; but of a map wider than the block 12 columns of 32 are results, and 44 of
64, which is 3584 and 2932 for each result. Which block a launch takes is in triton_tiles.py. Shifted loads would take
about 55 loads and 300 instructions, and their partials would have to go through memory.

A product of a zero tap with a NaN or Inf is NaN, so those are taken out before and put back where the window sees them.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .triton_math import GRADIENT_FACTOR, SEPARATE, adjoint_x, paired_pixel, separate_pixel

ROWS = 16
TAPS = 11
RADIUS = TAPS // 2
BEHIND = ROWS // 2  # rows of the gradient behind those of the partials; at least RADIUS
SUMS = 7  # numbers that a unit leaves: SSIM, seeds, L1, and by x and by y the gradient and gradient * value

_ROWS = tl.constexpr(ROWS)
_TAPS, _RADIUS, _BEHIND = tl.constexpr(TAPS), tl.constexpr(RADIUS), tl.constexpr(BEHIND)
_SUMS = tl.constexpr(SUMS)


class View(NamedTuple):
    """Address of a strided (N, C, H, W) tensor and its strides in elements; 0 where there is none."""

    data: int = 0
    n: int = 0
    c: int = 0
    h: int = 0
    w: int = 0


class Level(NamedTuple):
    """One pair of tensors and how it is cut. All are integers; doubles go by their bits, so that none is rounded."""

    x: View
    y: View
    seed: View  # weight of each map pixel, or the upstream gradient of a map
    out_x: View  # gradient by x, or the map where no gradient is computed
    out_y: View
    c: int
    h: int
    w: int
    strips: int
    bands: int
    first: int  # first unit of this level in the launch
    first_range: int  # first entry of this level in the table of ranges
    range_planes: int  # planes that share a range
    by_ssim: int  # bits of the factor of SSIM's gradient
    by_l1: int  # bits of the factor of the L1 term's gradient


@triton.jit
def from_bits(bits, dtype: tl.constexpr):
    return bits.to(tl.int64).to(tl.float64, bitcast=True).to(dtype)


@triton.jit
def pick(values, firsts, unit):
    """The entry of the level that ``unit`` belongs to."""
    value = values[0].to(tl.int64)
    for i in tl.static_range(1, len(values)):
        value = tl.where(unit >= firsts[i], values[i].to(tl.int64), value)
    return value


@triton.jit
def pick_view(views, firsts, unit, n, c, dtype: tl.constexpr, index: tl.constexpr):
    """Plane (n, c) of the level's tensor: pointer to its first pixel, and the strides of rows and columns."""
    address = pick([view.data for view in views], firsts, unit)
    n_stride = pick([view.n for view in views], firsts, unit)
    c_stride = pick([view.c for view in views], firsts, unit)
    h_stride = pick([view.h for view in views], firsts, unit).to(index)
    w_stride = pick([view.w for view in views], firsts, unit).to(index)
    return address.to(tl.pointer_type(dtype)) + (n * n_stride + c * c_stride), h_stride, w_stride


@triton.jit
def load_block(data, h_stride, w_stride, rows, columns, h, w, dtype: tl.constexpr):
    """Pixels (rows, columns) of a plane of h x w, 0 outside; and the mask of those inside."""
    inside = ((rows >= 0) & (rows < h))[:, None] & ((columns >= 0) & (columns < w))[None, :]
    offsets = rows.to(h_stride.dtype)[:, None] * h_stride + columns.to(w_stride.dtype)[None, :] * w_stride
    return tl.load(data + offsets, mask=inside, other=0.0).to(dtype), inside


@triton.jit
def store_block(data, h_stride, w_stride, rows, columns, mask, values):
    offsets = rows.to(h_stride.dtype)[:, None] * h_stride + columns.to(w_stride.dtype)[None, :] * w_stride
    tl.store(data + offsets, values.to(data.dtype.element_ty), mask=mask)


@triton.jit
def load_sum_and_difference(
    x, x_h, x_w, y, y_h, y_w, rows, columns, h, w, low_x, scale_x, low_y, scale_y, normalize: tl.constexpr
):
    a, inside = load_block(x, x_h, x_w, rows, columns, h, w, scale_x.dtype)
    b, inside = load_block(y, y_h, y_w, rows, columns, h, w, scale_x.dtype)
    if normalize:  # the border's zeros are zeros after the rescaling
        a, b = tl.where(inside, a - low_x, 0.0), tl.where(inside, b - low_y, 0.0)
    a, b = a * scale_x, b * scale_y
    return a + b, a - b


@triton.jit
def mirrored(position, length):
    """reflect_index of fused_ssim/window.py."""
    period = tl.maximum(2 * (length - 1), 1)
    position = position % period
    position = tl.where(position < 0, position + period, position)
    return tl.minimum(position, period - position)


@triton.jit
def coefficients(result, source, taps, length, reflect: tl.constexpr):
    """What the window around ``result`` takes of ``source``, both positions on a line of ``length`` pixels."""
    total = ((result - source) * 0).to(taps[0].dtype)
    for k in tl.static_range(_TAPS):
        position = result + (k - _RADIUS)
        if reflect:
            position = mirrored(position, length)
        total += tl.where(position == source, taps[k], 0.0)
    return total


@triton.jit
def parts(values, precision: tl.constexpr):
    """What a product takes: for "tf32x3" each value rounded to 11 bits, which tf32 holds, and the rest.

    Were it cut off, the rest would have no sign, and what tf32 drops of it one side: all moments would come out too
    small, and a variance, their small difference, too large.
    """
    if precision == "tf32x3":
        high = ((values.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)
        return high, values - high
    else:
        return (values,)


@triton.jit
def product(a, b, total, precision: tl.constexpr):
    """``total + a @ b`` from their parts; Triton's own "tf32x3" guards against NaN and keeps a matrix three times."""
    if precision == "tf32x3":
        total = tl.dot(a[1], b[0], acc=total, input_precision="tf32")
        total = tl.dot(a[0], b[1], acc=total, input_precision="tf32")
        return tl.dot(a[0], b[0], acc=total, input_precision="tf32")
    else:
        return tl.dot(a[0], b[0], acc=total, input_precision=precision, out_dtype=total.dtype)


@triton.jit
def filtered(before, after, above, below, across, precision: tl.constexpr):
    """A separable filter over two blocks of rows, one above the other; matrices in parts."""
    zero = tl.zeros(before.shape, before.dtype)
    down = product(above, parts(before, precision), zero, precision)
    down = product(below, parts(after, precision), down, precision)
    return product(parts(down, precision), across, zero, precision)


@triton.jit
def not_finite(values):
    return tl.where(tl.abs(values) < float("inf"), 0.0, 1.0).to(values.dtype)


@triton.jit
def near(result, source, dtype: tl.constexpr):
    """1 where the window around ``result`` sees ``source``, on a mirrored line too."""
    return (tl.abs(result - source) <= _RADIUS).to(dtype)


@triton.jit
def spread(before, after, precision: tl.constexpr):
    """NaN where a window sees a flagged pixel, else 0; nearly always there are none, and this costs one maximum."""
    dtype: tl.constexpr = before.dtype
    reach = tl.zeros(before.shape, dtype)
    flagged = tl.max(tl.maximum(before, after))
    if flagged > 0.0:
        # Positions from what was loaded: constants would be prepared for every step and fill the registers.
        zero = flagged.to(tl.int32) - 1
        columns: tl.constexpr = before.shape[1]
        lane, column = tl.arange(0, _ROWS) + zero, tl.arange(0, columns) + zero
        above = near(lane[:, None], tl.arange(0, _ROWS)[None, :] - _BEHIND, dtype)
        below = near(lane[:, None], tl.arange(0, _ROWS)[None, :] + _ROWS - _BEHIND, dtype)
        across = near(column[None, :], tl.arange(0, columns)[:, None], dtype)
        # Small integers, which tf32 holds.
        zeros = tl.zeros(before.shape, dtype)
        exact: tl.constexpr = "tf32" if precision == "tf32x3" else precision
        seen = product((below,), (after,), product((above,), (before,), zeros, exact), exact)
        seen = product((seen,), (across,), zeros, exact)
        reach = tl.where(seen > 0.0, float("nan"), 0.0).to(dtype)
    return reach


@triton.jit
def moments_of(u, v, u_after, v_after, above, below, across, separate: tl.constexpr, precision: tl.constexpr):
    """The filtered u, v, u^2, v^2 (and uv) of a block of rows; Eq. (5), (6), (9)."""
    bad, bad_after = not_finite(u * u + v * v), not_finite(u_after * u_after + v_after * v_after)
    nan = spread(bad, bad_after, precision)
    u, v = tl.where(bad > 0.0, 0.0, u), tl.where(bad > 0.0, 0.0, v)
    u_after, v_after = tl.where(bad_after > 0.0, 0.0, u_after), tl.where(bad_after > 0.0, 0.0, v_after)
    mu_u = filtered(u, u_after, above, below, across, precision) + nan
    mu_v = filtered(v, v_after, above, below, across, precision)
    e_uu = filtered(u * u, u_after * u_after, above, below, across, precision)
    e_vv = filtered(v * v, v_after * v_after, above, below, across, precision)
    e_uv = mu_u
    if separate:
        e_uv = filtered(u * v, u_after * v_after, above, below, across, precision)
    return mu_u, mu_v, e_uu, e_vv, e_uv


@triton.jit
def pixels_of(
    mu_u, mu_v, e_uu, e_vv, e_uv, constants, form: tl.constexpr, exponents: tl.constexpr, sides: tl.constexpr
):
    """SSIM and the maps whose filters give the gradient: none, three for x alone, four or five for x and y."""
    c1, c2 = constants
    alpha: tl.constexpr = exponents[0]
    beta: tl.constexpr = exponents[1]
    gamma: tl.constexpr = exponents[2]
    separate: tl.constexpr = form == SEPARATE
    if separate:
        value, d_u, d_v, d_uu, d_vv, d_uv = separate_pixel(mu_u, mu_v, e_uu, e_vv, e_uv, c1, c2, alpha, beta, gamma)
    else:
        value, d_u, d_v, d_uu, d_vv = paired_pixel(mu_u, mu_v, e_uu, e_vv, c1, c2, alpha, beta, gamma, form)
        d_uv = d_vv
    if sides == 1:
        a, b, c = adjoint_x(d_u, d_v, d_uu, d_vv, d_uv, separate)
        maps = (a, b, c)
    elif sides == 2 and separate:
        maps = (d_u, d_v, d_uu, d_vv, d_uv)
    elif sides == 2:
        maps = (d_u, d_v, d_uu, d_vv)
    else:
        maps = ()
    return value, maps


@triton.jit
def filter_maps(maps, new_maps, above, below, across, precision: tl.constexpr):
    """The filtered maps of the rows in between; Eq. (13)-(15)."""
    flags, new_flags = maps[0], new_maps[0]
    for i in tl.static_range(1, len(maps)):
        flags += maps[i]
        new_flags += new_maps[i]
    flags, new_flags = not_finite(flags), not_finite(new_flags)
    nan = spread(flags, new_flags, precision)
    found = ()
    for i in tl.static_range(len(maps)):
        old, new = tl.where(flags > 0.0, 0.0, maps[i]), tl.where(new_flags > 0.0, 0.0, new_maps[i])
        result = filtered(old, new, above, below, across, precision)
        if i == 0:  # every gradient has a part of the first map
            result += nan
        found = found + (result,)  # noqa: RUF005 (Triton's grammar)
    return found


@triton.jit
def gradients_of(u, v, maps, sides: tl.constexpr):
    """The gradients by x and y from filtered maps, but for GRADIENT_FACTOR; Eq. (13)-(15)."""
    if sides == 1:
        of_x = maps[0] + u * maps[1] + v * maps[2]
        of_y = of_x
    else:
        of_u, of_v = maps[0] + u * maps[2], maps[1] + v * maps[3]
        if len(maps) == 5:
            of_u += v * maps[4]
            of_v += u * maps[4]
        of_x, of_y = of_u + of_v, of_u - of_v
    return of_x, of_y


@triton.jit
def ssim_kernel(
    levels,  # a tuple of Level
    taps,  # bits of the window
    constants,  # bits of 2 C1, 2 C2, data_range
    ranges,  # address of (ranges, 2, 3): low, high and scale of x and of y
    sums,  # address of (units, SUMS)
    dtype: tl.constexpr,  # of x, y and what is written
    seed_dtype: tl.constexpr,  # None where there are no seeds
    compute: tl.constexpr,  # float32 or float64
    index: tl.constexpr,  # int32, or int64 where offsets in a plane need it
    form: tl.constexpr,
    exponents: tl.constexpr,
    padding_reflect: tl.constexpr,
    margin: tl.constexpr,  # pixels that "valid" leaves out on each side
    sides: tl.constexpr,  # 0 the map or no output, 1 gradient by x, 2 by x and y
    write_map: tl.constexpr,
    write_sums: tl.constexpr,
    l1: tl.constexpr,
    normalize: tl.constexpr,
    track: tl.constexpr,  # leave the sums that the extremes' gradient needs
    precision: tl.constexpr,
    COLUMNS: tl.constexpr,  # of a strip, halo and all
):
    unit = tl.program_id(0)
    firsts = [level.first for level in levels]
    h = pick([level.h for level in levels], firsts, unit).to(tl.int32)
    w = pick([level.w for level in levels], firsts, unit).to(tl.int32)
    channels = pick([level.c for level in levels], firsts, unit)
    strips = pick([level.strips for level in levels], firsts, unit).to(tl.int32)
    bands = pick([level.bands for level in levels], firsts, unit).to(tl.int32)
    local = unit - pick(firsts, firsts, unit).to(tl.int32)
    strip, band, plane = local % strips, local // strips % bands, local // (strips * bands)
    n, c = plane // channels, plane % channels

    # The unit alone writes and sums its own rows and columns; it reads `reach` further.
    reach: tl.constexpr = 2 * _RADIUS if sides else _RADIUS
    band_rows = (h + bands - 1) // bands
    row0, row1 = band * band_rows, tl.minimum(h, (band + 1) * band_rows)
    origin = strip * (COLUMNS - 2 * reach)
    col0 = tl.where(strip == 0, 0, origin + reach)
    col1 = tl.where(strip == strips - 1, w, origin + COLUMNS - reach)
    columns = origin + tl.arange(0, COLUMNS)
    own_columns = (columns >= col0) & (columns < col1)
    map_columns = (columns >= margin) & (columns < w - margin)

    x, x_h, x_w = pick_view([level.x for level in levels], firsts, unit, n, c, dtype, index)
    y, y_h, y_w = pick_view([level.y for level in levels], firsts, unit, n, c, dtype, index)
    if seed_dtype is not None:
        seed, seed_h, seed_w = pick_view([level.seed for level in levels], firsts, unit, n, c, seed_dtype, index)
    if sides > 0 or write_map:
        to_x, to_x_h, to_x_w = pick_view([level.out_x for level in levels], firsts, unit, n, c, dtype, index)
    if sides == 2:
        to_y, to_y_h, to_y_w = pick_view([level.out_y for level in levels], firsts, unit, n, c, dtype, index)
    by_ssim = from_bits(pick([level.by_ssim for level in levels], firsts, unit), compute) * GRADIENT_FACTOR
    by_l1 = from_bits(pick([level.by_l1 for level in levels], firsts, unit), compute)
    data_range = from_bits(constants[2], tl.float64)
    if normalize:
        entry = pick([level.first_range for level in levels], firsts, unit)
        entry += plane // pick([level.range_planes for level in levels], firsts, unit)
        table = ranges.to(tl.int64).to(tl.pointer_type(compute)) + entry * 6
        low_x, scale_x = tl.load(table), tl.load(table + 2)
        low_y, scale_y = tl.load(table + 3), tl.load(table + 5)
    else:
        scale_x = (1.0 / data_range).to(compute)
        scale_y = scale_x
        low_x, low_y = scale_x, scale_y  # not used
    by_x, by_y = by_ssim * scale_x, by_ssim * scale_y
    window = [from_bits(tap, compute) for tap in taps]
    c1_c2 = (from_bits(constants[0], compute), from_bits(constants[1], compute))

    # Positions within a block of rows, of the rows before (above) and after (below), and of the columns.
    lane, column = tl.arange(0, _ROWS), tl.arange(0, COLUMNS) + origin
    across = parts(coefficients(column[None, :], column[:, None], window, w, padding_reflect), precision)
    above = parts(coefficients(lane[:, None], lane[None, :] - _BEHIND, window, h, False), precision)
    below = parts(coefficients(lane[:, None], lane[None, :] + _ROWS - _BEHIND, window, h, False), precision)
    across_back, above_back, below_back = across, above, below
    if padding_reflect:
        across_back = parts(coefficients(column[:, None], column[None, :], window, w, True), precision)

    zero = tl.zeros((_ROWS, COLUMNS), compute)
    ssim_sum, seed_sum, l1_sum = zero, zero, zero
    grad_x_sum, value_x_sum, grad_y_sum, value_y_sum = zero, zero, zero, zero
    if sides == 0:
        maps = ()
    elif sides == 1:
        maps = (zero, zero, zero)
    elif form == SEPARATE:
        maps = (zero, zero, zero, zero, zero)
    else:
        maps = (zero, zero, zero, zero)

    start = tl.maximum(0, row0 - _RADIUS)
    u, v = load_sum_and_difference(
        x, x_h, x_w, y, y_h, y_w, start - _BEHIND + lane, columns, h, w, low_x, scale_x, low_y, scale_y, normalize
    )
    # What a wide strip would keep outside the loop does not fit the registers.
    for step in tl.range(tl.cdiv(row1 - start + _BEHIND, _ROWS), disable_licm=COLUMNS > 32):
        top = start + step * _ROWS
        rows, behind = top + lane, top - _BEHIND + lane
        u_after, v_after = load_sum_and_difference(
            x, x_h, x_w, y, y_h, y_w, behind + _ROWS, columns, h, w, low_x, scale_x, low_y, scale_y, normalize
        )
        if padding_reflect:
            above = parts(coefficients(rows[:, None], behind[None, :], window, h, True), precision)
            below = parts(coefficients(rows[:, None], behind[None, :] + _ROWS, window, h, True), precision)
            above_back = parts(coefficients(rows[None, :] - _ROWS, behind[:, None], window, h, True), precision)
            below_back = parts(coefficients(rows[None, :], behind[:, None], window, h, True), precision)

        mu_u, mu_v, e_uu, e_vv, e_uv = moments_of(
            u, v, u_after, v_after, above, below, across, form == SEPARATE, precision
        )
        value, new_maps = pixels_of(mu_u, mu_v, e_uu, e_vv, e_uv, c1_c2, form, exponents, sides)
        in_map = ((rows >= margin) & (rows < h - margin))[:, None] & map_columns[None, :]
        own = in_map & ((rows >= row0) & (rows < row1))[:, None] & own_columns[None, :]
        if write_map:
            store_block(to_x, to_x_h, to_x_w, rows - margin, columns - margin, own, value)
        if seed_dtype is not None:
            weight, _ = load_block(
                seed, seed_h, seed_w, rows - margin, columns - margin, h - 2 * margin, w - 2 * margin, compute
            )
            value = value * weight
            seed_sum += tl.where(own, weight, 0.0)
            new_maps = [new_map * weight for new_map in new_maps]
        ssim_sum += tl.where(own, value, 0.0)
        new_maps = [tl.where(in_map, new_map, 0.0) for new_map in new_maps]

        own = ((behind >= row0) & (behind < row1))[:, None] & own_columns[None, :]
        if l1:
            slope = tl.where(v > 0.0, 1.0, tl.where(v < 0.0, -1.0, v * 0.0)).to(compute)
            distance = tl.where(own, v * slope, 0.0)
            if seed_dtype is not None:
                weight, _ = load_block(seed, seed_h, seed_w, behind, columns, h, w, compute)
                distance = distance * weight
                slope = slope * weight
            l1_sum += distance
        if sides > 0:
            found = filter_maps(maps, new_maps, above_back, below_back, across_back, precision)
            of_x, of_y = gradients_of(u, v, found, sides)
            of_x = of_x * by_x
            of_y = of_y * by_y
            if l1:
                of_x += slope * by_l1
                of_y -= slope * by_l1
            store_block(to_x, to_x_h, to_x_w, behind, columns, own, of_x)
            if sides == 2:
                store_block(to_y, to_y_h, to_y_w, behind, columns, own, of_y)
            if track:
                kept_x, kept_y = tl.where(own, of_x, 0.0), tl.where(own, of_y, 0.0)
                grad_x_sum += kept_x
                value_x_sum += kept_x * (u + v)
                if sides == 2:
                    grad_y_sum += kept_y
                    value_y_sum += kept_y * (u - v)
            maps = new_maps
        u, v = u_after, v_after

    if write_sums:
        slots = sums.to(tl.int64).to(tl.pointer_type(compute)) + unit.to(tl.int64) * _SUMS
        tl.store(slots, tl.sum(ssim_sum))
        if seed_dtype is not None:
            tl.store(slots + 1, tl.sum(seed_sum))
        if l1:
            tl.store(slots + 2, (tl.sum(l1_sum) * data_range).to(compute))
        if track:
            # u + v is twice the rescaled x, in units of data_range.
            tl.store(slots + 3, tl.sum(grad_x_sum))
            tl.store(slots + 4, (tl.sum(value_x_sum) * (0.5 * data_range)).to(compute))
            if sides == 2:
                tl.store(slots + 5, tl.sum(grad_y_sum))
                tl.store(slots + 6, (tl.sum(value_y_sum) * (0.5 * data_range)).to(compute))
