"""Reductions, weights, which input needs a gradient, and the functions on top of the same map."""

import judge
import pytest
import torch
from judge import assert_close, gradients, judged, pair, tolerance

import fused_ssim

REDUCTIONS = ["mean", "sum", "sample", "none"]
LIMIT = tolerance(torch.float32)


def weights(name, shape):
    generator = torch.Generator().manual_seed(3)
    full = torch.rand(*shape, generator=generator)
    return {
        "full": full,
        "plane": full[:1, :1],
        "rows": full[0, 0, :, :1],
        "bool": full > 0.4,
        "a sample of zeros": full * torch.tensor([0.0, 1.0]).view(2, 1, 1, 1),
        "all zero": torch.zeros(1),
    }[name]


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["full", "plane", "rows", "bool", "a sample of zeros", "all zero"])
def test_weights(backend, name, reduction, padding):
    shape = (2, 3, 13, 19)
    weight = weights(name, shape if padding == "same" else (2, 3, 3, 9))
    x, y = pair(shape)
    want = judged(judge.ssim_loss, x, y, reduction=reduction, weight=weight, padding=padding)
    x, y, weight = (t.to(backend.device) for t in (x, y, weight))
    options = {"reduction": reduction, "weight": weight, "padding": padding, "backend": backend.name}
    got = gradients(fused_ssim.ssim_loss, x, y, **options)
    for g, w, what in zip(got, want, ("value", "gradient by x", "gradient by y"), strict=True):
        assert_close(g.cpu(), w, LIMIT.gradient, what)


def test_gradient_by_the_weight(backend):
    x, y = pair((2, 2, 9, 12))
    for reduction in REDUCTIONS:
        weight = torch.rand(2, 1, 9, 12, generator=torch.Generator().manual_seed(1))
        wide = weight.double().requires_grad_()
        judge.ssim(x.double(), y.double(), reduction=reduction, weight=wide).sum().backward()
        weight = weight.to(backend.device).requires_grad_()
        options = {"reduction": reduction, "weight": weight, "backend": backend.name}
        fused_ssim.ssim(x.to(backend.device), y.to(backend.device), **options).sum().backward()
        # By a weight of a mean the gradient is a difference of nearly equal numbers.
        assert_close(weight.grad.cpu(), wide.grad, 10 * LIMIT.gradient, f"gradient by the weight, {reduction}")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("function", ["ssim", "ssim_loss"])
def test_reductions_with_random_upstream(backend, function, reduction):
    x, y = pair((3, 2, 13, 19))
    shape = {"none": x.shape, "sample": (3,)}.get(reduction, ())
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    want = judged(getattr(judge, function), x, y, upstream, reduction=reduction)
    x, y = x.to(backend.device), y.to(backend.device)
    upstream = upstream.to(backend.device)
    got = gradients(getattr(fused_ssim, function), x, y, upstream, reduction=reduction, backend=backend.name)
    for g, w, what in zip(got, want, ("value", "gradient by x", "gradient by y"), strict=True):
        assert_close(g.cpu(), w, LIMIT.gradient, what)


@pytest.mark.parametrize("needs", ["x", "y", "both", "neither"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("exponents", [(1.0, 1.0, 1.0), (1.0, 0.3, 1.2)], ids=str)
def test_which_input(backend, needs, reduction, exponents):
    x, y = pair((2, 3, 13, 19))
    options = {"reduction": reduction, "exponents": exponents, "padding": "reflect"}
    _, want_x, want_y = judged(judge.ssim, x, y, **options)
    x, y = x.to(backend.device), y.to(backend.device)
    x.requires_grad_(needs in ("x", "both"))
    y.requires_grad_(needs in ("y", "both"))
    value = fused_ssim.ssim(x, y, backend=backend.name, **options)
    assert value.requires_grad == (needs != "neither")
    if needs == "neither":
        return
    value.sum().backward()
    limit = tolerance(torch.float32, exponents).gradient
    for tensor, want, name in ((x, want_x, "x"), (y, want_y, "y")):
        if needs in (name, "both"):
            assert_close(tensor.grad.cpu(), want, limit, f"gradient by {name}")
        else:
            assert tensor.grad is None


@pytest.mark.parametrize("exponents", [(1.0, 1.0, 1.0), (0.5, 2.0, 0.7)], ids=str)
@pytest.mark.parametrize("padding", ["same", "reflect", "valid"])
def test_components(backend, padding, exponents):
    x, y = pair((2, 2, 13, 19))
    options = judge.SSIMOptions(padding=padding)
    parts = judge.reference.luminance_contrast_structure(x.double(), y.double(), options)
    got = fused_ssim.ssim_components(
        x.to(backend.device), y.to(backend.device), padding=padding, exponents=exponents, backend=backend.name
    )
    for part, exponent, result, name in zip(parts, exponents, got, ("luminance", "contrast", "structure"), strict=True):
        expected = judge.reference.power(part, exponent)
        assert_close(result.cpu(), expected, tolerance(torch.float32, exponents).gradient * 2, name)
    if exponents == (1.0, 1.0, 1.0):
        product = got[0] * got[1] * got[2]
        whole = fused_ssim.ssim(x, y, padding=padding, reduction="none")
        assert_close(product.cpu(), whole, 1e-4, "product of the components")


def test_unbatched_inputs(backend):
    x, y = (t.to(backend.device) for t in pair((3, 13, 19)))
    for reduction in REDUCTIONS:
        got = fused_ssim.ssim(x, y, reduction=reduction, backend=backend.name)
        batched = fused_ssim.ssim(x[None], y[None], reduction=reduction, backend=backend.name)
        assert got.shape == (batched.shape[1:] if reduction == "none" else batched.shape)
        assert torch.equal(got, batched.reshape(got.shape))


@pytest.mark.parametrize("name", ["SSIM", "SSIMLoss", "L1SSIMLoss"])
def test_modules_are_the_functions(name):
    function = {"SSIM": "ssim", "SSIMLoss": "ssim_loss", "L1SSIMLoss": "l1_ssim_loss"}[name]
    x, y = pair((2, 3, 13, 19))
    settings = {"data_range": 2.0, "padding": "reflect", "reduction": "sample", "window_size": 7}
    module = getattr(fused_ssim, name)(**settings)
    weight = torch.rand(13, 19)
    assert torch.equal(module(x, y), getattr(fused_ssim, function)(x, y, **settings))
    assert torch.equal(module(x, y, weight), getattr(fused_ssim, function)(x, y, weight=weight, **settings))
    assert "padding='reflect'" in repr(module)
    assert not list(module.parameters()) and not module.state_dict()
