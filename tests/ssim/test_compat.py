"""Drop-ins against the packages they stand for."""

import inspect
import warnings

import pytest
import torch
from judge import assert_close, gradients, pair

import fused_ssim
from fused_ssim.compat import pytorch_msssim as ours

theirs = pytest.importorskip("pytorch_msssim")
LIMIT = 1e-5  # that package's taps are float32

CASES = {
    "default": ((2, 3, 30, 41), {}),
    "range": ((2, 3, 30, 41), {"data_range": 1.0}),
    "samples": ((2, 3, 30, 41), {"size_average": False}),
    "window": ((2, 3, 30, 41), {"win_size": 7, "win_sigma": 1.0}),
    "large window": ((2, 3, 30, 41), {"win_size": 13}),
    "K": ((2, 3, 30, 41), {"K": (0.03, 0.1)}),
    "K of 0": ((2, 3, 30, 41), {"K": (0.0, 0.03)}),
    "nonnegative": ((2, 3, 30, 41), {"nonnegative_ssim": True, "size_average": False}),
    "volume": ((1, 2, 12, 13, 14), {}),
    "one row": ((2, 3, 1, 30, 41), {}),
    "short side": ((2, 3, 8, 30), {}),
}


def images(shape, options):
    scale = options.get("data_range", 255.0)
    x, y = pair(shape)
    if options.get("nonnegative_ssim"):
        y = 1 - y  # negative structure
    return scale * x, scale * y


@pytest.mark.parametrize("name", CASES)
def test_ssim(name):
    shape, options = CASES[name]
    x, y = images(shape, options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = gradients(theirs.ssim, x, y, **options)
        got = gradients(ours.ssim, x, y, **options)
    for g, w in zip(got, want, strict=True):
        assert_close(g, w, LIMIT, name)


def test_a_window_of_your_own():
    x, y = images((2, 3, 30, 41), {})
    window = torch.ones(3, 1, 1, 8) / 8  # even, so odd is demanded; then a box
    with pytest.raises(ValueError, match="odd"):
        ours.ssim(x, y, win=window)
    window = torch.ones(3, 1, 1, 9) / 9
    assert_close(ours.ssim(x, y, win=window), theirs.ssim(x, y, win=window), LIMIT, "value")


def test_module_and_signatures():
    x, y = images((2, 3, 30, 41), {})
    assert_close(ours.SSIM(win_size=9, channel=3)(x, y), theirs.SSIM(win_size=9, channel=3)(x, y), LIMIT, "value")
    for name in ("ssim", "SSIM"):
        mine, other = (inspect.signature(getattr(package, name)).parameters for package in (ours, theirs))
        assert [(p.name, p.default) for p in mine.values()] == [(p.name, p.default) for p in other.values()]


def test_a_short_side_warns():
    x, y = images((2, 3, 8, 30), {})
    with pytest.warns(UserWarning, match="8 pixels, fewer than the window"):
        ours.ssim(x, y)


def test_volumes_ignore_the_default_device():
    x, y = images((1, 2, 12, 13, 14), {})
    with torch.device("meta"):
        got = ours.ssim(x, y)
    assert torch.equal(got, ours.ssim(x, y))


def test_under_autocast_volumes_stay_float32():
    x, y = images((1, 2, 12, 13, 14), {})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ours.ssim(x, y)
    assert_close(got, ours.ssim(x, y), 1e-6, "value")


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_the_function_of_splatting_trainers(padding):
    x, y = pair((1, 3, 30, 41))
    x.requires_grad_()
    y.requires_grad_()
    value = fused_ssim.fused_ssim(x, y, padding=padding)
    value.backward()
    assert y.grad is None
    assert_close(value, fused_ssim.ssim(x, y, padding=padding), 1e-7, "value")
    assert_close(x.grad, gradients(fused_ssim.ssim, x, y, padding=padding)[1], 1e-5, "gradient")
    assert not fused_ssim.fused_ssim(x, y, padding=padding, train=False).requires_grad
