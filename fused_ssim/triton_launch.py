"""The operators of fused_ssim/ops.py by Triton: checks, the cut into units, launches. None waits for the device.

A launch takes up to LEVELS levels; a pyramid within that is one launch of the large kernel and a small one that adds
up the units' sums in a fixed order. Min-max rescaling takes two small launches before, and, where its range carries
gradient, a few operations of torch after.
"""

import contextlib
import struct
import threading
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from . import triton_kernels as kernels
from . import triton_tiles as tiles
from .triton_kernels import RADIUS, SUMS, Level, View
from .triton_math import PAIRED, PLAIN, SEPARATE
from .triton_reductions import (
    BLOCK,
    Gradient,
    Plane,
    Total,
    extremes_kernel,
    ranges_kernel,
    scale_kernel,
    values_kernel,
)
from .triton_start import start

LEVELS = 8  # a launch has room for so many
ENOUGH_UNITS = 1024  # that keep a large GPU busy
BAND_ROWS = 64  # fewest rows worth a unit of their own: it recomputes up to 20

_TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}

_interpreter = threading.Lock()


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(f"fused_ssim: {message}")


def _bits(value: float) -> int:
    """A double as an integer, which goes to a kernel whole."""
    return struct.unpack("q", struct.pack("d", value))[0]


def _view(t: Tensor | None) -> View:
    return View() if t is None else View(t.data_ptr(), *t.stride())


def _index(*tensors: Tensor | None) -> tl.dtype:
    """int32, unless offsets within a plane need more."""
    last = max(
        max((t.shape[2] - 1) * t.stride(2) + (t.shape[3] - 1) * t.stride(3), t.shape[2] * t.shape[3] + BLOCK)
        for t in tensors
        if t is not None
    )
    return tl.int64 if last >= 2**31 else tl.int32


@contextlib.contextmanager
def _on(device: torch.device) -> Iterator[None]:
    if device.type == "cpu":
        with _interpreter:  # it patches Triton's language while it runs
            yield
    else:
        with torch.cuda.device(device):
            yield


@cache
def _precision(device: torch.device) -> str:
    """How products of float32 are computed. Plain tf32 errs by 1e-3; three of them are as good as float32."""
    nvidia = device.type == "cuda" and torch.version.hip is None
    return "tf32x3" if nvidia and torch.cuda.get_device_capability(device)[0] >= 8 else "ieee"


def plan(planes: int, h: int, w: int, reach: int, columns: int) -> tuple[int, int]:
    """Column strips and row bands of each plane."""
    strips = tiles.strips_of(w, columns, reach)
    wanted = -(-ENOUGH_UNITS // (planes * strips))
    return strips, max(1, min(wanted, h // BAND_ROWS))


class _Definition:
    """What defines SSIM, as the kernels take it."""

    def __init__(
        self,
        taps: Sequence[float],
        exponents: Sequence[float],
        c1: float,
        c2: float,
        data_range: float,
        padding: str,
        window_size: int,
    ) -> None:
        _require(len(taps) == kernels.TAPS and len(exponents) == 3, "want 11 taps and 3 exponents")
        _require(
            1 <= window_size <= kernels.TAPS and window_size % 2 == 1,
            f"the kernels hold odd windows up to 11, got {window_size}",
        )
        alpha, beta, gamma = exponents
        self.taps = tuple(map(_bits, taps))
        self.constants = tuple(map(_bits, (2 * c1, 2 * c2, data_range)))  # a and b of Eq. (7) are doubled
        self.data_range = data_range
        self.margin = window_size // 2 if padding == "valid" else 0
        form = SEPARATE if beta != gamma else PLAIN if alpha == 1 and beta == 1 else PAIRED
        self.options = {
            "form": form.value,
            "exponents": (float(alpha), float(beta), float(gamma)),
            "padding_reflect": padding == "reflect",
            "margin": self.margin,
        }

    def check(self, x: Tensor, y: Tensor) -> None:
        _require(x.dim() == 4 and y.dim() == 4, f"want (N, C, H, W), got {x.dim()} and {y.dim()} axes")
        _require(x.shape == y.shape and x.numel() > 0, "x and y must have one shape, without zeros")
        _require(x.dtype == y.dtype and x.dtype in _TYPES, f"x and y must have one floating dtype, got {x.dtype}")
        _require(x.device == y.device, "x and y must be on one device")
        _require(min(x.shape[2:]) > 2 * self.margin, "padding='valid' needs H and W of at least the window")

    def check_map(self, t: Tensor, x: Tensor, name: str) -> None:
        n, c, h, w = x.shape
        shape = (n, c, h - 2 * self.margin, w - 2 * self.margin)
        _require(tuple(t.shape) == shape and t.device == x.device, f"{name} must have the shape of the map, {shape}")


def _compute(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class _Launch:
    """The large kernel on some levels of one dtype and device, cut into strips of ``tile``."""

    sums: Tensor
    """(units, SUMS), where the values of the units are wanted."""

    def __init__(
        self, definition: _Definition, x: Sequence[Tensor], y: Sequence[Tensor], sides: int, tile: tiles.Tile
    ) -> None:
        self.definition, self.x, self.y, self.sides, self.tile = definition, x, y, sides, tile
        reach = _reach(sides)
        self.plans = [plan(t.shape[0] * t.shape[1], t.shape[2], t.shape[3], reach, tile.columns) for t in x]
        self.units = [t.shape[0] * t.shape[1] * s * b for t, (s, b) in zip(x, self.plans, strict=True)]
        self.firsts = _running(self.units)

    def run(
        self,
        out_x: Sequence[Tensor] | None,
        out_y: Sequence[Tensor] | None,
        seeds: Sequence[Tensor] | None = None,
        by_ssim: Sequence[float] = (1.0,),
        by_l1: Sequence[float] = (0.0,),
        l1: bool = False,
        ranges: "_Ranges | None" = None,
        track: bool = False,
        write_sums: bool = False,
    ) -> None:
        x, y = self.x, self.y
        if write_sums:
            self.sums = x[0].new_empty((sum(self.units), SUMS), dtype=_compute(x[0].dtype))
        levels = tuple(
            Level(
                _view(x[i]),
                _view(y[i]),
                _view(seeds[i] if seeds else None),
                _view(out_x[i] if out_x else None),
                _view(out_y[i] if out_y else None),
                *x[i].shape[1:],
                *self.plans[i],
                self.firsts[i],
                ranges.firsts[i] if ranges else 0,
                ranges.planes[i] if ranges else 1,
                _bits(by_ssim[i]),
                _bits(by_l1[i]),
            )
            for i in range(len(x))
        )
        with _on(x[0].device):
            start(
                kernels.ssim_kernel,
                (sum(self.units),),
                levels,
                self.definition.taps,
                self.definition.constants,
                ranges.table.data_ptr() if ranges else 0,
                self.sums.data_ptr() if write_sums else 0,
                dtype=_TYPES[x[0].dtype],
                seed_dtype=_TYPES[seeds[0].dtype] if seeds else None,
                compute=_TYPES[_compute(x[0].dtype)],
                index=_index(*x, *y, *(seeds or ()), *(out_x or ()), *(out_y or ())),
                **self.definition.options,
                sides=self.sides,
                write_map=self.sides == 0 and bool(out_x),
                write_sums=write_sums,
                l1=l1,
                normalize=ranges is not None,
                track=track,
                precision=_precision(x[0].device) if x[0].dtype != torch.float64 else "ieee",
                COLUMNS=self.tile.columns,
                options={"num_warps": self.tile.warps, "num_stages": self.tile.stages},
            )


def _holds_wide(x: Tensor) -> bool:
    """Whether registers hold a strip of 64 columns: not float64, and not where products are not those of tf32."""
    return x.dtype != torch.float64 and (x.device.type == "cpu" or _precision(x.device) == "tf32x3")


def _reach(sides: int) -> int:
    """How far a gradient, or SSIM alone, sees."""
    return 2 * RADIUS if sides else RADIUS


def _launch(
    definition: _Definition, x: Sequence[Tensor], y: Sequence[Tensor], sides: int, *arguments: Any, **options: Any
) -> _Launch:
    """A launch that has been made, with the tile that suits it; arguments are those of ``run``."""

    def run(tile: tiles.Tile) -> _Launch:
        launch = _Launch(definition, x, y, sides, tile)
        launch.run(*arguments, **options)
        return launch

    shapes = [tuple(t.shape) for t in x]
    offered = tiles.OFFERED if _holds_wide(x[0]) else tiles.NARROW_ONES
    usual = tiles.default(shapes, _reach(sides), wide=sides > 0 and tiles.WIDE in offered)
    layouts = tuple((t.shape, t.stride()) for t in x)
    kind = (x[0].dtype, sides, *definition.options.values(), layouts)
    return tiles.launched(run, usual, offered, x[0].device, kind)


def _running(counts: Sequence[int]) -> list[int]:
    """The sum of all counts before each."""
    return [sum(counts[:i]) for i in range(len(counts))]


class _Ranges:
    """Low, high and scale of what is rescaled by min-max, found on the device: ``table`` (ranges, 2, 3)."""

    def __init__(self, x: Sequence[Tensor], y: Sequence[Tensor], normalize: str, data_range: float) -> None:
        n_c = [t.shape[0] * t.shape[1] for t in x]
        self.planes = [
            {"tensor": count, "sample": t.shape[1], "channel": 1}[normalize] for t, count in zip(x, n_c, strict=True)
        ]
        counts = [count // planes for count, planes in zip(n_c, self.planes, strict=True)]
        self.counts, self.firsts = counts, _running(counts)
        compute = _compute(x[0].dtype)
        extremes = x[0].new_empty((sum(n_c), 2, 2), dtype=compute)
        self.table = x[0].new_empty((sum(counts), 2, 3), dtype=compute)
        levels = tuple(
            Plane(_view(a), _view(b), *a.shape[1:], first, first_range, planes)
            for a, b, first, first_range, planes in zip(x, y, _running(n_c), self.firsts, self.planes, strict=True)
        )
        with _on(x[0].device):
            start(
                extremes_kernel,
                (sum(n_c), 2),
                levels,
                extremes.data_ptr(),
                dtype=_TYPES[x[0].dtype],
                compute=_TYPES[compute],
                index=_index(*x, *y),
            )
            start(
                ranges_kernel,
                (sum(counts), 2),
                levels,
                extremes.data_ptr(),
                self.table.data_ptr(),
                _bits(data_range),
                compute=_TYPES[compute],
                tiny=torch.finfo(compute).tiny,
            )

    def of_level(self, i: int) -> Tensor:
        return self.table[self.firsts[i] : self.firsts[i] + self.counts[i]]


def _settle_extremes(grad: Tensor, source: Tensor, ranges: Tensor, sums: Tensor, axes: tuple[int, ...]) -> None:
    """Adds what the extremes receive through psi = (x - min) / (max - min), shared evenly by the pixels that tie.

    dL/dmax = -sum(dL/dx psi), dL/dmin = sum(dL/dx (psi - 1)); ranges (R, 3), sums (R, units, 2) of dL/dx and
    dL/dx psi, both in the order of the planes.
    """
    shape = [1 if axis in axes else source.shape[axis] for axis in range(4)]
    of_grad, of_value = sums.sum(1, dtype=torch.float64).unbind(1)
    source = source.to(ranges.dtype)
    is_low, is_high = (source == ranges[:, i].reshape(shape) for i in (0, 1))
    at_low = (of_value - of_grad).reshape(shape) / is_low.sum(axes, keepdim=True)
    at_high = -of_value.reshape(shape) / is_high.sum(axes, keepdim=True)
    at_low, at_high = at_low.to(ranges.dtype), at_high.to(ranges.dtype)
    grad.add_(torch.where(is_low, at_low, 0.0) + torch.where(is_high, at_high, 0.0))


_RANGE_AXES = {"tensor": (0, 1, 2, 3), "sample": (1, 2, 3), "channel": (2, 3)}


def ssim_sums(
    x: list[Tensor],
    y: list[Tensor],
    weight: list[Tensor],
    offset: list[float],
    slope: list[float],
    l1: list[float],
    grad_scale: list[float],
    taps: list[float],
    exponents: list[float],
    c1: float,
    c2: float,
    data_range: float,
    padding: str,
    window_size: int,
    normalize: str,
    detach_range: bool,
    per_sample: bool,
    grad_x: bool,
    grad_y: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """See fused_ssim/ops.py."""
    count = len(x)
    lists: tuple[list[Any], ...] = (y, offset, slope, l1, grad_scale)
    _require(
        count > 0 and all(len(entries) == count for entries in lists) and len(weight) in (0, count),
        "every list must have one entry for each level",
    )
    definition = _Definition(taps, exponents, c1, c2, data_range, padding, window_size)
    for i in range(count):
        definition.check(x[i], y[i])
        _require(x[i].dtype == x[0].dtype, "the levels must share one dtype")
        _require(not per_sample or x[i].shape[0] == x[0].shape[0], "the levels must have equally many samples")
        if weight:
            definition.check_map(weight[i], x[i], "weight")
    samples = x[0].shape[0] if per_sample else 1
    values = x[0].new_empty((count, samples), dtype=_compute(x[0].dtype))
    grads_x = [torch.empty_like(t) for t in x] if grad_x else []
    grads_y = [torch.empty_like(t) for t in y] if grad_y else []
    for begin in range(0, count, LEVELS):
        part = slice(begin, begin + LEVELS)
        _sums_of_some(
            definition,
            x[part],
            y[part],
            weight[part],
            offset[part],
            slope[part],
            l1[part],
            grad_scale[part],
            normalize,
            detach_range,
            values[part],
            grads_x[part],
            grads_y[part],
        )
    return values if per_sample else values.squeeze(1), grads_x, grads_y


def _sums_of_some(
    definition: _Definition,
    x: Sequence[Tensor],
    y: Sequence[Tensor],
    weight: Sequence[Tensor],
    offset: Sequence[float],
    slope: Sequence[float],
    l1: Sequence[float],
    grad_scale: Sequence[float],
    normalize: str,
    detach_range: bool,
    values: Tensor,
    grads_x: Sequence[Tensor],
    grads_y: Sequence[Tensor],
) -> None:
    """At most LEVELS levels: fills values (L, samples) and the gradients that there are."""
    if grads_y and not grads_x:  # SSIM is symmetric: the kernel knows a gradient of x, or of both
        x, y, grads_x, grads_y = y, x, grads_y, grads_x
    sides = bool(grads_x) + bool(grads_y)
    ranges = _Ranges(x, y, normalize, definition.data_range) if normalize else None
    track = ranges is not None and not detach_range and sides > 0
    has_l1 = any(l1)
    launch = _launch(
        definition,
        x,
        y,
        sides,
        grads_x,
        grads_y,
        weight or None,
        [a * b for a, b in zip(slope, grad_scale, strict=True)],
        [a * b for a, b in zip(l1, grad_scale, strict=True)],
        has_l1,
        ranges,
        track,
        write_sums=True,
    )
    sums = launch.sums
    samples = values.shape[1]
    totals = []
    for i, t in enumerate(x):
        n, c, h, w = t.shape
        pixels = n * c * (h - 2 * definition.margin) * (w - 2 * definition.margin)
        scalars = _bits(offset[i]), _bits(slope[i]), _bits(l1[i])
        totals.append(Total(i, launch.firsts[i], launch.units[i] // samples, *scalars, pixels // samples))
    with _on(values.device):
        start(
            values_kernel,
            (len(x) * samples,),
            tuple(totals),
            sums.data_ptr(),
            values.data_ptr(),
            samples,
            compute=_TYPES[values.dtype],
            seeds=bool(weight),
            l1=has_l1,
        )
    if not track or ranges is None:
        return
    for side, (grads, sources) in enumerate(((grads_x, x), (grads_y, y))):
        for i, grad in enumerate(grads):
            level = sums[launch.firsts[i] : launch.firsts[i] + launch.units[i]]
            level = level[:, 3 + 2 * side : 5 + 2 * side].reshape(ranges.counts[i], -1, 2)
            _settle_extremes(grad, sources[i], ranges.of_level(i)[:, side], level, _RANGE_AXES[normalize])


def ssim_map(
    x: Tensor,
    y: Tensor,
    taps: list[float],
    exponents: list[float],
    c1: float,
    c2: float,
    data_range: float,
    padding: str,
    window_size: int,
) -> Tensor:
    """See fused_ssim/ops.py."""
    definition = _Definition(taps, exponents, c1, c2, data_range, padding, window_size)
    definition.check(x, y)
    n, c, h, w = x.shape
    result = x.new_empty((n, c, h - 2 * definition.margin, w - 2 * definition.margin))
    _launch(definition, [x], [y], 0, [result], None)
    return result


def ssim_map_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    taps: list[float],
    exponents: list[float],
    c1: float,
    c2: float,
    data_range: float,
    padding: str,
    window_size: int,
    grad_x: bool,
    grad_y: bool,
) -> tuple[Tensor, Tensor]:
    """See fused_ssim/ops.py."""
    definition = _Definition(taps, exponents, c1, c2, data_range, padding, window_size)
    definition.check(x, y)
    definition.check_map(grad, x, "grad")
    to_x = torch.empty_like(x) if grad_x else x.new_empty((0,))
    to_y = torch.empty_like(y) if grad_y else y.new_empty((0,))
    if grad_x:
        _launch(definition, [x], [y], 1 + grad_y, [to_x], [to_y] if grad_y else None, [grad])
    elif grad_y:
        _launch(definition, [y], [x], 1, [to_y], None, [grad])
    return to_x, to_y


def scale_(grads: list[Tensor], factor: Tensor, divisor: list[float]) -> None:
    """See fused_ssim/ops.py: grads[i] *= factor[i] / divisor[i], where factor is (L,) or (L, N)."""
    _require(
        factor.dim() in (1, 2) and factor.shape[0] == len(grads) == len(divisor),
        "factor and divisor must have one entry for each gradient",
    )
    for begin in range(0, len(grads), LEVELS):
        some = grads[begin : begin + LEVELS]
        shapes = [grad.shape for grad in some]
        blocks = [-(-h * w // BLOCK) for _, _, h, w in shapes]
        units = [n * c * count for (n, c, _, _), count in zip(shapes, blocks, strict=True)]
        entries = zip(some, blocks, _running(units), divisor[begin:], strict=False)
        with _on(factor.device):
            start(
                scale_kernel,
                (sum(units),),
                tuple(Gradient(_view(g), *g.shape[1:], count, first, _bits(d)) for g, count, first, d in entries),
                factor[begin:].data_ptr(),
                factor.stride(0),
                factor.stride(1) if factor.dim() == 2 else 0,
                dtype=_TYPES[some[0].dtype],
                factor_dtype=_TYPES[factor.dtype],
                compute=_TYPES[_compute(some[0].dtype)],
                index=_index(*some),
            )
