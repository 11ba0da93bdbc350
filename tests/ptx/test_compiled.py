"""What nvcc emitted for the real kernels, interpreted, against float64 autograd of the reference.

The operators run as they are (plans, parameters, several launches); only the kernels' PTX runs in the interpreter,
which checks every access against the bounds of the tensors and of shared memory.
"""

import emulated
import judge
import pytest
import torch
from cuda_emulator import building
from judge import assert_close, pair
from ptx import compiled, memory

import fused_ssim

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(compiled.nvcc() is None, reason="no nvcc"),
    pytest.mark.skipif(building.compiler() is None, reason="no C++ compiler"),
]
LEAN = ("march_lean_same.cu", "march_lean_reflect.cu", "ssim_cuda.cu")
GENERAL = ("march_general_float.cu", "ssim_cuda.cu")


def check(sources, shape, dtype=torch.float32, both=False, **options):
    """Value and gradient of the sum; returns instructions that threads executed, by kind."""
    x, y = (t.to(dtype) for t in pair(shape))
    x.requires_grad_()
    y.requires_grad_(both)
    with compiled.interpreted(sources, [x, y]) as kernels_run:
        value = fused_ssim.ssim_loss(x, y, reduction="sum", backend=emulated.NAME, **options)
    value.backward()  # scales what was computed above by 1
    a, b = x.detach().double().requires_grad_(), y.detach().double().requires_grad_(both)
    expected = judge.ssim_loss(a, b, reduction="sum", **options)
    expected.backward()
    limit = judge.tolerance(dtype)
    assert_close(value, expected, limit.value, "value")
    assert_close(x.grad, a.grad, limit.gradient, "gradient by x")
    if both:
        assert_close(y.grad, b.grad, limit.gradient, "gradient by y")
    return kernels_run


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_whole_maps(dtype):
    """The main plan: a block marches down each map of a FPN level, 100 x 152."""
    kernels_run = check(LEAN, (1, 2, 100, 152), dtype)
    (march,) = (run.instructions for name, run in kernels_run.items() if "march" in name)
    # 7 filters of 22 fused multiply-adds a pixel, and the rest of the floor; twice that would be another kernel.
    fused = march["fma.f32"] / (2 * 100 * 152)
    assert 120 < fused < 240, f"{fused:.0f} fma a pixel"
    assert march["st.local"] == march["ld.local"] == 0


@pytest.mark.parametrize("shape", [(2, 5, 7, 10), (1, 3, 13, 19), (1, 1, 61, 301)], ids=str)
def test_packed_maps_odd_widths_and_strips(shape):
    check(LEAN, shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "shape", [(2, 5, 7, 10), (1, 3, 13, 19), (1, 2, 40, 48), (1, 1, 61, 301), (2, 3, 6, 3)], ids=str
)
def test_mirrors(shape, dtype):
    """Maps beside each other, whole ones, strips and bands, and maps narrower than a window."""
    kernels_run = check(LEAN, shape, dtype, padding="reflect")
    assert [name for name in kernels_run if "ServesE2E" in name]


@pytest.mark.parametrize("shape", [(2, 5, 13, 19), (1, 2, 40, 48), (1, 1, 61, 301)], ids=str)
def test_whole_windows_only(shape):
    kernels_run = check(LEAN, shape, padding="valid")
    assert [name for name in kernels_run if "ServesE1E" in name]


@pytest.mark.parametrize("padding", ["same", "reflect", "valid"])
def test_general_kernel(padding):
    check(GENERAL, (1, 2, 20, 27), both=True, padding=padding)


@pytest.mark.parametrize("shape", [(1, 1, 61, 301), (2, 5, 13, 19)], ids=["strips", "several in a block"])
@pytest.mark.parametrize("padding", ["same", "reflect", "valid"])
def test_maps_and_their_gradients_of_16_bits(padding, shape):
    x, y = (t.to(torch.bfloat16).requires_grad_() for t in pair(shape))
    upstream = torch.rand_like(judge.ssim(x.detach().double(), y.detach().double(), reduction="none", padding=padding))
    with compiled.interpreted(GENERAL, [x, y, upstream := upstream.to(x.dtype)]):
        ssim_map = fused_ssim.ssim(x, y, reduction="none", padding=padding, backend=emulated.NAME)
        ssim_map.backward(upstream)
    a, b = (t.detach().double().requires_grad_() for t in (x, y))
    expected = judge.ssim(a, b, reduction="none", padding=padding)
    expected.backward(upstream.double())
    limit = judge.tolerance(x.dtype)
    assert_close(ssim_map, expected, limit.value, "map")
    assert_close(x.grad, a.grad, limit.gradient, "gradient by x")
    assert_close(y.grad, b.grad, limit.gradient, "gradient by y")


@pytest.mark.parametrize("width", [20, 27])
def test_extremes_of_a_tensor(width):
    """Several blocks look for them and settle what they receive, with accesses of four pixels and without."""
    x, y = (t.requires_grad_() for t in pair((1, 2, 40, width)))
    options = {"normalize": "tensor", "detach_range": False, "reduction": "sum"}
    with compiled.interpreted(GENERAL, [x, y]) as kernels_run:
        value = fused_ssim.pyramid_ssim_loss([x], [y], backend=emulated.NAME, **options)
    value.backward()
    assert [run.blocks for name, run in kernels_run.items() if "part_extremes" in name] == [2 * 5]
    a, b = (t.detach().double().requires_grad_() for t in (x, y))
    expected = fused_ssim.pyramid_ssim_loss([a], [b], backend="reference", **options)
    expected.backward()
    assert_close(value, expected, judge.tolerance(x.dtype).value, "value")
    assert_close(x.grad, a.grad, judge.tolerance(x.dtype).gradient, "gradient by x")
    assert_close(y.grad, b.grad, judge.tolerance(x.dtype).gradient, "gradient by y")


def test_scaling_in_place():
    grads = [torch.rand(2, 3, 5, 7), torch.rand(2, 2, 4, 4).half()]
    factor = torch.tensor([[2.0, 0.5], [1.0, 3.0]])
    expected = [g.float() * f.reshape(2, 1, 1, 1) / d for g, f, d in zip(grads, factor, (4.0, 1.0), strict=True)]
    with compiled.interpreted(LEAN, [*grads, factor]) as kernels_run:
        torch.ops.fused_ssim_emulated.scale_(grads, factor, [4.0, 1.0])
    assert kernels_run
    for got, want in zip(grads, expected, strict=True):
        assert_close(got, want, judge.tolerance(got.dtype).gradient, "scaled gradient")


@pytest.mark.parametrize("width", [24, 23], ids=["vectors", "elements"])
@pytest.mark.parametrize("side", [0, 1], ids=["x", "y"])
def test_an_access_to_one_element_too_many_is_seen(side, width):
    """The interpreter is told that the last element of x or of y is not there: as if the kernel went one too far."""
    pair_of_maps = list(pair((1, 2, 20, width)))
    told = list(pair_of_maps)
    told[side] = torch.from_numpy(pair_of_maps[side].numpy().reshape(-1)[:-1])
    x, y = pair_of_maps
    x.requires_grad_()
    size = 4 * (x.numel() - 1)
    with pytest.raises(memory.AccessError, match=f"of a buffer of {size}"), compiled.interpreted(LEAN, told):
        fused_ssim.ssim_loss(x, y, reduction="sum", backend=emulated.NAME)


def test_scaling_shares_its_work():
    """Blocks share out the samples, and each thread has several accesses on their way."""
    grads, factor = [torch.rand(64, 3, 8, 8).half()], torch.rand(1, 64)
    expected = grads[0].double() * factor.double().reshape(64, 1, 1, 1)
    with compiled.interpreted(("ssim_cuda.cu",), [*grads, factor]) as kernels_run:
        torch.ops.fused_ssim_emulated.scale_(grads, factor, [1.0])
    assert_close(grads[0], expected, judge.tolerance(torch.float16).gradient, "scaled gradient")
    (run,) = kernels_run.values()
    factors_of_a_thread = run.instructions["div.f64"] / (run.blocks * run.block)
    assert factors_of_a_thread == 64 / run.blocks
    loads, most = 0, 0
    for instruction in run.program.instructions:
        memory_of = instruction.opcode[:2]
        loads = loads + 1 if memory_of == ("ld", "global") and "v4" in instruction.opcode else loads
        loads = 0 if memory_of == ("st", "global") else loads
        most = max(most, loads)
    assert most >= 4
