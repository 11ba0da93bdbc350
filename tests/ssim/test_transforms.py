"""torch.func transforms and forward-mode AD, for which kernels have no rules: the reference serves there."""

import judge
import pytest
import torch
from judge import assert_close, pair, tolerance
from torch.autograd import forward_ad

import fused_ssim

LIMIT = tolerance(torch.float32).gradient
SECOND_LIMIT = 1e-4  # of second derivatives, as in test_autograd.py


@pytest.fixture(params=["cpu", "cuda"])
def device(request) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return request.param


LOSSES = {
    "scalar": fused_ssim.ssim_loss,
    "map": lambda x, y, **options: fused_ssim.ssim(x, y, reduction="none", **options).square().sum(),
    "pyramid": lambda x, y, **options: fused_ssim.pyramid_ssim_loss([x], [y], normalize="channel", **options),
}


def dual(loss, x, y, tangent):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(loss(forward_ad.make_dual(x, tangent), y)).tangent


def dual_without_grad(loss, x, y, tangent):
    with torch.no_grad():
        return dual(loss, x, y, tangent)


TRANSFORMS = {
    "grad": lambda loss, x, y, tangent: torch.func.grad(loss)(x, y),
    "vmap": lambda loss, x, y, tangent: torch.vmap(loss)(x, y),
    "jvp": lambda loss, x, y, tangent: torch.func.jvp(lambda t: loss(t, y), (x,), (tangent,))[1],
    "dual": dual,
    "dual without grad": dual_without_grad,
    "per-sample gradients": lambda loss, x, y, tangent: torch.vmap(torch.func.grad(loss))(x, y),
    "hessian times vector": lambda loss, x, y, tangent: torch.func.jvp(
        torch.func.grad(lambda t: loss(t, y)), (x,), (tangent,)
    )[1],
}


def check(device, transform, loss, compiled=False):
    def transformed(x, y, tangent):
        return TRANSFORMS[transform](loss, x, y, tangent)

    x, y = (t.to(device) for t in pair((2, 3, 16, 18)))
    tangent = torch.rand_like(x)
    wide = (t.double() for t in (x, y, tangent))
    want = TRANSFORMS[transform](lambda x, y: loss(x, y, backend="reference"), *wide)
    got = (torch.compile(transformed, backend="aot_eager") if compiled else transformed)(x, y, tangent)
    assert_close(got, want, SECOND_LIMIT if transform == "hessian times vector" else LIMIT, transform)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_transforms(device, transform, loss):
    check(device, transform, LOSSES[loss])


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "per-sample gradients", "hessian times vector"])
def test_transforms_in_a_compiled_program(device, transform):
    """There too: a tangent of zero without a word would be the least that a kernel did."""
    check(device, transform, fused_ssim.ssim_loss, compiled=True)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_forced_kernel_is_refused(device, transform, loss):
    x, y = (t.to(device) for t in pair((2, 3, 16, 18)))
    backend = fused_ssim.info()["backends"][device]["chosen"]
    if backend == "reference":
        pytest.skip("no kernel serves here")
    with pytest.raises(RuntimeError, match=rf"backend '{backend}' cannot be used: .*torch\.func"):
        TRANSFORMS[transform](lambda x, y: LOSSES[loss](x, y, backend=backend), x, y, torch.rand_like(x))


def test_gradients_of_transforms_are_those_of_autograd(device):
    x, y = (t.to(device) for t in pair((2, 3, 16, 18)))
    wide = x.double().requires_grad_()
    (want,) = torch.autograd.grad(judge.ssim(wide, y.double()), wide)
    assert_close(torch.func.grad(fused_ssim.ssim)(x, y), want, LIMIT, "gradient")
    again = x.requires_grad_()
    (got,) = torch.autograd.grad(fused_ssim.ssim(again, y), again)  # by a kernel once more
    assert_close(got, want, LIMIT, "gradient after the transform")
