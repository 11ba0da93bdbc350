"""Gaussian window taps and the border rule that every backend shares."""

import math

KERNEL_TAPS = 11
"""Taps that the compiled kernels hold: smaller windows are padded with zeros to this length."""


def gaussian_taps(window_size: int, sigma: float) -> list[float]:
    """The ``window_size`` taps of a normalised Gaussian, in double precision (they sum to 1)."""
    radius = window_size // 2
    # Divided by sigma before it is squared, so that a tiny sigma gives a window of one pixel and no division by zero.
    distances = [(i - radius) / sigma for i in range(window_size)]
    taps = [math.exp(-0.5 * (distance * distance)) for distance in distances]
    total = sum(taps)
    return [tap / total for tap in taps]


def kernel_taps(window_size: int, sigma: float) -> list[float]:
    """The taps, padded with zeros on both sides to ``KERNEL_TAPS``."""
    margin = [0.0] * ((KERNEL_TAPS - window_size) // 2)
    return margin + gaussian_taps(window_size, sigma) + margin


def reflect_index(position: int, length: int) -> int:
    """The pixel at ``position`` of a line of ``length`` pixels that is mirrored, edge not repeated, without end."""
    if length == 1:
        return 0
    period = 2 * (length - 1)
    position %= period
    return position if position < length else period - position
