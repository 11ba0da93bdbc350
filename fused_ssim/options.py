"""What defines one SSIM: the options that every backend receives, and their checks."""

import math
from typing import NamedTuple

VARIANCE_EPSILON = 1e-8
"""Added to variances and covariance (in units of data_range squared) where contrast and structure are taken apart.

The derivative of a standard deviation is infinite on a flat patch; this makes it finite, and identical inputs still
give 1.
"""

POWER_FLOOR = 1e-4
"""The least base of a power other than 0 and 1: smaller (or negative) components count as this, with zero gradient."""

PADDINGS = ("same", "reflect", "valid")


class SSIMOptions(NamedTuple):
    """One definition of SSIM. See :func:`fused_ssim.ssim` for the meaning and range of each field."""

    data_range: float = 1.0
    window_size: int = 11
    sigma: float = 1.5
    k1: float = 0.01
    k2: float = 0.03
    exponents: tuple[float, float, float] = (1.0, 1.0, 1.0)
    padding: str = "same"


def _positive(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number > 0, got {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number > 0, got {value}")
    return float(value)


def make_options(
    data_range: float,
    window_size: int,
    sigma: float,
    k1: float,
    k2: float,
    exponents: tuple[float, float, float],
    padding: str,
) -> SSIMOptions:
    """Check every option and return them together; raises ValueError or TypeError naming the argument."""
    if isinstance(window_size, bool) or not isinstance(window_size, int):
        raise TypeError(f"window_size must be an odd int >= 1, got {type(window_size).__name__}")
    if window_size < 1 or window_size % 2 == 0:
        raise ValueError(f"window_size must be an odd int >= 1, got {window_size}")
    if padding not in PADDINGS:
        raise ValueError(f"padding must be one of {PADDINGS}, got {padding!r}")
    if not isinstance(exponents, (tuple, list)) or len(exponents) != 3:
        raise ValueError(f"exponents must be three numbers (alpha, beta, gamma), got {exponents!r}")
    for exponent in exponents:
        if isinstance(exponent, bool) or not isinstance(exponent, (int, float)):
            raise TypeError(f"exponents must be three numbers >= 0, got {exponents!r}")
        if not 0 <= exponent < math.inf:
            raise ValueError(f"exponents must be finite numbers >= 0, got {exponents!r}")
    # float32 does not tell such a one from 1, for which there is no floor: so no backend does.
    alpha, beta, gamma = (1.0 if abs(e - 1.0) < 1e-7 else float(e) for e in exponents)
    return SSIMOptions(
        _positive("data_range", data_range),
        window_size,
        _positive("sigma", sigma),
        _positive("k1", k1),
        _positive("k2", k2),
        (alpha, beta, gamma),
        padding,
    )
