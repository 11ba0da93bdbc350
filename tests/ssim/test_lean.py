"""The gradient of x alone, as training asks for it: the CUDA kernel has a leaner one for that."""

import emulated
import judge
import pytest
import torch
from judge import assert_close, pair, tolerance

import fused_ssim

# How the emulated device's four multiprocessors share them: the tuple is (maps beside each other, strips, bands).
PIECES = {
    (1, 3, 40, 48): (1, 1, 2),
    (1, 3, 37, 45): (1, 1, 1),
    (1, 3, 33, 52): (1, 1, 1),
    (2, 3, 11, 6): (2, 1, 1),
    (2, 24, 7, 10): (7, 1, 1),
    (2, 12, 9, 12): (3, 1, 1),
    (2, 12, 6, 3): (6, 1, 1),
    (2, 24, 3, 6): (6, 1, 1),
    (2, 24, 5, 1): (6, 1, 1),
    (1, 8, 1, 40): (2, 1, 1),
    (1, 8, 2, 31): (1, 1, 1),
    (1, 1, 9, 324): (1, 7, 1),
    (1, 1, 9, 775): (1, 4, 1),
    (1, 1, 259, 20): (1, 1, 8),
    (1, 1, 66, 23): (1, 1, 8),
    (1, 1, 130, 332): (1, 2, 2),
}


@pytest.fixture(params=["same", "reflect", "valid"])
def padding(request) -> str:
    return request.param


@pytest.mark.parametrize("shape", PIECES, ids=str)
def test_maps_are_cut_as_said_above(shape):
    (level,) = emulated.lean_plan([shape], "reflect")["levels"]
    assert tuple(level[key] for key in ("maps", "strips", "bands")) == PIECES[shape]


def check(backend, shape, padding, dtype=torch.float32):
    x, y = (t.to(dtype).to(backend.device) for t in pair(shape))
    x.requires_grad_()
    options = judge.window_options(padding, shape)
    emulated.forget(backend.name)
    value = fused_ssim.ssim_loss(x, y, reduction="sum", backend=backend.name, **options)
    emulated.check_served(backend.name, padding)
    (got,) = torch.autograd.grad(value, x)
    wide = x.detach().cpu().double().requires_grad_()
    want = judge.ssim_loss(wide, y.cpu().double(), reduction="sum", **options)
    limit = tolerance(dtype)
    assert_close(value.cpu(), want, limit.value, "value")
    assert_close(got.cpu(), torch.autograd.grad(want, wide)[0], limit.gradient, "gradient by x")


@pytest.mark.parametrize("shape", PIECES, ids=str)
def test_pieces(kernel_once, shape, padding):
    if padding == "valid" and min(shape[-2:]) < 3:
        pytest.skip("no window of three pixels fits")
    check(kernel_once, shape, padding)


@pytest.mark.parametrize("h", range(64, 80))
def test_bands_that_end_anywhere_in_a_chunk(kernel_once, h, padding):
    check(kernel_once, (1, 1, h, 19), padding)


@pytest.mark.parametrize("w", range(300, 316))
def test_strips_that_end_anywhere_in_a_segment(kernel_once, w, padding):
    check(kernel_once, (1, 1, 9, w), padding)


def test_every_size(kernel_once, padding):
    """Borders at each place of a chunk, and maps with room for one image or with many."""
    for size in range(3 if padding == "valid" else 1, 27):
        check(kernel_once, (1, 2, size, 9), padding)
        check(kernel_once, (1, 2, 9, size), padding)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 3, 40, 48), (1, 3, 37, 45), (2, 24, 7, 10), (1, 1, 9, 324)], ids=str)
def test_half_precision(kernel_once, shape, dtype, padding):
    check(kernel_once, shape, padding, dtype)


@pytest.mark.parametrize("strides", ["channels last", "cropped", "batch of one repeated"])
def test_layouts(kernel_once, strides, padding):
    x, y = (t.to(kernel_once.device) for t in pair((2, 3, 14, 20)))
    if strides == "channels last":
        x, y = (t.to(memory_format=torch.channels_last) for t in (x, y))
    elif strides == "cropped":
        x, y = x[:, :, 1:, 3:], y[:, :, :-1, 1:-2]
    else:
        y = y[:1].expand(2, -1, -1, -1)
    x = x.detach().requires_grad_()
    value = fused_ssim.ssim_loss(x, y, reduction="sum", padding=padding, backend=kernel_once.name)
    wide = x.detach().cpu().double().requires_grad_()
    want = judge.ssim_loss(wide, y.cpu().double(), reduction="sum", padding=padding)
    limit = tolerance(torch.float32)
    assert_close(value.cpu(), want, limit.value, "value")
    (got,), (expected,) = torch.autograd.grad(value, x), torch.autograd.grad(want, wide)
    assert_close(got.cpu(), expected, limit.gradient, "gradient by x")


@pytest.mark.parametrize("shape", [(1, 12, 9, 12), (1, 24, 7, 10), (1, 12, 6, 3)], ids=str)
def test_a_nan_stays_in_its_map(kernel_once, shape, padding):
    """Maps beside each other have mirrored columns between them."""
    x, y = (t.to(kernel_once.device) for t in pair(shape))
    bad = x.clone()
    bad[:, 4] = float("nan")
    grads = []
    for t in (x, bad):
        t.requires_grad_()
        options = judge.window_options(padding, shape)
        value = fused_ssim.ssim_loss(t, y, reduction="sum", backend=kernel_once.name, **options)
        grads.append(torch.autograd.grad(value, t)[0])
    others = [c for c in range(shape[1]) if c != 4]
    assert value.isnan() and grads[1][:, 4].isnan().all() and torch.equal(grads[0][:, others], grads[1][:, others])


@pytest.mark.parametrize("what", ["exponents", "float64", "gradients of x and y", "a weight", "no gradient"])
def test_what_is_left_to_the_general_kernel(what):
    options = {
        "exponents": {"exponents": (1.0, 0.5, 0.5)},
        "a weight": {"weight": torch.rand(1, 1, 12, 13)},
    }.get(what, {})
    x, y = pair((1, 2, 12, 13), torch.float64 if what == "float64" else torch.float32)
    x.requires_grad_(what != "no gradient")
    y.requires_grad_(what == "gradients of x and y")
    with emulated.backend() as backend:
        emulated.served()
        fused_ssim.ssim_loss(x, y, backend=backend, **{"padding": "reflect", **options})
        assert emulated.served() == ["all"]
