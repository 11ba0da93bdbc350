"""A part of the suite with the emulator threads ascending and descending; everywhere else their order is random."""

import emulated
import judge
import pytest
import torch
from cuda_emulator import kernels
from judge import assert_close, gradients, judged, pair, tolerance

import fused_ssim


@pytest.fixture(params=[kernels.ASCENDING, kernels.DESCENDING], ids=["ascending", "descending"])
def backend(request):
    with emulated.backend(order=request.param) as name:
        yield name


@pytest.mark.parametrize("padding", ["same", "reflect", "valid"])
@pytest.mark.parametrize("shape", [(1, 5, 13, 19), (2, 2, 14, 20), (1, 1, 40, 300)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_value_and_gradients(backend, shape, padding, reduction):
    x, y = pair(shape)
    options = {"padding": padding, "reduction": reduction}
    upstream = 1 + pair(judge.ssim(x, y, **options).shape)[0] if reduction == "none" else None
    got = gradients(fused_ssim.ssim, x, y, upstream, backend=backend, **options)
    want = judged(judge.ssim, x, y, upstream, **options)
    for result, expected, name in zip(got, want, ("value", "gradient by x", "gradient by y"), strict=True):
        assert_close(result, expected, tolerance(x.dtype).gradient, name)


@pytest.mark.parametrize("padding", ["same", "reflect", "valid"])
def test_rescaled_pyramid(backend, padding):
    """Against the reference, through autograd; only by x, as in training, where the lean kernel serves."""
    pairs = [pair((2, 3, h, w)) for h, w in ((25, 38), (7, 12))]
    window = judge.window_options(padding, *(x.shape for x, _ in pairs))
    options = {"normalize": "channel", "detach_range": False, **window}
    results = []
    for name, dtype in ((backend, pairs[0][0].dtype), ("reference", torch.float64)):
        xs = [x.detach().to(dtype).requires_grad_() for x, _ in pairs]
        value = fused_ssim.pyramid_ssim_loss(xs, [y.to(dtype) for _, y in pairs], backend=name, **options)
        (3 * value).backward()
        results.append((value, *(x.grad for x in xs)))
    for got, want in zip(*results, strict=True):
        assert_close(got, want, tolerance(got.dtype).gradient, "value or gradient")
