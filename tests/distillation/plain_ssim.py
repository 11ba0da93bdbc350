"""SSIM of feature maps by its definition, and psi, for the tests to compare with."""

import torch


def rescaled(x):
    low, high = x.amin((-1, -2), keepdim=True), x.amax((-1, -2), keepdim=True)
    return (x - low) / (high - low).clamp(min=1e-30)


def ssim_of_maps(x, y):
    """SSIM by its definition, window by window, over a mirrored border; in float64."""
    taps = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / 4.5)
    window = torch.outer(taps, taps) / taps.sum() ** 2

    def mirrored(size):
        position = torch.arange(-5, size + 5) % max(2 * size - 2, 1)
        return torch.minimum(position, (2 * size - 2 - position).clamp(min=0)) if size > 1 else position * 0

    def windows(v):
        v = v.double()[:, :, mirrored(v.shape[2])][:, :, :, mirrored(v.shape[3])]
        return v.unfold(2, 11, 1).unfold(3, 11, 1)

    wx, wy = windows(x), windows(y)
    mx, my = ((w * window).sum((-1, -2)) for w in (wx, wy))
    dx, dy = wx - mx[..., None, None], wy - my[..., None, None]
    vx, vy, cov = ((a * b * window).sum((-1, -2)) for a, b in ((dx, dx), (dy, dy), (dx, dy)))
    return (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
