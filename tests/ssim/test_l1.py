"""l1_ssim_loss: both terms of the photometric loss, from one pass."""

import emulated
import judge
import pytest
import torch
from judge import assert_close, gradients, judged, pair, tolerance

import fused_ssim

LIMIT = tolerance(torch.float32)


def l1_ssim(x, y, *, ssim_weight=0.2, reduction="mean", weight=None, padding="same", **options):
    """(1 - w) mean|x - y| + w (1 - mean SSIM), written out."""
    ssim = judge.reference.ssim_map(x, y, judge.SSIMOptions(padding=padding, **options))
    if padding == "valid":
        parts = [judge.reduce(t, reduction, None) for t in ((x - y).abs(), 1 - ssim)]
        return (1 - ssim_weight) * parts[0] + ssim_weight * parts[1]
    return judge.reduce((1 - ssim_weight) * (x - y).abs() + ssim_weight * (1 - ssim), reduction, weight)


def compare(backend, shape, limit=LIMIT, scale=1.0, **options):
    x, y = (scale * t for t in pair(shape))
    want = judged(l1_ssim, x, y, **options)
    x, y = x.to(backend.device), y.to(backend.device)
    got = gradients(fused_ssim.l1_ssim_loss, x, y, backend=backend.name, **options)
    for g, w, what in zip(got, want, ("value", "gradient by x", "gradient by y"), strict=True):
        assert_close(g.cpu(), w, limit.gradient, what)


@pytest.mark.parametrize("padding", ["same", "reflect", "valid"])
@pytest.mark.parametrize(
    "shape", [(1, 1, 6, 366), (1, 1, 70, 368), (1, 3, 40, 48), (1, 3, 21, 37), (2, 24, 7, 10), (2, 12, 6, 3)], ids=str
)
def test_training(backend, shape, padding):
    """The gradient by x alone; each pixel of strips and bands counts once, and at a mirror no less."""
    x, y = pair(shape)
    x.requires_grad_()
    options = judge.window_options(padding, shape)
    want = l1_ssim(x.double(), y.double(), **options)
    emulated.forget(backend.name)
    value = fused_ssim.l1_ssim_loss(x.to(backend.device), y.to(backend.device), backend=backend.name, **options)
    emulated.check_served(backend.name, padding)
    assert_close(value.cpu(), want, LIMIT.value, "value")
    wide = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(l1_ssim(wide, y.double(), **options), wide)
    assert_close(torch.autograd.grad(value, x)[0].cpu(), expected, LIMIT.gradient, "gradient by x")


@pytest.mark.parametrize("shape", [(1, 1, 6, 366), (1, 1, 70, 23), (2, 24, 7, 10)], ids=str)
def test_weights_of_maps_that_are_cut_or_beside_each_other(backend, shape):
    compare(backend, shape, weight=torch.rand(shape, generator=torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("ssim_weight", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "sample", "none"])
@pytest.mark.parametrize("padding", ["same", "reflect", "valid"])
def test_values_and_gradients(backend, padding, reduction, ssim_weight):
    options = {"padding": padding, "reduction": reduction, "ssim_weight": ssim_weight}
    if padding == "valid" and reduction == "none":
        x, y = pair((2, 3, 13, 19))
        with pytest.raises(ValueError, match=r"padding.*valid.*reduction"):
            fused_ssim.l1_ssim_loss(x, y, backend=backend.name, **options)
        return
    compare(backend, (2, 3, 13, 19), **options)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 3, 3, 40), (1, 1, 263, 331)], ids=str)
@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_shapes_and_ranges(backend, shape, data_range):
    compare(backend, shape, scale=data_range, data_range=data_range)


@pytest.mark.parametrize("reduction", ["mean", "sum", "sample", "none"])
def test_weights(backend, reduction):
    weight = torch.rand(2, 1, 13, 19, generator=torch.Generator().manual_seed(0))
    x, y = pair((2, 3, 13, 19))
    want = judged(l1_ssim, x, y, weight=weight, reduction=reduction)
    x, y, weight = (t.to(backend.device) for t in (x, y, weight))
    got = gradients(fused_ssim.l1_ssim_loss, x, y, weight=weight, reduction=reduction, backend=backend.name)
    for g, w, what in zip(got, want, ("value", "gradient by x", "gradient by y"), strict=True):
        assert_close(g.cpu(), w, LIMIT.gradient, what)


def test_equal_pixels_have_no_l1_gradient(backend):
    x = pair((1, 1, 9, 9))[0].to(backend.device)
    _, grad_x, grad_y = gradients(fused_ssim.l1_ssim_loss, x, x.clone(), ssim_weight=0.0, backend=backend.name)
    assert not grad_x.any() and not grad_y.any()


def test_is_what_splatting_trainers_write(backend):
    x, y = (t.to(backend.device) for t in pair((1, 3, 40, 50)))
    want = 0.8 * torch.nn.functional.l1_loss(x, y) + 0.2 * (1 - fused_ssim.fused_ssim(x, y))
    assert_close(fused_ssim.l1_ssim_loss(x, y, backend=backend.name), want, LIMIT.value, "value")
