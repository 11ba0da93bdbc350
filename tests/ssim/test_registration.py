"""torch.library: schemas, fake tensors, torch.compile, autocast."""

from functools import partial

import pytest
import torch
import torch._dynamo.testing
from judge import assert_close, gradients, pair, tolerance
from torch._dynamo import compiled_autograd
from torch.library import opcheck

import fused_ssim
from fused_ssim import ops
from fused_ssim.options import SSIMOptions

LIMIT = tolerance(torch.float32)
SHAPE = (2, 3, 13, 19)
DEFINITION = ops._definition(SSIMOptions(window_size=7))


def arguments(name, device, layout=torch.contiguous_format):
    x, y = (t.to(device).to(memory_format=layout).requires_grad_() for t in pair(SHAPE))
    if name == "ssim_map":
        return x, y, *DEFINITION
    if name == "ssim_map_backward":
        return torch.rand(SHAPE, device=device), x.detach(), y.detach(), *DEFINITION, True, False
    if name == "scale_":
        return [x.detach().clone(), y.detach().clone()], torch.tensor([2.0, 0.5], device=device), [1.0, 4.0]
    weight = [torch.rand(SHAPE, device=device)]
    per_sample = name == "ssim_sums of samples"
    values = {"x": [x], "y": [y], "weight": weight, "offset": [0.5], "slope": [-0.5], "l1": [0.1], "grad_scale": [1.0]}
    names = ("taps", "exponents", "c1", "c2", "data_range", "padding", "window_size")
    values |= dict(zip(names, DEFINITION, strict=True))
    values |= {"normalize": "", "detach_range": True, "per_sample": per_sample, "grad_x": True, "grad_y": True}
    schema = torch.ops.fused_ssim.ssim_sums.default._schema
    return tuple(values[argument.name] for argument in schema.arguments)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", ["ssim_map", "ssim_map_backward", "ssim_sums", "ssim_sums of samples", "scale_"])
def test_opcheck(kernel_once, name, layout):
    op = getattr(ops._operators(kernel_once.name), name.split()[0]).default
    opcheck(op, arguments(name, kernel_once.device, layout), raise_exception=True)


CALLS = {
    "ssim mean": lambda x, y, b: fused_ssim.ssim(x, y, backend=b),
    "ssim none": lambda x, y, b: fused_ssim.ssim(x, y, reduction="none", backend=b).square().sum(),
    "ssim_loss sample": lambda x, y, b: fused_ssim.ssim_loss(
        x, y, reduction="sample", padding="reflect", backend=b
    ).sum(),
    "weights": lambda x, y, b: fused_ssim.ssim(x, y, weight=y.detach(), backend=b),
    "l1_ssim_loss": lambda x, y, b: fused_ssim.l1_ssim_loss(x, y, padding="valid", backend=b),
    "pyramid": lambda x, y, b: fused_ssim.pyramid_ssim_loss(
        [x, x[..., ::2]], [y, y[..., ::2]], normalize="channel", backend=b
    ),
    "ranges": lambda x, y, b: fused_ssim.pyramid_ssim_loss([x], [y], normalize="sample", detach_range=False, backend=b),
    "components": lambda x, y, b: sum(t.mean() for t in fused_ssim.ssim_components(x, y, backend=b)),
}


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", CALLS)
def test_compiles_whole_forward_and_backward(kernel_once, name):
    """aot_eager traces everything that inductor would, and needs no C++ compilation."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def step(x, y):
        return CALLS[name](x * 1.5, y, kernel_once.name)

    compiled = torch.compile(step, backend=counter, fullgraph=True)
    for seed in range(3):
        x, y = (t.to(kernel_once.device) for t in pair(SHAPE, seed=seed))
        for got, want in zip(gradients(compiled, x, y), gradients(step, x, y), strict=True):
            assert_close(got, want, LIMIT.gradient, name)
    assert counter.frame_count == 1, "the second call of the same shape compiled again"


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", CALLS)
def test_compiled_autograd_traces_the_whole_backward(kernel_once, name):
    """The forward pass runs eagerly, and its backward is compiled."""

    def step(x, y):
        return CALLS[name](x, y, kernel_once.name) * 3

    x, y = (t.to(kernel_once.device).requires_grad_() for t in pair(SHAPE))
    _, *want = gradients(step, x, y)
    value = step(x, y).sum()
    with compiled_autograd._enable(partial(torch.compile, backend="aot_eager", fullgraph=True)):
        value.backward()
    for got, expected in zip((x.grad, y.grad), want, strict=True):
        assert_close(got, expected, LIMIT.gradient, name)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [None, True], ids=["once more", "from the start"])
@pytest.mark.parametrize("name", ["ssim mean", "pyramid"])
def test_compiled_for_other_shapes(kernel_once, name, dynamic):
    """A program for each size would end at torch's limit of eight."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def step(x, y):
        return CALLS[name](x, y, kernel_once.name)

    compiled = torch.compile(step, backend=counter, fullgraph=True, dynamic=dynamic)
    compilations = []
    for height in (13, 20, 31):
        x, y = (t.to(kernel_once.device) for t in pair((2, 3, height, 19)))
        for got, want in zip(gradients(compiled, x, y), gradients(step, x, y), strict=True):
            assert_close(got, want, LIMIT.gradient, f"height {height}")
        compilations.append(counter.frame_count)
    assert len(set(compilations[0 if dynamic else 1 :])) == 1


@pytest.mark.parametrize("reduction", ["mean", "sample", "none"])
def test_exported_for_every_size(kernel_once, reduction):
    class Model(torch.nn.Module):
        def forward(self, x, y):
            return fused_ssim.ssim(x, y, reduction=reduction, backend=kernel_once.name)

    sizes = {0: torch.export.Dim("n", min=2), 2: torch.export.Dim("h", min=2), 3: torch.export.Dim("w", min=2)}
    x, y = (t.to(kernel_once.device) for t in pair(SHAPE))
    model = torch.export.export(Model(), (x, y), dynamic_shapes=(sizes, sizes)).module()
    x, y = (t.to(kernel_once.device) for t in pair((3, 3, 20, 7)))
    assert_close(model(x, y), Model()(x, y), LIMIT.value, "value")


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", ["ssim mean", "pyramid"])
def test_inductor(kernel_once, name):
    def step(x, y):
        return CALLS[name](x.relu() + 0.1, y, kernel_once.name)

    x, y = (t.to(kernel_once.device) for t in pair(SHAPE))
    compiled = torch.compile(step, fullgraph=True)
    for got, want in zip(gradients(compiled, x, y), gradients(step, x, y), strict=True):
        assert_close(got, want, LIMIT.gradient, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("function", ["ssim", "ssim_loss", "l1_ssim_loss"])
def test_autocast_computes_in_float32(backend, function, dtype):
    """Features leave a convolution in 16 bits; what the operator makes of them must not be 16 bits again."""
    x, y = (t.to(backend.device) for t in pair(SHAPE))
    run = getattr(fused_ssim, function)
    want = gradients(run, x, y, backend=backend.name)
    with torch.autocast(backend.device, dtype=dtype):
        got = gradients(run, x, y, backend=backend.name)
        mixed = run(x.to(dtype), y, backend=backend.name)
    assert got[0].dtype == torch.float32
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w)
    assert_close(mixed, run(x.to(dtype).float(), y, backend=backend.name), LIMIT.value, "mixed dtypes")


def test_fake_tensors_follow_the_kernel(kernel_once):
    from torch._subclasses import FakeTensorMode

    for padding, shape in (("same", SHAPE), ("valid", (2, 3, 7, 13))):
        with FakeTensorMode():
            x = torch.empty(SHAPE, device=kernel_once.device)
            options = {"padding": padding, "window_size": 7, "backend": kernel_once.name}
            assert fused_ssim.ssim(x, x, reduction="none", **options).shape == shape
            assert fused_ssim.ssim(x, x, reduction="sample", **options).shape == (2,)
            assert fused_ssim.ssim(x.half(), x.half(), **options).dtype == torch.float32
