"""What autograd relies on: saved tensors, repeated and accumulated backward passes, second derivatives."""

import judge
import pytest
import torch
from judge import assert_close, gradients, pair, tolerance

import fused_ssim

LIMIT = tolerance(torch.float32)
SHAPE = (2, 3, 13, 19)


def inputs(device, needs_y=False):
    x, y = (t.to(device) for t in pair(SHAPE))
    return x.requires_grad_(), y.requires_grad_(needs_y)


def saved_by(function):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        result = function()
    return result, saved


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("needs_y", [False, True])
def test_a_scalar_saves_the_gradient_and_nothing_else(kernel_once, reduction, needs_y):
    x, y = inputs(kernel_once.device, needs_y)
    value, saved = saved_by(lambda: fused_ssim.ssim_loss(x, y, reduction=reduction, backend=kernel_once.name))
    want = torch.autograd.grad(value, (x, y) if needs_y else (x,), retain_graph=True)
    assert [t.shape for t in saved] == [t.shape for t in want]
    for s, w in zip(saved, want, strict=True):
        assert torch.equal(s, w)  # upstream 1: what is saved is the gradient itself
        assert s.data_ptr() not in (x.data_ptr(), y.data_ptr())


def test_a_map_saves_its_inputs_and_nothing_else(kernel_once):
    x, y = inputs(kernel_once.device)
    _, saved = saved_by(lambda: fused_ssim.ssim(x, y, reduction="none", backend=kernel_once.name))
    assert [t.data_ptr() for t in saved] == [x.data_ptr(), y.data_ptr()]


def test_nothing_is_saved_or_computed_without_need(kernel_once):
    x, y = (t.to(kernel_once.device) for t in pair(SHAPE))
    for reduction in ("mean", "none"):
        _, saved = saved_by(lambda r=reduction: fused_ssim.ssim(x, y, reduction=r, backend=kernel_once.name))
        assert not saved
    x.requires_grad_()
    with torch.no_grad():
        value, saved = saved_by(lambda: fused_ssim.ssim(x, y, backend=kernel_once.name))
    assert not saved and not value.requires_grad


def test_no_gradient_for_a_teacher(kernel_once):
    """The operator itself: no memory for a gradient that nobody asked for."""
    x, y = inputs(kernel_once.device)
    allocated = []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        fused_ssim.ssim(x, y, backend=kernel_once.name)
    allocated = [e for e in profile.events() if e.name == "aten::empty_like"]
    assert len(allocated) == 1


@pytest.mark.parametrize("reduction", ["mean", "sample", "level"])
def test_no_gradient_for_a_level_that_needs_none(kernel_once, reduction):
    x, y = inputs(kernel_once.device)
    frozen = x.detach()[..., :9]

    def loss(first, second):
        sides = [first, second], [y, y[..., :9]]
        return fused_ssim.pyramid_ssim_loss(*sides, reduction=reduction, backend=kernel_once.name)

    value, saved = saved_by(lambda: loss(x, frozen))
    assert [t.shape for t in saved] == [x.shape]
    whole = loss(x, frozen.clone().requires_grad_())
    assert_close(value, whole, LIMIT.value, "value")
    upstream = torch.ones_like(value)
    want = torch.autograd.grad(whole, x, upstream)
    assert_close(torch.autograd.grad(value, x, upstream)[0], want[0], LIMIT.gradient, "gradient")


FUNCTIONS = {
    "sum": lambda x, y, w, **k: fused_ssim.ssim(x, y, weight=w, **k),
    "map": lambda x, y, w, **k: fused_ssim.ssim(x, y, reduction="none", padding="valid", **k),
    "l1": lambda x, y, w, **k: fused_ssim.l1_ssim_loss(x, y, weight=w, padding="reflect", **k),
    "ranges": lambda x, y, w, **k: fused_ssim.pyramid_ssim_loss(
        [x, x[:, :, 2:]], [y, y[:, :, 2:]], normalize="channel", detach_range=False, **k
    ),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_one_side_alone_gets_what_both_get(kernel_once, function):
    """Kernels know a gradient of x, or of both: the two sides change places for that of y."""
    x, y = (2 * t for t in inputs(kernel_once.device))
    y = y.flip(3) - 1  # unlike x in its range too
    weight = pair(SHAPE, seed=1)[0].to(kernel_once.device)

    def gradient(*wanted):
        sides = [t.detach().requires_grad_(side in wanted) for side, t in enumerate((x, y))]
        value = FUNCTIONS[function](*sides, weight, backend=kernel_once.name)
        return torch.autograd.grad(value.sum(), [sides[side] for side in wanted])

    for one, want in zip((gradient(0), gradient(1)), gradient(0, 1), strict=True):
        assert_close(one[0], want, LIMIT.gradient, "gradient")


@pytest.mark.parametrize("reduction", ["mean", "sum", "sample", "none"])
def test_backward_twice_gives_the_same(backend, reduction):
    x, y = inputs(backend.device, True)
    value = fused_ssim.ssim(x, y, reduction=reduction, backend=backend.name)
    upstream = torch.full_like(value, 3.0)
    first = torch.autograd.grad(value, (x, y), upstream, retain_graph=True)
    kept = [t.clone() for t in first]
    second = torch.autograd.grad(value, (x, y), upstream, retain_graph=True)
    third = torch.autograd.grad(value, (x, y), upstream)
    for a, b, c, d in zip(first, kept, second, third, strict=True):
        assert torch.equal(a, b) and torch.equal(b, c) and torch.equal(c, d)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradients_accumulate(backend, reduction):
    x, y = inputs(backend.device)
    for _ in range(2):
        fused_ssim.ssim(x, y, reduction=reduction, backend=backend.name).sum().backward()
    twice, x.grad = x.grad, None
    fused_ssim.ssim(x, y, reduction=reduction, backend=backend.name).sum().backward()
    assert torch.equal(twice, 2 * x.grad)


def test_a_graph_used_by_two_losses(backend):
    x, y = inputs(backend.device)
    value = fused_ssim.ssim(x, y, backend=backend.name)
    (value + value * value).backward()
    got, x.grad = x.grad, None
    again = fused_ssim.ssim(x, y, backend=backend.name)
    (one,) = torch.autograd.grad(again, x)
    assert_close(got, one * (1 + 2 * value.item()), LIMIT.gradient, "gradient")


@pytest.mark.parametrize("reduction", ["mean", "sum", "sample", "none"])
def test_a_result_may_be_changed_in_place(backend, reduction):
    """``loss += other``, as training loops write it."""
    x, y = inputs(backend.device)
    (want,) = torch.autograd.grad(fused_ssim.ssim(x, y, reduction=reduction, backend=backend.name).sum(), x)
    value = fused_ssim.ssim(x, y, reduction=reduction, backend=backend.name)
    value += 1
    value *= 2
    (got,) = torch.autograd.grad(value.sum(), x)
    assert_close(got, 2 * want, LIMIT.gradient, "gradient")


@pytest.mark.parametrize("reduction", ["mean", "sample", "level", "none"])
def test_several_upstream_gradients_at_once(backend, reduction):
    """``is_grads_batched``, as ``torch.autograd.functional.jacobian(..., vectorize=True)`` calls it."""
    x, y = inputs(backend.device, True)
    if reduction == "level":
        value = fused_ssim.pyramid_ssim_loss([x, x[..., :9]], [y, y[..., :9]], reduction="level", backend=backend.name)
    else:
        value = fused_ssim.ssim(x, y, reduction=reduction, backend=backend.name)
    upstream = torch.rand(3, *value.shape, device=backend.device)

    def gradient(upstream, **options):
        return torch.autograd.grad(value, (x, y), upstream, retain_graph=True, **options)

    for got in (gradient(upstream, is_grads_batched=True), torch.vmap(gradient)(upstream)):
        for i in range(3):
            for g, w in zip(got, gradient(upstream[i]), strict=True):
                assert_close(g[i], w, LIMIT.gradient, "gradient")


@pytest.mark.parametrize("upstream", [2.5, -1.0, 0.0, 65536.0])
def test_scalar_upstream(backend, upstream):
    x, y = inputs(backend.device)
    (want,) = torch.autograd.grad(fused_ssim.ssim(x, y, backend=backend.name), x)
    (got,) = torch.autograd.grad(fused_ssim.ssim(x, y, backend=backend.name) * upstream, x)
    assert_close(got, want * upstream, LIMIT.gradient, "gradient")


def test_the_same_tensor_twice(backend):
    x, _ = inputs(backend.device)
    value = fused_ssim.ssim(x, x, reduction="sum", backend=backend.name)
    value.backward()
    assert value.item() == pytest.approx(x.numel(), rel=1e-6)
    # x is a maximum of ssim(x, .): what is left is rounding, against partials of size 1 / C2.
    assert x.grad.abs().max() < 1e-2


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivative(backend, reduction):
    x, y = inputs(backend.device)
    value = fused_ssim.ssim(x, y, reduction=reduction, backend=backend.name).sum()
    if backend.name != "reference":
        with pytest.raises(RuntimeError, match=r"second derivative.*backend='reference'"):
            torch.autograd.grad(value, x, create_graph=True)
        return
    (grad,) = torch.autograd.grad(value, x, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), x)
    wide = x.detach().double().requires_grad_()
    (grad,) = torch.autograd.grad(judge.ssim(wide, y.double(), reduction=reduction).sum(), wide, create_graph=True)
    (want,) = torch.autograd.grad(grad.square().sum(), wide)
    assert_close(second, want, 1e-4, "gradient of the squared gradient")


def test_inputs_are_not_written(backend):
    x, y = inputs(backend.device, True)
    before = x.detach().clone(), y.detach().clone()
    for reduction in ("mean", "none"):
        gradients(fused_ssim.ssim, x, y, reduction=reduction, backend=backend.name)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])


def test_checkpointing(backend):
    x, y = inputs(backend.device)
    (want,) = torch.autograd.grad(fused_ssim.ssim(x * 2, y, backend=backend.name), x)
    for reentrant in (False, True):
        value = torch.utils.checkpoint.checkpoint(
            lambda x: fused_ssim.ssim(x * 2, y, backend=backend.name), x, use_reentrant=reentrant
        )
        assert torch.equal(torch.autograd.grad(value, x)[0] if not reentrant else _grad(value, x), want)


def _grad(value, x):
    x.grad = None
    value.backward()
    return x.grad
