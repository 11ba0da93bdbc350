"""Drop-ins against the packages they stand for."""

import inspect
import warnings

import pytest
import torch
from judge import assert_close, gradients, pair

import fused_ssim
from fused_ssim.compat import pytorch_msssim as ours
from fused_ssim.window import gaussian_taps

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


SCALES = {
    "five scales": ((1, 2, 161, 170), {}),
    "small window": ((2, 3, 70, 81), {"win_size": 5}),
    "samples": ((3, 1, 65, 65), {"win_size": 5, "size_average": False, "data_range": 1.0}),
    "weights": ((2, 3, 66, 71), {"win_size": 5, "weights": [0.2, 0.5, 0.3], "K": (0.02, 0.05)}),
    "one scale": ((2, 3, 66, 71), {"win_size": 5, "weights": [1.0]}),
    "six scales": ((1, 1, 66, 71), {"win_size": 5, "weights": [0.1, 0.2, 0.2, 0.2, 0.2, 0.1]}),
    "large window": ((1, 1, 193, 200), {"win_size": 13}),
    "volume": ((1, 2, 34, 35, 36), {"win_size": 3}),
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", SCALES)
def test_ms_ssim(name, dtype):
    """Against the original in float64, with taps in float64: with its own it is off by 1e-5."""
    shape, options = SCALES[name]
    x, y = images(shape, options)
    taps = torch.tensor(gaussian_taps(options.get("win_size", 11), 1.5), dtype=torch.float64)
    window = taps.expand(shape[1], *[1] * (len(shape) - 2), -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = gradients(theirs.ms_ssim, x.double(), y.double(), win=window, **options)
        got = gradients(ours.ms_ssim, x.to(dtype), y.to(dtype), **options)
    for g, w in zip(got, want, strict=True):
        assert_close(g, w, 1e-12 if dtype == torch.float64 else 2e-5, name)


def test_ms_ssim_of_negative_structure():
    """Where a scale counts as 0, so does the image; the original's gradient is NaN there."""
    x, y = pair((2, 1, 40, 40))
    y = torch.stack([1 - x[0], y[1]])
    options = {"data_range": 1.0, "win_size": 3, "size_average": False}
    value, by_x, _ = gradients(ours.ms_ssim, x, y, **options)
    assert_close(value, theirs.ms_ssim(x, y, **options), LIMIT, "value")
    assert value[0] == 0 and value[1] > 0
    assert not by_x[0].any() and torch.isfinite(by_x).all() and by_x[1].any()


def test_ms_ssim_keeps_a_nan():
    x, y = pair((2, 1, 40, 40))
    x[0, 0, 20, 20] = float("nan")
    value = ours.ms_ssim(x, y, data_range=1.0, win_size=3, size_average=False)
    assert value.isnan().tolist() == [True, False]


def test_ms_ssim_refuses_images_too_small_for_its_scales():
    x, y = pair((1, 1, 160, 200))
    with pytest.raises(ValueError, match=r"larger than 160 pixels for 5 scales with win_size=11, got \(1, 1, 160"):
        ours.ms_ssim(x, y)
    with pytest.raises(ValueError, match="weights must hold a number for each scale"):
        ours.ms_ssim(x, y, weights=[])


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
    options = {"win_size": 3, "weights": [0.4, 0.6], "channel": 3}
    x, y = images((2, 3, 40, 41), {})
    assert_close(ours.MS_SSIM(**options)(x, y), theirs.MS_SSIM(**options)(x, y), LIMIT, "value")
    for name in ("ssim", "SSIM", "ms_ssim", "MS_SSIM"):
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
