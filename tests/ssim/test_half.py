"""16-bit inputs: computed in float32, so equal to float32 on the upcast inputs up to rounding of what is returned."""

import pytest
import torch
from judge import assert_close, gradients, pair, tolerance

import fused_ssim

DTYPES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("function", ["ssim", "ssim_loss", "l1_ssim_loss"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "sample", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_as_float32(backend, dtype, function, reduction, weighted):
    x, y = (t.to(backend.device) for t in pair((2, 3, 13, 19), dtype))
    options = {"reduction": reduction, "backend": backend.name}
    if weighted:
        options["weight"] = torch.rand(2, 1, 13, 19, device=backend.device)
    # As with a gradient scaler: the gradient of a mean itself is too small for float16.
    upstream = torch.full({"none": x.shape, "sample": (2,)}.get(reduction, ()), 64.0, device=backend.device)
    want = gradients(getattr(fused_ssim, function), x.float(), y.float(), upstream, **options)
    got = gradients(getattr(fused_ssim, function), x, y, upstream, **options)
    assert got[0].dtype == (dtype if reduction == "none" else torch.float32)
    assert got[1].dtype == got[2].dtype == dtype
    limit = tolerance(dtype)
    assert_close(got[0], want[0], limit.value if reduction == "none" else tolerance(torch.float32).value, "value")
    assert_close(got[1], want[1], limit.gradient, "gradient by x")
    assert_close(got[2], want[2], limit.gradient, "gradient by y")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_small_loss_map_is_not_rounded_as_one_minus_ssim(backend, dtype):
    """1 - SSIM of an SSIM rounded to 16 bits has few correct digits where the loss is small."""
    x, y = pair((1, 2, 16, 16), dtype)
    y = (x.float() + 0.1 * (y.float() - x.float())).to(dtype)
    x, y = x.to(backend.device), y.to(backend.device)
    got = fused_ssim.ssim_loss(x, y, reduction="none", backend=backend.name)
    want = fused_ssim.ssim_loss(x.float(), y.float(), reduction="none", backend=backend.name)
    assert 2e-4 < want.mean() < 1e-2
    assert_close(got, want, tolerance(dtype).value, "loss map")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalize", ["tensor", "sample", "channel"])
@pytest.mark.parametrize("detach_range", [True, False])
@pytest.mark.parametrize("reduction", ["level", "none"])
def test_normalised_pyramid_as_float32(backend, dtype, normalize, detach_range, reduction):
    x, y = (t.to(backend.device) for t in pair((2, 3, 13, 19), torch.float32))
    x, y = (x * 3 - 1).to(dtype), (y * 5).to(dtype)

    def loss(x, y):
        options = {"normalize": normalize, "detach_range": detach_range, "reduction": reduction}
        return fused_ssim.pyramid_ssim_loss([x], [y], backend=backend.name, **options)[0]

    upstream = torch.full(x.shape if reduction == "none" else (), 1000.0, device=backend.device)
    want = gradients(loss, x.float(), y.float(), upstream)
    got = gradients(loss, x, y, upstream)
    assert got[0].dtype == (dtype if reduction == "none" else torch.float32)
    limit = tolerance(dtype)
    assert_close(got[0], want[0], limit.value if reduction == "none" else 1e-5, "value")
    assert_close(got[1], want[1], limit.gradient, "gradient by x")
    assert_close(got[2], want[2], limit.gradient, "gradient by y")


def test_float16_features_of_large_range(backend):
    """The extent, 120000, is more than float16 holds."""
    x, y = (t.to(backend.device) for t in pair((1, 1, 13, 19)))
    x, y = ((t * 2 - 1) * 60000 for t in (x, y))
    got = fused_ssim.pyramid_ssim_loss([x.half()], [y.half()], normalize="channel", backend=backend.name)
    want = fused_ssim.pyramid_ssim_loss([x], [y], normalize="channel", backend=backend.name)
    assert_close(got, want, tolerance(torch.float16).value, "value")


def test_the_saved_float16_gradient_does_not_underflow(backend):
    """The gradient of a mean over 2^18 pixels is below 6e-8; a gradient scaler's factor must bring it back."""
    if backend.name == "reference":
        pytest.skip("the reference keeps float32 until the last step by itself")
    x, y = (t.to(backend.device) for t in pair((1, 1, 512, 512), torch.float16))
    want = gradients(fused_ssim.ssim_loss, x.float(), y.float(), torch.tensor(2.0**18))
    got = gradients(fused_ssim.ssim_loss, x, y, torch.tensor(2.0**18), backend=backend.name)
    assert_close(got[1], want[1], tolerance(torch.float16).gradient, "gradient by x")


@pytest.mark.parametrize("scale", [1e-9, 1e6])
@pytest.mark.parametrize("reduction", ["mean", "sample", "sum", "level"])
def test_weights_of_any_scale(backend, reduction, scale):
    """Such as weights that sum to one; the saved gradient holds them, in the dtype of x."""
    x, y = (t.to(backend.device) for t in pair((2, 3, 13, 19), torch.float16))
    weight = scale * torch.rand(2, 1, 13, 19, device=backend.device)
    weight[1] *= 1e3 if reduction == "sample" else 1  # samples have their own means

    def loss(x, y):
        options = {"reduction": reduction, "backend": backend.name}
        if reduction == "level":
            return fused_ssim.pyramid_ssim_loss([x, x], [y, y], weight=[weight, weight / 1e3], **options)
        return fused_ssim.ssim(x, y, weight=weight, **options)

    upstream = torch.tensor({"sum": 1 / scale}.get(reduction, 64.0), device=backend.device)
    upstream = upstream.expand({"sample": (2,), "level": (2,)}.get(reduction, ()))
    want = gradients(loss, x.float(), y.float(), upstream)
    got = gradients(loss, x, y, upstream)
    assert_close(got[0], want[0], tolerance(torch.float32).value, "value")
    assert_close(got[1], want[1], tolerance(torch.float16).gradient, "gradient by x")
