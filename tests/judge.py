"""The judge of every backend: float64 autograd of ``fused_ssim.reference``, and how close a result must come to it.

Reductions, weights and the L1 term are written out here once more, so that a mistake in ``fused_ssim/reduction.py``
cannot judge itself.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fused_ssim import reference
from fused_ssim.options import SSIMOptions


class Tolerance(NamedTuple):
    """Largest accepted relative L2 error of a value (or map) and of a gradient."""

    value: float
    gradient: float


TOLERANCES = {
    # 24-bit significand; variances are differences of moments, which costs the rest of 1e-5.
    torch.float32: Tolerance(1e-5, 1e-5),
    # 53 bits, with the same loss by cancellation.
    torch.float64: Tolerance(1e-12, 1e-12),
    # Computed in float32; the result is rounded to 11 bits, a saved gradient once more when it is scaled.
    torch.float16: Tolerance(2.0**-11, 2.0**-10),
    # The same with 8 bits.
    torch.bfloat16: Tolerance(2.0**-8, 2.0**-7),
}
"""By the dtype of the inputs. CI never loosens them."""

SEPARATE_FLOAT32 = Tolerance(2e-5, 5e-5)
"""float32 where contrast and structure are taken apart or raised to a fraction: d sqrt(v) = dv / 2 sqrt(v) and
d v^e = e v^(e-1) dv amplify the rounding of small variances and of components near the floor."""

FLAT_FLOAT32 = Tolerance(5e-3, 5e-3)
"""float32 where every window sees one value only (a window of one pixel, a mirrored 1 x 1 map): variances are 0, and
what is left of E[u^2] - E[u]^2 after rounding (1e-7) stands against C2 (9e-4), and under a square root against 1e-8."""


def tolerance(
    dtype: torch.dtype, exponents: tuple[float, float, float] = (1.0, 1.0, 1.0), flat: bool = False
) -> Tolerance:
    """The accepted error for inputs of ``dtype`` under ``exponents``; ``flat``: every window sees one value only."""
    if flat and dtype == torch.float32:
        return FLAT_FLOAT32
    smooth = exponents[1] == exponents[2] and set(exponents) <= {0.0, 1.0}
    return TOLERANCES[dtype] if smooth or dtype != torch.float32 else SEPARATE_FLOAT32


def window_options(padding: str, *shapes: Sequence[int]) -> dict[str, str | int]:
    """``padding``, and under "valid" the largest window that fits into every shape (..., H, W).

    A window of three pixels at least: with one, variances are nothing but rounding.
    """
    if padding != "valid":
        return {"padding": padding}
    side = min(min(shape[-2:]) for shape in shapes)
    if side < 3:
        raise ValueError(f"no window of three pixels fits into {shapes}")
    return {"padding": padding, "window_size": min(11, side - 1 + side % 2)}


def relative_l2(result: Tensor, expected: Tensor) -> float:
    """``|result - expected| / |expected|`` over all elements; inf if anything is not finite.

    Absolute where ``|expected|`` is below 1e-15: that is a zero with float64 rounding.
    """
    if result.shape != expected.shape:
        raise AssertionError(f"shape {tuple(result.shape)}, expected {tuple(expected.shape)}")
    result, expected = result.detach().double(), expected.detach().double()
    error, scale = (result - expected).norm().item(), expected.norm().item()
    if not (error < float("inf") and scale < float("inf")):
        return float("inf")
    return error / scale if scale > 1e-15 else error


def assert_close(result: Tensor, expected: Tensor, limit: float, what: str) -> None:
    """Fail, saying which quantity is off by how much, unless the relative L2 error is within ``limit``."""
    error = relative_l2(result, expected)
    assert error <= limit, f"{what}: relative L2 error {error:.3g}, accepted {limit:.3g}"


def pair(shape: Sequence[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two unequal, correlated tensors with values in [0, 1]; some structure values come out negative."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(*shape, generator=generator, dtype=torch.float64)
    y = 0.6 * x + 0.4 * torch.rand(*shape, generator=generator, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


def reduce(values: Tensor, reduction: str, weight: Tensor | None) -> Tensor:
    """The reduction of a map (N, C, H, W) as the documentation of ``fused_ssim.ssim`` words it."""
    if weight is not None:
        weight = weight.double().expand_as(values)
        values = values * weight
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    axes = (1, 2, 3) if reduction == "sample" else (0, 1, 2, 3)
    if weight is None:
        return values.mean(axes)
    total = weight.sum(axes)
    return torch.where(total == 0, 0.0, values.sum(axes) / torch.where(total == 0, 1.0, total))


def ssim(x: Tensor, y: Tensor, *, reduction: str = "mean", weight: Tensor | None = None, **options: object) -> Tensor:
    """What ``fused_ssim.ssim`` must give for float64 x and y."""
    return reduce(reference.ssim_map(x, y, SSIMOptions(**options)), reduction, weight)


def ssim_loss(
    x: Tensor, y: Tensor, *, reduction: str = "mean", weight: Tensor | None = None, **options: object
) -> Tensor:
    """What ``fused_ssim.ssim_loss`` must give for float64 x and y."""
    return reduce(0.5 - 0.5 * reference.ssim_map(x, y, SSIMOptions(**options)), reduction, weight)


def gradients(
    function: Callable[..., Tensor], x: Tensor, y: Tensor, upstream: Tensor | None = None, **options: object
) -> tuple[Tensor, Tensor, Tensor]:
    """Value and gradients by x and y of ``function(x, y, **options)``, contracted with ``upstream`` (ones if None)."""
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    value = function(x, y, **options)
    upstream = torch.ones_like(value) if upstream is None else upstream.to(value.dtype)
    return value.detach(), *torch.autograd.grad(value, (x, y), upstream)


def judged(
    function: Callable[..., Tensor], x: Tensor, y: Tensor, upstream: Tensor | None = None, **options: object
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`gradients` of a function of this file on x and y in float64."""
    return gradients(function, x.double(), y.double(), upstream, **options)
