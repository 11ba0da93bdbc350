"""Finite differences in float64: they depend on nobody's derivative."""

import pytest
import torch
from judge import pair
from torch.autograd import gradcheck, gradgradcheck

import fused_ssim


@pytest.mark.parametrize("needs", ["x", "y", "both"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "sample", "none"])
@pytest.mark.parametrize("exponents", [(1.0, 1.0, 1.0), (0.5, 0.7, 0.7), (1.0, 0.3, 1.2)], ids=str)
@pytest.mark.parametrize("padding", ["same", "reflect", "valid"])
def test_ssim(kernel_once, padding, exponents, reduction, needs):
    x, y = (t.to(kernel_once.device) for t in pair((2, 1, 6, 5), torch.float64, seed=4))
    x.requires_grad_(needs != "y")
    y.requires_grad_(needs != "x")
    options = {"padding": padding, "exponents": exponents, "reduction": reduction, "window_size": 5}

    def function(x, y):
        return fused_ssim.ssim(x, y, backend=kernel_once.name, **options)

    assert gradcheck(function, (x, y), eps=1e-7, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("normalize", [None, "tensor", "sample", "channel"])
@pytest.mark.parametrize("weighted", [False, True])
def test_pyramid_with_ranges_that_carry_gradient(kernel_once, normalize, weighted):
    levels = [pair(shape, torch.float64, seed) for seed, shape in enumerate([(2, 2, 6, 5), (2, 2, 3, 4)])]
    flat = [t.to(kernel_once.device).requires_grad_() for level in levels for t in level]
    weight = [torch.rand_like(x, requires_grad=False) for x in flat[::2]] if weighted else None

    def function(a, b, c, d):
        return fused_ssim.pyramid_ssim_loss(
            [a, c],
            [b, d],
            normalize=normalize,
            detach_range=False,
            level_weights=[1.0, 0.4],
            weight=weight,
            reduction="level",
            backend=kernel_once.name,
        )

    assert gradcheck(function, tuple(flat), eps=1e-7, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("reduction", ["mean", "sum", "sample", "none"])
def test_l1_ssim(kernel_once, reduction):
    x, y = (t.to(kernel_once.device).requires_grad_() for t in pair((2, 2, 6, 5), torch.float64))
    assert gradcheck(
        lambda x, y: fused_ssim.l1_ssim_loss(x, y, reduction=reduction, backend=kernel_once.name),
        (x, y),
        eps=1e-7,
        atol=1e-5,
        rtol=1e-4,
    )


@pytest.mark.parametrize("exponents", [(1.0, 1.0, 1.0), (1.0, 0.3, 1.2)], ids=str)
def test_the_reference_twice(exponents):
    x, y = (t.requires_grad_() for t in pair((1, 1, 4, 5), torch.float64))
    assert gradgradcheck(
        lambda x, y: fused_ssim.ssim(x, y, exponents=exponents, window_size=3, backend="reference"), (x, y)
    )
