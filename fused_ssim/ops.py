"""The operators: schemas, shapes for tracing, and gradients. Kernels register themselves under these names (csrc/).

``ssim_sums``    values and gradients of a whole pyramid in one pass; backward only scales the saved gradients.
``ssim_map``     the map of one pair; ``ssim_map_backward`` recomputes what it needs from x and y.
``scale_``       multiplies gradients in place by a factor that stays on its device, and leaves at once where it is 1.
"""

import contextlib
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .options import SSIMOptions
from .window import kernel_taps

_DEFINITION = "float[] taps, float[] exponents, float c1, float c2, float data_range, str padding, int window_size"

_SCHEMAS = (
    "ssim_sums(Tensor[] x, Tensor[] y, Tensor[] weight, float[] offset, float[] slope, float[] l1, float[] grad_scale, "
    f"{_DEFINITION}, str normalize, bool detach_range, bool per_sample, bool grad_x, bool grad_y) "
    "-> (Tensor, Tensor[], Tensor[])",
    f"ssim_map(Tensor x, Tensor y, {_DEFINITION}) -> Tensor",
    f"ssim_map_backward(Tensor grad, Tensor x, Tensor y, {_DEFINITION}, bool grad_x, bool grad_y) -> (Tensor, Tensor)",
    "scale_(Tensor(a!)[] grads, Tensor factor, float[] divisor) -> ()",
)


def _definition(options: SSIMOptions) -> tuple[list[float], list[float], float, float, float, str, int]:
    return (
        kernel_taps(options.window_size, options.sigma),
        list(options.exponents),
        options.k1**2,
        options.k2**2,
        options.data_range,
        options.padding,
        options.window_size,
    )


_kept_definition = lru_cache(maxsize=64)(_definition)  # for calls that no compiler traces


def _operators(backend: str) -> Any:
    return getattr(torch.ops, NAMESPACES[backend])


def ssim_map(x: Tensor, y: Tensor, options: SSIMOptions, backend: str) -> Tensor:
    """The SSIM map of x and y (N, C, H, W), in their dtype; differentiable once."""
    return _operators(backend).ssim_map(x, y, *_definition(options))


def ssim_sums(
    levels: Sequence[tuple[Tensor, Tensor, Tensor | None]],
    options: SSIMOptions,
    pixels: Sequence[tuple[float, float, float]],
    normalize: str | None,
    detach_range: bool,
    per_sample: bool,
    total: bool,
    backend: str,
) -> Tensor:
    """For each level the sum over pixels of ``weight * (offset + slope * SSIM) + l1 * |x - y|``, (L,) or (L, N).

    pixels holds (offset, slope, l1) of each level; ``total`` sums over the levels: () or (N,). Differentiable once with
    respect to x and y.
    """
    xs, ys = [level[0] for level in levels], [level[1] for level in levels]
    weights = [level[2] for level in levels if level[2] is not None]
    offset, slope, l1 = (list(column) for column in zip(*pixels, strict=True))
    grad_scale = [1.0] * len(levels)
    if xs[0].dtype == torch.float16:
        # The gradient of a mean underflows in float16, so that of a sum is saved, and the upstream factor divided.
        grad_scale = [1.0 / max(abs(s), abs(a), 1e-30) for s, a in zip(slope, l1, strict=True)]
    enabled = torch.is_grad_enabled()
    needs_x, needs_y = {x.requires_grad for x in xs}, {y.requires_grad for y in ys}
    grad_x, grad_y = enabled and True in needs_x, enabled and True in needs_y
    if enabled and len(needs_x) + len(needs_y) > 2:
        # The operator computes the gradient of a side for all levels or for none.
        alike = (normalize, detach_range, per_sample, False, backend)
        parts = [ssim_sums([level], options, [pixel], *alike) for level, pixel in zip(levels, pixels, strict=True)]
        return torch.cat(parts).sum(0) if total else torch.cat(parts)
    compiling = torch.compiler.is_compiling()
    definition = _definition(options) if compiling else _kept_definition(options)
    rest = (normalize or "", detach_range, per_sample, grad_x, grad_y)
    arguments = (weights, offset, slope, l1, grad_scale, *definition, *rest)
    operators = _operators(backend)
    if not compiling and (grad_x or grad_y):
        return _Sums.apply(operators, arguments, total, *xs, *ys)
    with contextlib.nullcontext() if compiling else _below_autograd():
        values = operators.ssim_sums(xs, ys, *arguments)[0]
        return sum_of_levels(values) if total else values


def sum_of_levels(values: Tensor) -> Tensor:
    """The sum over the first axis of (L,) or (L, N); the values themselves change their shape where L is 1."""
    # In place: autograd lets nobody write to a view that was made inside a function of its own (`loss += other`).
    return values.squeeze_(0) if len(values) == 1 else values.sum(0)


def _value_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _fake_sums(x, y, weight, offset, slope, l1, grad_scale, *rest):
    per_sample, grad_x, grad_y = rest[-3:]
    shape = (len(x), x[0].shape[0]) if per_sample else (len(x),)
    values = x[0].new_empty(shape, dtype=_value_dtype(x[0]))
    return (
        values,
        [torch.empty_like(t) for t in x] if grad_x else [],
        [torch.empty_like(t) for t in y] if grad_y else [],
    )


def _fake_map(x, y, taps, exponents, c1, c2, data_range, padding, window_size):
    n, c, h, w = x.shape
    margin = window_size - 1 if padding == "valid" else 0
    return x.new_empty((n, c, h - margin, w - margin))


def _fake_map_backward(grad, x, y, *rest):
    grad_x, grad_y = rest[-2:]
    return (
        torch.empty_like(x) if grad_x else x.new_empty((0,)),
        torch.empty_like(y) if grad_y else y.new_empty((0,)),
    )


def _fake_scale(grads, factor, divisor):
    return None


def _refuse_double_backward() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "fused_ssim: the compiled kernels have no second derivative; pass backend='reference' for create_graph=True"
        )


# Where autograd has nothing to record, so that a call does not walk through torch.library's part of it, in Python.
_below_autograd = getattr(torch._C, "_AutoDispatchBelowAutograd", contextlib.nullcontext)


def _keeps_graph() -> bool:
    """Whether the running backward was called with retain_graph, so that saved tensors must stay as they are."""
    keeps = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if keeps is None else bool(keeps())


class _Saved(NamedTuple):
    """What the backward pass of ``ssim_sums`` knows besides the saved gradients."""

    levels: int
    has_x: bool
    has_y: bool
    grad_scale: list[float]
    total: bool = False


def _changes_nothing(factor: Tensor, saved: _Saved) -> bool:
    """Whether that is known without waiting for a device, and sooner than ``scale_`` would find it out."""
    one = factor.numel() == 1 and factor.device.type == "cpu"
    return one and saved.grad_scale == [factor.item()] * saved.levels


def _is_batched(factor: Tensor) -> bool:
    """Whether autograd computes several gradients at once: inside of vmap, or with is_grads_batched."""
    return torch._C._functorch.is_batchedtensor(factor) or torch._C._functorch.is_legacy_batchedtensor(factor)


def _scaled(operators: Any, saved: _Saved, grads: list[Tensor], factor: Tensor) -> tuple[list, list]:
    """The saved gradients of the xs, and of the ys, times the upstream factor of each level (and sample)."""
    traced = torch.compiler.is_compiling() or _is_batched(factor) or any(type(grad) is not Tensor for grad in grads)
    if not traced:
        # A new alias of each saved gradient, so that autograd can adopt it as .grad instead of copying it.
        grads = [grad.clone() if _keeps_graph() else grad.detach() for grad in grads]
    if traced or not _changes_nothing(factor, saved):
        if saved.total:
            factor = factor.unsqueeze(0).expand(saved.levels, *factor.shape)
        sides = int(saved.has_x) + int(saved.has_y)
        if traced:  # in operators that a compiler fuses, and that vmap knows
            shape = (-1, 1, 1, 1) if factor.dim() == 2 else ()
            factors = [factor[i].reshape(shape) / scale for i, scale in enumerate(saved.grad_scale)] * sides
            grads = [(grad * by).to(grad.dtype) for grad, by in zip(grads, factors, strict=True)]
        else:
            operators.scale_(grads, torch.cat([factor] * 2) if sides == 2 else factor, saved.grad_scale * sides)
    none = [None] * saved.levels
    return grads[: saved.levels] if saved.has_x else none, grads[-saved.levels :] if saved.has_y else none


class _Sums(torch.autograd.Function):
    """``ssim_sums`` where nothing is traced: torch.library's own autograd walks through every argument in Python, which
    takes longer than a small pyramid."""

    @staticmethod
    def forward(ctx, operators, arguments, total, *tensors):
        levels, grad_scale = len(tensors) // 2, arguments[4]
        with _below_autograd():
            values, grads_x, grads_y = operators.ssim_sums(list(tensors[:levels]), list(tensors[levels:]), *arguments)
            if total:  # here, where it is no node of its own in the graph
                values = sum_of_levels(values)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*grads_x, *grads_y)
        ctx.operators, ctx.saved = operators, _Saved(levels, bool(grads_x), bool(grads_y), grad_scale, total)
        return values

    @staticmethod
    def backward(ctx, grad_values):
        _refuse_double_backward()
        if grad_values is None:
            return None, None, None, *[None] * (2 * ctx.saved.levels)
        grads_x, grads_y = _scaled(ctx.operators, ctx.saved, list(ctx.saved_tensors), grad_values)
        return None, None, None, *grads_x, *grads_y


def _sums_setup_context(ctx, inputs, output):
    x, grad_scale = inputs[0], inputs[6]
    _, grads_x, grads_y = output
    ctx.set_materialize_grads(False)  # zeros as large as x for the saved gradients, which nobody differentiates
    ctx.save_for_backward(*grads_x, *grads_y)
    ctx.saved = _Saved(len(x), bool(grads_x), bool(grads_y), list(grad_scale))
    ctx.weights, ctx.other_inputs = len(inputs[2]), len(inputs) - 3


def _sums_backward(operators, ctx, grad_values, *_):
    _refuse_double_backward()
    rest = [None] * ctx.weights, *[None] * ctx.other_inputs
    if grad_values is None:  # nothing was made of the values
        return [None] * ctx.saved.levels, [None] * ctx.saved.levels, *rest
    return *_scaled(operators, ctx.saved, list(ctx.saved_tensors), grad_values), *rest


def _map_setup_context(ctx, inputs, output):
    x, y, *definition = inputs
    ctx.save_for_backward(x, y)
    ctx.definition = definition


def _map_backward(operators, ctx, grad):
    _refuse_double_backward()
    x, y = ctx.saved_tensors
    need_x, need_y = ctx.needs_input_grad[:2]
    grad_x, grad_y = operators.ssim_map_backward(grad, x, y, *ctx.definition, need_x, need_y)
    return grad_x if need_x else None, grad_y if need_y else None, *[None] * len(ctx.definition)


def define(namespace: str) -> None:
    """Define the operators in a namespace of torch.ops: schemas, fakes and gradients; kernels then register there."""
    library = torch.library.Library(namespace, "DEF")
    _libraries.append(library)
    for schema in _SCHEMAS:
        library.define(schema)
    for name, fake in (
        ("ssim_sums", _fake_sums),
        ("ssim_map", _fake_map),
        ("ssim_map_backward", _fake_map_backward),
        ("scale_", _fake_scale),
    ):
        torch.library.register_fake(f"{namespace}::{name}", fake, lib=library)
    operators = getattr(torch.ops, namespace)
    for name, backward, setup_context in (
        ("ssim_sums", _sums_backward, _sums_setup_context),
        ("ssim_map", _map_backward, _map_setup_context),
    ):
        torch.library.register_autograd(
            f"{namespace}::{name}", partial(backward, operators), setup_context=setup_context, lib=library
        )


_libraries: list[torch.library.Library] = []  # definitions live as long as these

NAMESPACES = {"cpu": "fused_ssim", "cuda": "fused_ssim", "triton": "fused_ssim_triton"}
"""Where in torch.ops each backend's kernels are registered: the compiled ones share names and differ by device."""

for _namespace in sorted(set(NAMESPACES.values())):
    define(_namespace)
