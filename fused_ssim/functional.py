"""The public functions: what they mean, and the checks of their arguments."""

import math
from collections.abc import Iterable, Sequence

from torch import Tensor

from . import dispatch, reference
from .checks import check_inputs
from .options import make_options
from .reduction import LOSS_PIXEL, REDUCTIONS, SSIM_PIXEL, Pixel, map_of, reduce_levels, single

PYRAMID_REDUCTIONS = (*REDUCTIONS, "level")
NORMALIZATIONS = (None, "tensor", "sample", "channel")
Exponents = tuple[float, float, float]


def ssim(
    x: Tensor,
    y: Tensor,
    *,
    data_range: float = 1.0,
    window_size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    exponents: Exponents = (1.0, 1.0, 1.0),
    padding: str = "same",
    reduction: str = "mean",
    weight: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Structural similarity, ``luminance**alpha * contrast**beta * structure**gamma`` (Wang et al. 2004).

    Args:
        x, y: images or feature maps, (N, C, H, W) or (C, H, W), any strides, of one shape, device and dtype (float16,
            bfloat16, float32 or float64; 16-bit inputs are computed in float32). Both are differentiable.
        data_range: L, the span of the values (1 for [0, 1], 255 for 8-bit images); > 0.
        window_size: side of the Gaussian window in pixels, odd. Up to 11 in the kernels, above by the reference.
        sigma: standard deviation of the window in pixels; > 0.
        k1, k2: stabilisers, C1 = (k1 L)^2 and C2 = (k2 L)^2, C3 = C2 / 2; > 0.
        exponents: (alpha, beta, gamma) >= 0 of luminance, contrast and structure. Except for the exponents 0 and 1 a
            component below 1e-4 counts as 1e-4, with zero gradient (where beta == gamma: the product of contrast and
            structure), so a negative structure under a fractional power is no NaN. Within 1e-7 of 1 is 1.
        padding: "same" (zeros around), "reflect" (mirrored, edge not repeated, folded again where a side is shorter
            than the window) or "valid" (only whole windows: the map is smaller by window_size - 1).
        reduction: "mean" or "sum" (scalar), "sample" (mean of each sample, shape (N,)), "none" (the map).
        weight: weights of the pixels, broadcastable to the map. "mean" and "sample" divide by the sum of the weights
            (0 where that is 0), "none" gives the weighted map.
        backend: None chooses by device and availability (see :func:`fused_ssim.info`), and takes the reference inside
            torch.func transforms and forward-mode AD; "cuda", "triton", "cpu" or "reference" forces one.

    Returns:
        SSIM in [-1, 1], 1 for identical inputs. For 16-bit inputs scalars and (N,) are float32; a map keeps the dtype.

    Raises:
        ValueError, TypeError: an argument is outside what is said above; the message names it.
        RuntimeError: the forced backend is not available here; the message says why.

    Example:
        >>> x, y = torch.rand(2, 3, 64, 64, requires_grad=True), torch.rand(2, 3, 64, 64)
        >>> (1 - fused_ssim.ssim(x, y)).backward()
    """
    options = make_options(data_range, window_size, sigma, k1, k2, exponents, padding)
    return single(x, y, options, SSIM_PIXEL, reduction, weight, backend)


def ssim_loss(
    x: Tensor,
    y: Tensor,
    *,
    data_range: float = 1.0,
    window_size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    exponents: Exponents = (1.0, 1.0, 1.0),
    padding: str = "same",
    reduction: str = "mean",
    weight: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """``(1 - SSIM) / 2``, in [0, 1] (de Rijk et al. 2022, Eq. 4). Arguments, result and errors as in :func:`ssim`."""
    options = make_options(data_range, window_size, sigma, k1, k2, exponents, padding)
    return single(x, y, options, LOSS_PIXEL, reduction, weight, backend)


def l1_ssim_loss(
    x: Tensor,
    y: Tensor,
    *,
    ssim_weight: float = 0.2,
    data_range: float = 1.0,
    window_size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    exponents: Exponents = (1.0, 1.0, 1.0),
    padding: str = "same",
    reduction: str = "mean",
    weight: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """``(1 - w) * |x - y| + w * (1 - SSIM)`` with ``w = ssim_weight``: the photometric loss of 3-D Gaussian splatting.

    Both terms come from one pass (Kerbl et al. 2023, Eq. 7). With padding="valid" the L1 term is still the mean over
    all pixels and the SSIM term that over the map; "none" and ``weight`` then have no common shape and are refused.
    Other arguments, result and errors as in :func:`ssim`; ssim_weight in [0, 1].
    """
    if isinstance(ssim_weight, bool) or not isinstance(ssim_weight, (int, float)):
        raise TypeError(f"ssim_weight must be a number in [0, 1], got {type(ssim_weight).__name__}")
    if not 0.0 <= ssim_weight <= 1.0:
        raise ValueError(f"ssim_weight must be a number in [0, 1], got {ssim_weight}")
    options = make_options(data_range, window_size, sigma, k1, k2, exponents, padding)
    if padding == "valid" and (weight is not None or reduction == "none"):
        what = "weight" if weight is not None else "reduction='none'"
        raise ValueError(f"padding='valid' cannot be used with {what} here: the L1 and SSIM maps differ in size")
    w = float(ssim_weight)
    return single(x, y, options, Pixel(w, -w, 1.0 - w), reduction, weight, backend)


def ssim_components(
    x: Tensor,
    y: Tensor,
    *,
    data_range: float = 1.0,
    window_size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    exponents: Exponents = (1.0, 1.0, 1.0),
    padding: str = "same",
    reduction: str = "none",
    weight: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Luminance, contrast and structure, each raised to its exponent: three maps (or their reductions).

    With the default exponents their product is SSIM up to 1e-8 / C2 (the variance epsilon of docs/math.md). Arguments
    and errors as in :func:`ssim`.
    """
    alpha, beta, gamma = make_options(data_range, window_size, sigma, k1, k2, exponents, padding).exponents
    luminance, contrast, structure = (
        single(
            x,
            y,
            make_options(data_range, window_size, sigma, k1, k2, only, padding),
            SSIM_PIXEL,
            reduction,
            weight,
            backend,
        )
        for only in ((alpha, 0.0, 0.0), (0.0, beta, 0.0), (0.0, 0.0, gamma))
    )
    return luminance, contrast, structure


def pyramid_ssim_loss(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
    *,
    normalize: str | None = None,
    detach_range: bool = True,
    level_weights: Sequence[float] | None = None,
    data_range: float = 1.0,
    window_size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    exponents: Exponents = (1.0, 1.0, 1.0),
    padding: str = "same",
    reduction: str = "mean",
    weight: Sequence[Tensor] | None = None,
    backend: str | None = None,
) -> Tensor | list[Tensor]:
    """The distillation loss of de Rijk et al. (2022), Eq. 3-5: over FPN levels, the sum of the mean ``(1 - SSIM) / 2``.

    Args:
        xs, ys: one tensor per FPN level (student, teacher), each pair (N, C, H, W) as in :func:`ssim`.
        normalize: psi of the paper, min-max of x and of y, each on its own, to [0, 1]: None, or over the whole
            "tensor", each "sample", or each "channel" of each sample. A constant region becomes 0.
        detach_range: treat minimum and maximum as constants; False lets gradient through them.
        level_weights: a weight for each level; default 1.
        reduction: "mean" (scalar); "level" (the L means, weighted by level_weights, not yet summed); "sum"; "sample"
            (N,); "none" (a list of L maps).
        weight: a list of L weight tensors, see :func:`ssim`.

    Other arguments, result and errors as in :func:`ssim`.
    """
    options = make_options(data_range, window_size, sigma, k1, k2, exponents, padding)
    if isinstance(xs, Tensor) or isinstance(ys, Tensor):
        raise TypeError("xs and ys must be sequences of tensors, one per FPN level, got a single tensor")
    for name, given in (("xs", xs), ("ys", ys), ("weight", () if weight is None else weight)):
        if not isinstance(given, Iterable):
            raise TypeError(f"{name} must be a sequence of tensors, one per FPN level, got {type(given).__name__}")
    xs, ys = list(xs), list(ys)
    if len(xs) != len(ys) or not xs:
        raise ValueError(f"xs and ys must hold the same number (>= 1) of levels, got {len(xs)} and {len(ys)}")
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize must be one of {NORMALIZATIONS}, got {normalize!r}")
    factors = _level_factors(level_weights, len(xs))
    if isinstance(weight, Tensor):
        raise TypeError("weight must be a sequence of tensors, one per FPN level, got a single tensor")
    weights: list[Tensor | None] = [None] * len(xs) if weight is None else list(weight)
    if len(weights) != len(xs):
        raise ValueError(f"weight must hold one tensor for each of the {len(xs)} levels, got {len(weights)}")
    if weight is not None and any(w is None for w in weights):
        raise TypeError(f"weight must hold a tensor for each level, got None for level {weights.index(None)}")
    if reduction not in PYRAMID_REDUCTIONS:
        raise ValueError(f"reduction must be one of {PYRAMID_REDUCTIONS}, got {reduction!r}")
    levels = [
        check_inputs(x, y, w, options, f"xs[{i}]", f"ys[{i}]", f"weight[{i}]")
        for i, (x, y, w) in enumerate(zip(xs, ys, weights, strict=True))
    ]
    if reduction == "sample" and len({x.shape[0] for x, _, _ in levels}) != 1:
        counts = [x.shape[0] for x, _, _ in levels]
        raise ValueError(f"reduction='sample' needs the same number of samples in each level of xs, got {counts}")
    kinds = {(x.dtype, x.device) for x, _, _ in levels}
    if len(kinds) != 1:
        raise ValueError(f"the levels of xs must share one dtype and device, got {sorted(map(str, kinds))}")
    dtype = levels[0][0].dtype
    backend = dispatch.choose(backend, levels[0][0], options)
    shared_range = normalize == "tensor" and reduction == "sample" and not detach_range
    if normalize is not None and (reduction == "none" or shared_range):
        # The kernels normalise inside the reducing pass alone, and there save one gradient, to be scaled sample by
        # sample: not that of an extreme which several samples share.
        levels = [
            (reference.min_max(x, normalize, detach_range), reference.min_max(y, normalize, detach_range), weight)
            for x, y, weight in levels
        ]
        normalize = None
    if reduction == "none":
        maps = [
            map_of(*level, options, Pixel(0.5 * factor, -0.5 * factor), backend).to(dtype)
            for factor, level in zip(factors, levels, strict=True)
        ]
        return [result if x.dim() == 4 else result.squeeze(0) for result, x in zip(maps, xs, strict=True)]
    return reduce_levels(levels, options, LOSS_PIXEL, factors, reduction, normalize, detach_range, backend)


def _level_factors(level_weights: Sequence[float] | None, count: int) -> list[float]:
    if level_weights is None:
        return [1.0] * count
    try:
        factors = [float(factor) for factor in level_weights]
    except (TypeError, ValueError):
        raise TypeError(f"level_weights must be a sequence of numbers, got {level_weights!r}") from None
    if len(factors) != count:
        raise ValueError(f"level_weights must hold one number for each of the {count} levels, got {len(factors)}")
    if not all(abs(factor) < math.inf for factor in factors):
        raise ValueError(f"level_weights must be finite numbers, got {factors}")
    return factors
