"""Bad input: a ValueError or TypeError that names the argument, what came and what is accepted."""

import re

import pytest
import torch
from judge import pair

import fused_ssim
from fused_ssim import compat

X, Y = pair((2, 3, 16, 17))
FUNCTIONS = ["ssim", "ssim_loss", "l1_ssim_loss", "ssim_components"]

OPTIONS = [
    ({"window_size": 4}, ValueError, "window_size.*odd.*4"),
    ({"window_size": 0}, ValueError, "window_size.*0"),
    ({"window_size": -3}, ValueError, "window_size.*-3"),
    ({"window_size": 7.0}, TypeError, "window_size.*float"),
    ({"window_size": True}, TypeError, "window_size.*bool"),
    ({"padding": "valid", "window_size": 17}, ValueError, "padding='valid'.*17.*16"),
    ({"padding": "zeros"}, ValueError, "padding.*same.*zeros"),
    ({"sigma": 0.0}, ValueError, "sigma.*0"),
    ({"sigma": -1.0}, ValueError, "sigma.*-1"),
    ({"sigma": float("nan")}, ValueError, "sigma.*nan"),
    ({"sigma": "1"}, TypeError, "sigma.*str"),
    ({"data_range": 0}, ValueError, "data_range.*0"),
    ({"data_range": -255}, ValueError, "data_range.*-255"),
    ({"data_range": float("inf")}, ValueError, "data_range.*inf"),
    ({"data_range": torch.ones(())}, TypeError, "data_range.*Tensor"),
    ({"k1": 0.0}, ValueError, "k1.*0"),
    ({"k2": -0.1}, ValueError, "k2.*-0.1"),
    ({"exponents": (1.0, 1.0)}, ValueError, "exponents.*three"),
    ({"exponents": 1.0}, ValueError, "exponents.*three.*1.0"),
    ({"exponents": (1.0, -1.0, 1.0)}, ValueError, "exponents.*-1.0"),
    ({"exponents": (1.0, "a", 1.0)}, TypeError, "exponents.*a"),
    ({"exponents": (1.0, float("nan"), 1.0)}, ValueError, "exponents.*nan"),
    ({"reduction": "average"}, ValueError, "reduction.*mean.*average"),
    ({"reduction": None}, ValueError, "reduction.*None"),
    ({"weight": torch.ones(5)}, ValueError, r"weight.*\(5,\)"),
    ({"weight": torch.ones(1, 2, 3, 16, 17)}, ValueError, "weight"),
    ({"weight": torch.ones(17, dtype=torch.int64)}, TypeError, "weight.*int64"),
    ({"weight": [1.0]}, TypeError, "weight.*list"),
    ({"weight": torch.ones(17, device="meta")}, ValueError, "weight.*device.*meta"),
    ({"weight": torch.ones(2, 3, 16, 17).to_sparse()}, TypeError, "weight.*dense.*sparse_coo"),
    ({"backend": "opencl"}, ValueError, "backend.*opencl"),
]


@pytest.mark.parametrize(("options", "kind", "message"), OPTIONS, ids=lambda v: str(v)[:40])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_options(function, options, kind, message):
    with pytest.raises(kind, match=f"(?s){message}"):
        getattr(fused_ssim, function)(X, Y, **options)
    if "weight" not in options:
        with pytest.raises(kind, match=f"(?s){message}"):
            fused_ssim.pyramid_ssim_loss([X], [Y], **options)


INPUTS = [
    (X, Y[:1], ValueError, r"x and y.*shape.*\(2, 3, 16, 17\).*\(1, 3, 16, 17\)"),
    (X, Y[0], ValueError, "x and y.*shape"),
    (X[0, 0], Y[0, 0], ValueError, r"x.*\(N, C, H, W\).*\(16, 17\)"),
    (X[None], Y[None], ValueError, "x must have shape"),
    (X, Y.double(), TypeError, "x and y.*dtype.*float32.*float64"),
    (X.int(), Y.int(), TypeError, "x must be float16.*int32"),
    (X, Y.bool(), TypeError, "y must be float16.*bool"),
    (X.to(torch.complex64), Y, TypeError, "x must be float16.*complex64"),
    (X[:0], Y[:0], ValueError, r"x and y.*empty.*\(0, 3, 16, 17\)"),
    (X[..., :0], Y[..., :0], ValueError, "x and y.*empty"),
    (X, Y.to("meta"), ValueError, "x and y.*device.*cpu.*meta"),
    (X.to("meta"), Y.to("meta", torch.float16), TypeError, "x and y.*dtype.*float32.*float16"),
    (X, Y.to_sparse(), TypeError, "y must be a dense tensor.*sparse_coo"),
    (X.numpy(), Y, TypeError, "x must be a torch.Tensor.*ndarray"),
    (X, None, TypeError, "y must be a torch.Tensor.*NoneType"),
]


@pytest.mark.parametrize(("x", "y", "kind", "message"), INPUTS, ids=[row[3][:30] for row in INPUTS])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_inputs(function, x, y, kind, message):
    with pytest.raises(kind, match=message):
        getattr(fused_ssim, function)(x, y)
    # Of a pyramid, the message names the level.
    message = re.sub(r"^([xy])\b", r"\1s\\[1\\]", message).replace("and y", r"and ys\[1\]")
    with pytest.raises(kind, match=message):
        fused_ssim.pyramid_ssim_loss([X, x], [Y, y])


PYRAMIDS = [
    (X, Y, {}, TypeError, "xs and ys.*sequence"),
    ([X], [Y, Y], {}, ValueError, "xs and ys.*1 and 2"),
    ([], [], {}, ValueError, "xs and ys.*0"),
    ([X, X.double()], [Y, Y.double()], {}, ValueError, "xs.*dtype.*float32.*float64"),
    ([X], [Y], {"normalize": "batch"}, ValueError, "normalize.*tensor.*batch"),
    ([X], [Y], {"level_weights": [1.0, 2.0]}, ValueError, "level_weights.*1 levels.*2"),
    ([X], [Y], {"level_weights": 2.0}, TypeError, "level_weights.*sequence.*2.0"),
    ([X], [Y], {"level_weights": ["a"]}, TypeError, "level_weights.*a"),
    ([X], [Y], {"level_weights": [float("nan")]}, ValueError, "level_weights.*nan"),
    ([X], [Y], {"weight": []}, ValueError, "weight.*1 levels.*0"),
    ([X], [Y], {"weight": torch.ones(1, 16, 17)}, TypeError, "weight.*sequence.*single tensor"),
    ([X], [Y], {"weight": 3.0}, TypeError, "weight must be a sequence.*float"),
    ([X, X], [Y, Y], {"weight": [torch.ones(17), None]}, TypeError, "weight.*each.*None for level 1"),
    ([X, X], [Y, Y], {"weight": [torch.ones(17), torch.ones(3)]}, ValueError, r"weight\[1\].*map.*\(3,\)"),
    (None, [Y], {}, TypeError, "xs must be a sequence.*NoneType"),
    ([X], 3, {}, TypeError, "ys must be a sequence.*int"),
    ([X, X[:1]], [Y, Y[:1]], {"reduction": "sample"}, ValueError, r"reduction='sample'.*\[2, 1\]"),
    ([1], [2], {"reduction": "sample"}, TypeError, r"xs\[0\] must be a torch.Tensor.*int"),
]


@pytest.mark.parametrize(("xs", "ys", "options", "kind", "message"), PYRAMIDS, ids=[row[4] for row in PYRAMIDS])
def test_pyramids(xs, ys, options, kind, message):
    with pytest.raises(kind, match=message):
        fused_ssim.pyramid_ssim_loss(xs, ys, **options)


@pytest.mark.parametrize(
    ("value", "kind"), [(1.5, ValueError), (-0.1, ValueError), (float("nan"), ValueError), ("a", TypeError)]
)
def test_ssim_weight(value, kind):
    with pytest.raises(kind, match=f"ssim_weight.*({value}|str)"):
        fused_ssim.l1_ssim_loss(X, Y, ssim_weight=value)


def test_level_is_for_pyramids():
    with pytest.raises(ValueError, match=r"reduction.*level"):
        fused_ssim.ssim(X, Y, reduction="level")


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_forced_backend_says_why_it_cannot(name):
    with pytest.raises(RuntimeError, match=f"backend '{name}'.*: .{{10,}}"):
        fused_ssim.ssim(X, Y, backend=name)


def test_cpu_refuses_other_devices():
    with pytest.raises(RuntimeError, match=r"backend 'cpu'.*'cpu'.*'meta'"):
        fused_ssim.ssim(X.to("meta"), Y.to("meta"), backend="cpu")


def test_drop_ins():
    with pytest.raises(ValueError, match=r"padding.*reflect"):
        fused_ssim.fused_ssim(X, Y, padding="reflect")
    with pytest.raises(ValueError, match=r"img1 and img2.*shape.*\(2, 3, 16, 17\).*\(1, 3, 16, 17\)"):
        fused_ssim.fused_ssim(X, Y[:1])
    with pytest.raises(TypeError, match=r"img2 must be a torch.Tensor.*NoneType"):
        fused_ssim.fused_ssim(X, None)
    with pytest.raises(ValueError, match=r"same dimensions"):
        compat.pytorch_msssim.ssim(X, Y[:1])
    with pytest.raises(ValueError, match=r"odd"):
        compat.pytorch_msssim.ssim(X, Y, win_size=4)


CALLS = {
    "taps": lambda d: [X, Y, d[0][:-1], *d[1:]],
    "window": lambda d: [X, Y, *d[:-1], 13],
    "shape": lambda d: [X, Y[:1], *d],
    "axes": lambda d: [X[0], Y[0], *d],
    "dtype": lambda d: [X, Y.double(), *d],
    "integers": lambda d: [X.int(), Y.int(), *d],
    "valid": lambda d: [X[..., :4], Y[..., :4], *d[:-2], "valid", 11],
}


@pytest.mark.parametrize("name", CALLS)
def test_the_operator_itself_refuses_what_would_crash(kernel_once, name):
    x, y, *definition = CALLS[name](list(fused_ssim.ops._definition(fused_ssim.options.SSIMOptions())))
    x, y = x.to(kernel_once.device), y.to(kernel_once.device)
    with pytest.raises(RuntimeError, match=r"fused_ssim: |Dimension out of range"):  # not the operator's name alone
        fused_ssim.ops._operators(kernel_once.name).ssim_map(x, y, *definition)


GRAD = torch.ones(2, 3, 4, 5)
SCALES = {
    "samples": ([GRAD], torch.ones(1, 1), [2.0]),
    "dtype": ([GRAD.int()], torch.ones(1), [2.0]),
    "empty": ([GRAD[..., :0]], torch.ones(1), [2.0]),
}


@pytest.mark.skipif(fused_ssim.native._C is None, reason="the compiled part is missing")
@pytest.mark.parametrize("name", SCALES)
def test_scaling_refuses_what_would_crash(name):
    with pytest.raises(RuntimeError, match="fused_ssim"):
        torch.ops.fused_ssim.scale_(*SCALES[name])
