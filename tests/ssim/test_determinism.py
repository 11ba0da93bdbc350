"""The same bits whatever the number of threads, and from run to run."""

import pytest
import torch
from judge import gradients, pair

import fused_ssim

SHAPES = [(2, 16, 25, 38), (1, 3, 300, 700), (8, 4, 13, 19), (1, 1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sample", "none"])
def test_threads(kernel, shape, reduction):
    x, y = (t.to(kernel.device) for t in pair(shape))
    results = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        results.append(gradients(fused_ssim.ssim, x, y, reduction=reduction, backend=kernel.name))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("normalize", ["tensor", "sample", "channel"])
def test_normalised_pyramids(kernel, normalize):
    levels = [pair((2, 8, 30, 40)), pair((2, 8, 15, 20), seed=1), pair((2, 8, 7, 10), seed=2)]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        xs = [x.to(kernel.device).requires_grad_() for x, _ in levels]
        ys = [y.to(kernel.device) for _, y in levels]
        value = fused_ssim.pyramid_ssim_loss(xs, ys, normalize=normalize, backend=kernel.name)
        results.append((value.detach(), *torch.autograd.grad(value, xs)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_calls_from_several_threads(kernel):
    from concurrent.futures import ThreadPoolExecutor

    pairs = [pair((2, 3, 20 + i, 31), seed=i) for i in range(8)]
    want = [gradients(fused_ssim.ssim, x, y, backend=kernel.name) for x, y in pairs]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda p: gradients(fused_ssim.ssim, *p, backend=kernel.name), pairs))
    for one, other in zip(want, got, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)
