"""NaN and Inf, flat patches, poor conditioning, poisoned outputs."""

import pytest
import torch
from judge import assert_close, gradients, judged, pair, relative_l2
from judge import ssim as judge_ssim

import fused_ssim

EXPONENTS = [(1.0, 1.0, 1.0), (0.5, 0.7, 0.7), (1.0, 0.3, 1.2), (0.5, 0.0, 0.0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("exponents", EXPONENTS, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("padding", ["same", "reflect", "valid"])
def test_nan_and_inf_come_out_as_nan(backend, padding, bad, exponents, dtype):
    x, y = (t.to(backend.device) for t in pair((1, 2, 24, 40), dtype))
    x[0, 0, 12, 20] = bad
    options = {"padding": padding, "exponents": exponents, "backend": backend.name}
    values = fused_ssim.ssim(x, y, reduction="none", **options)
    centre = values[0, 0, 12 - 5 * (padding == "valid"), 20 - 5 * (padding == "valid")]
    assert not centre.isfinite()
    assert values[0, 1].isfinite().all()  # another channel
    assert values[0, 0, 0, 0].isfinite() and values[0, 0, -1, -1].isfinite()  # out of reach
    for reduction in ("mean", "sum"):
        value, grad_x, grad_y = gradients(fused_ssim.ssim, x, y, reduction=reduction, **options)
        assert not value.isfinite()
        # Also beside the pixel, where nothing but the filtered partials has met it.
        assert not any(grad[0, 0, i, j].isfinite() for grad in (grad_x, grad_y) for i, j in ((12, 20), (16, 24)))
        assert grad_x[0, 1].isfinite().all()


@pytest.mark.parametrize("column", [0, 90, 173, 178, 183, 188, 189, 193, 194, 200, 300])
@pytest.mark.parametrize("width", [366, 368])
def test_the_reach_of_a_pixel(backend, width, column):
    """Two windows in each direction, also where a map is cut: what may be lost there is too little for a norm."""
    x, y = (t.to(backend.device) for t in pair((2, 1, 3, width)))
    x[0, 0, 1, column] = float("nan")
    x.requires_grad_()
    value = fused_ssim.ssim(x, y, reduction="sum", backend=backend.name)
    (gradient,) = torch.autograd.grad(value, x)
    reached = torch.zeros(2, 1, 3, width, dtype=torch.bool, device=backend.device)
    reached[0, :, :, max(0, column - 10) : column + 11] = True
    assert torch.equal(gradient.isnan(), reached)


@pytest.mark.parametrize("normalize", ["tensor", "sample", "channel"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_under_normalisation(backend, normalize, bad):
    x, y = (t.to(backend.device) for t in pair((2, 2, 9, 20)))
    x[0, 0, 4, 7] = bad
    value = fused_ssim.pyramid_ssim_loss([x], [y], normalize=normalize, backend=backend.name)
    assert not value.isfinite()


@pytest.mark.parametrize("level", [0.0, 1.0, 0.6, 255.0, -3.0])
@pytest.mark.parametrize("exponents", [*EXPONENTS, (1.0, 0.5, 0.5), (0.0, 0.5, 0.0), (0.0, 0.0, 0.5)], ids=str)
@pytest.mark.parametrize("padding", ["same", "reflect", "valid"])
def test_flat_patches_are_finite(backend, padding, exponents, level):
    """Features behind a ReLU are flat over whole windows; the derivative of a standard deviation is infinite there."""
    flat = torch.full((1, 2, 16, 20), level, device=backend.device)
    textured = pair((1, 2, 16, 20))[0].to(backend.device)
    for x, y in ((flat, flat.clone()), (flat, flat + 1e-7), (flat, textured), (textured, flat)):
        got = gradients(fused_ssim.ssim, x, y, padding=padding, exponents=exponents, backend=backend.name)
        assert all(t.isfinite().all() for t in got)
        # In float32 the reference's five moments exceed 1 where variances are rounding; the kernels' form does not.
        assert backend.name == "reference" or abs(got[0]) <= 1 + 1e-5


def test_bright_flat_patches_keep_their_digits(kernel):
    """The sum/difference form: E[(x - y)^2] has no cancellation where x and y are nearly equal."""
    x = torch.full((1, 1, 16, 20), 0.6, dtype=torch.float32, device=kernel.device)
    y = x + 1e-4 * pair(x.shape)[0].to(kernel.device)
    got = fused_ssim.ssim(x, y, reduction="none", backend=kernel.name).cpu()
    want = judge_ssim(x.cpu().double(), y.cpu().double(), reduction="none")
    assert (got - want).abs().max() < 2e-6
    assert got.max() <= 1 + 2.4e-7


def test_nearly_equal_inputs(backend):
    """The end of a training run: the gradient is small and must still point the right way."""
    x, y = pair((1, 3, 32, 40))
    y = x + 0.01 * (y - x)
    want = judged(judge_ssim, x, y, reduction="sum")
    got = gradients(fused_ssim.ssim, x.to(backend.device), y.to(backend.device), reduction="sum", backend=backend.name)
    assert_close(got[0].cpu(), want[0], 1e-6, "value")
    # Relative to a gradient that is itself a hundredth of its terms.
    assert_close(got[1].cpu(), want[1], 2e-4, "gradient by x")


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("sides", [(True, False), (True, True)], ids=["x", "both"])
def test_outputs_are_poisoned(kernel_once, reduction, sides):
    """What the autouse fixture promises: each output of an operator is filled with NaN before the kernel runs."""
    x, y = (t.to(kernel_once.device) for t in pair((2, 3, 13, 19)))
    x.requires_grad_(sides[0])
    y.requires_grad_(sides[1])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        value = fused_ssim.ssim(x, y, reduction=reduction, backend=kernel_once.name)
        torch.autograd.backward(value, torch.ones_like(value))
    fills = 0
    for event in profile.events():
        parent = event.cpu_parent
        while parent is not None and not parent.name.startswith("fused_ssim"):
            parent = parent.cpu_parent
        fills += event.name == "aten::fill_" and parent is not None
    # The map or the values; the gradients, in place of which the map's backward gives something empty.
    assert fills >= 1 + sum(sides)


def test_poison_is_nan():
    assert torch.empty(100).isnan().all()
    assert relative_l2(torch.full((2,), float("nan")), torch.ones(2)) == float("inf")


@pytest.mark.parametrize("sigma", [1e-300, 1e-3, 1e6])
def test_any_sigma(backend, sigma):
    x, y = (t.to(backend.device) for t in pair((1, 1, 13, 19)))
    got = fused_ssim.ssim(x, y, sigma=sigma, backend=backend.name)
    want = judge_ssim(x.cpu().double(), y.cpu().double(), sigma=sigma)
    assert_close(got.cpu(), want, 1e-5, "value")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_exponents_that_are_one_but_for_rounding(backend, dtype):
    """Where structure is negative, 1 and its neighbour are far apart: only the latter has a floor."""
    x, y = (t.to(backend.device) for t in pair((1, 1, 13, 19), dtype))
    options = {"reduction": "none", "backend": backend.name}
    want = fused_ssim.ssim(x, 1 - y, **options)
    nearly = sum([0.1] * 10)
    assert nearly != 1.0 and want.min() < -0.5
    for exponents in ((1.0, nearly, nearly), (nearly, 1.0 + 1e-9, 1.0)):
        assert torch.equal(fused_ssim.ssim(x, 1 - y, exponents=exponents, **options), want)
