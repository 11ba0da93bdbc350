"""Any strides give what contiguous tensors give; outputs keep the layout of the inputs where it is dense."""

import pytest
import torch
from judge import gradients, pair

import fused_ssim

SHAPE = (2, 3, 13, 19)


def channels_last(t):
    return t.to(memory_format=torch.channels_last)


def sliced(t):
    n, c, h, w = t.shape
    large = torch.full((n + 1, c + 2, h + 3, w + 4), float("nan"), dtype=t.dtype, device=t.device)
    large[1:, 1:-1, 2:-1, 3:-1] = t
    return large[1:, 1:-1, 2:-1, 3:-1]


def every_second_column(t):
    large = torch.full((*t.shape[:-1], 2 * t.shape[-1]), float("nan"), dtype=t.dtype, device=t.device)
    large[..., ::2] = t
    return large[..., ::2]


def transposed(t):
    return t.transpose(-1, -2).contiguous().transpose(-1, -2)


def samples_last(t):
    return t.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


def unaligned(t):
    storage = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)
    storage[1:] = t.reshape(-1)
    return storage[1:].view(t.shape)


def sliced_by_fours(t):
    n, c, h, w = t.shape
    large = torch.full((n, c, h + 1, w + 8), float("nan"), dtype=t.dtype, device=t.device)
    large[..., 1:, 4:-4] = t
    return large[..., 1:, 4:-4]


LAYOUTS = [channels_last, sliced, sliced_by_fours, every_second_column, transposed, samples_last, unaligned]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 13, 19), (2, 3, 13, 20)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_strides_in_training(kernel, layout, shape, dtype):
    """The gradient by one input, which some kernels treat apart, and rows of whole groups of four pixels."""
    x, y = (t.to(kernel.device) for t in pair(shape, dtype))

    def value_and_gradient(a, b):
        a = a.detach().requires_grad_()
        value = fused_ssim.l1_ssim_loss(a, b, reduction="sum", backend=kernel.name)
        return value.detach(), *torch.autograd.grad(value, a)

    want = value_and_gradient(x, y)
    for a, b in ((layout(x), layout(y)), (layout(x), y), (x, layout(y))):
        for g, w in zip(value_and_gradient(a, b), want, strict=True):
            assert torch.allclose(g, w, rtol=1e-5, atol=0) if g.dim() == 0 else torch.equal(g, w)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_strides(kernel, layout, reduction, dtype):
    x, y = (t.to(kernel.device) for t in pair(SHAPE, dtype))
    upstream = torch.rand(SHAPE, dtype=dtype, device=kernel.device) if reduction == "none" else None
    want = gradients(fused_ssim.ssim, x, y, upstream, reduction=reduction, backend=kernel.name)
    for a, b in ((layout(x), layout(y)), (layout(x), y), (x, layout(y))):
        assert torch.equal(a, x) and torch.equal(b, y)
        seed = layout(upstream) if upstream is not None else None
        got = gradients(fused_ssim.ssim, a, b, seed, reduction=reduction, backend=kernel.name)
        for g, w in zip(got, want, strict=True):
            assert torch.equal(g, w)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_expanded(kernel, reduction):
    x, y = (t.to(kernel.device) for t in pair((1, 3, 13, 1)))
    x, y = x.expand(2, 3, 13, 19), y.expand(2, 3, 13, 19)
    dense = x.contiguous(), y.contiguous()
    want = gradients(fused_ssim.ssim, *dense, reduction=reduction, backend=kernel.name)
    got = gradients(fused_ssim.ssim, x, y, reduction=reduction, backend=kernel.name)
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w)


def test_gradient_through_an_expansion(kernel):
    x, y = (t.to(kernel.device) for t in pair((1, 1, 13, 19)))
    x.requires_grad_()
    fused_ssim.ssim(x.expand(2, 3, 13, 19), y.expand(2, 3, 13, 19), reduction="sum", backend=kernel.name).backward()
    got, x.grad = x.grad, None
    fused_ssim.ssim(x, y, reduction="sum", backend=kernel.name).backward()
    assert torch.allclose(got, 6 * x.grad, rtol=1e-5, atol=1e-6)


def test_weights_of_any_strides(kernel):
    x, y = (t.to(kernel.device) for t in pair(SHAPE))
    weight = torch.rand(SHAPE, device=kernel.device)
    options = {"reduction": "sum", "backend": kernel.name}
    want = gradients(fused_ssim.l1_ssim_loss, x, y, weight=weight, **options)
    for layout in LAYOUTS:
        got = gradients(fused_ssim.l1_ssim_loss, x, y, weight=layout(weight), **options)
        for g, w in zip(got, want, strict=True):
            assert torch.equal(g, w), layout.__name__


def test_gradients_keep_channels_last(kernel):
    x, y = (channels_last(t.to(kernel.device)) for t in pair(SHAPE))
    for reduction in ("mean", "none"):
        _, grad_x, grad_y = gradients(fused_ssim.ssim, x, y, reduction=reduction, backend=kernel.name)
        assert grad_x.stride() == x.stride() and grad_y.stride() == y.stride()


@pytest.mark.usefixtures("unpoisoned")
@pytest.mark.parametrize("strides", [(2**31, 2**30, 2**26, 1), (24, 12, 2**28, 1)], ids=["planes", "rows"])
def test_offsets_beyond_32_bits(kernel, strides):
    """Four planes of 16 rows, spread over more than 2^31 elements of which few pages are ever touched."""
    shape = (2, 2, 16, 12)
    count = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    storage = torch.empty(count, dtype=torch.float16, device=kernel.device)
    x, y = (t.to(kernel.device) for t in pair(shape, torch.float16))
    far = storage.as_strided(shape, strides)
    far.copy_(x)
    results = []
    for other in (x, far):
        y = y.detach().requires_grad_()
        value = fused_ssim.ssim(other, y, reduction="sum", backend=kernel.name)
        results.append((value.detach(), *torch.autograd.grad(value, y)))
    for near, distant in zip(*results, strict=True):
        assert torch.equal(near, distant)
