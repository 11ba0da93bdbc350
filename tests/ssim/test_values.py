"""Values and gradients of every backend against float64 autograd of the reference."""

from functools import cache

import judge
import pytest
import torch
from judge import assert_close, gradients, judged, pair, tolerance

import fused_ssim
from fused_ssim import dispatch, native

SMALL = [(1, 1), (1, 40), (3, 40), (5, 5), (7, 10), (13, 19), (4, 11), (11, 11), (40, 1), (6, 2), (23, 33), (12, 64)]
CUT = [
    (1, 1, 7, 321),  # two column strips
    (1, 1, 12, 775),  # more strips, of odd width
    (1, 1, 259, 17),  # two bands of rows
    (2, 1, 391, 330),  # strips and bands
    (1, 1, 66, 23),  # bands narrower than the window
]
EXPONENTS = [(1.0, 1.0, 1.0), (0.5, 0.7, 0.7), (1.0, 0.3, 1.2), (0.0, 1.0, 0.0), (2.0, 1.0, 1.0), (1.0, 0.0, 0.0)]
PADDINGS = ["same", "reflect", "valid"]


@cache
def expected(shape, function, with_upstream=False, **options):
    x, y = pair(shape)
    options = dict(options, exponents=options.get("exponents", (1.0, 1.0, 1.0)))
    return judged(getattr(judge, function), x, y, upstream(shape, options) if with_upstream else None, **options)


def upstream(shape, options):
    margin = options.get("window_size", 11) - 1 if options.get("padding") == "valid" else 0
    n, c, h, w = shape
    return torch.randn(n, c, h - margin, w - margin, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def check(backend, shape, function="ssim", dtype=torch.float32, with_upstream=False, **options):
    """Value and both gradients, for upcast equal inputs, against the judge."""
    if options.get("padding") == "valid" and min(shape[-2:]) < options.get("window_size", 11):
        pytest.skip("a 'valid' map of this shape would be empty")
    x, y = (t.to(dtype).to(backend.device) for t in pair(shape))
    seed = upstream(shape, options).to(backend.device) if with_upstream else None
    got = gradients(getattr(fused_ssim, function), x, y, seed, backend=backend.name, **options)
    flat = options.get("window_size") == 1 or (shape[-2:] == (1, 1) and options.get("padding") == "reflect")
    limit = tolerance(dtype, options.get("exponents", (1.0, 1.0, 1.0)), flat)
    want = expected(shape, function, with_upstream, **options)
    assert_close(got[0].cpu(), want[0], limit.value, "value")
    assert_close(got[1].cpu(), want[1], limit.gradient, "gradient by x")
    assert_close(got[2].cpu(), want[2], limit.gradient, "gradient by y")


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("exponents", EXPONENTS, ids=str)
@pytest.mark.parametrize("shape", SMALL, ids=lambda s: f"{s[0]}x{s[1]}")
def test_sum_and_its_gradients(backend, shape, exponents, padding):
    check(backend, (2, 3, *shape), reduction="sum", exponents=exponents, padding=padding)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_value_alone_where_nothing_needs_a_gradient(backend, reduction):
    x, y = pair((2, 3, 13, 19))
    value = fused_ssim.ssim(x.to(backend.device), y.to(backend.device), reduction=reduction, backend=backend.name)
    assert not value.requires_grad
    limit = tolerance(torch.float32).value
    assert_close(value.cpu(), judge.ssim(x.double(), y.double(), reduction=reduction), limit, "value")


@pytest.mark.parametrize("window_size", [5, 11])
def test_errors_of_pixels_cancel(backend, window_size):
    """A variance is a small difference: were the squares' filter to differ from the means' by a rounding, every pixel
    would be wrong by the same 3e-8, which a sum over a million pixels shows and a small one does not."""
    x, y = pair((1, 4, 64, 64))
    options = {"reduction": "none", "window_size": window_size}
    value = fused_ssim.ssim(x.to(backend.device), y.to(backend.device), backend=backend.name, **options)
    # Tensor cores cut off their sums, of means and of squares alike.
    limit = 5e-7 if backend in (("triton", "cuda"), ("triton-compiled", "cpu")) else 2e-8
    assert (value.cpu().double() - judge.ssim(x.double(), y.double(), **options)).mean().abs() < limit


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("exponents", EXPONENTS, ids=str)
@pytest.mark.parametrize("shape", [(7, 10), (23, 33)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_map_under_any_upstream_gradient(backend, shape, exponents, padding):
    check(backend, (2, 3, *shape), "ssim", with_upstream=True, reduction="none", exponents=exponents, padding=padding)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", CUT, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_planes_cut_into_strips_and_bands(backend, shape, padding, reduction):
    check(backend, shape, "ssim", with_upstream=reduction == "none", reduction=reduction, padding=padding)


@pytest.mark.parametrize("exponents", [(0.5, 0.7, 0.7), (1.0, 0.3, 1.2)], ids=str)
@pytest.mark.parametrize("padding", PADDINGS)
def test_cut_planes_with_other_exponents(kernel, padding, exponents):
    check(kernel, (1, 1, 261, 333), reduction="sum", padding=padding, exponents=exponents)


def test_the_shapes_above_are_really_cut():
    if native._C is None:
        pytest.skip(native.error)
    plans = [native._C.plan_cpu(n * c, h, w) for n, c, h, w in CUT]
    assert [plan["strips"] > 1 for plan in plans] == [True, True, False, True, False]
    assert [plan["bands"] > 1 for plan in plans] == [False, False, True, True, True]


@pytest.mark.parametrize("kernel", ["cpu-AVX-512", "cpu-AVX2", "cpu-baseline"], indirect=True)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", [(1, 64, 32, 512), (1, 1, 262, 1024)], ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_lanes_a_multiple_of_4096_bytes_apart(kernel, shape, padding, reduction):
    """Planes, or bands of one plane, whose rows share so few places of a cache that the CPU kernel copies them."""
    check(kernel, shape, with_upstream=reduction == "none", reduction=reduction, padding=padding)


@pytest.mark.parametrize("padding", PADDINGS)
def test_last_strip_of_one_column(kernel_once, padding):
    shape = (
        1,
        1,
        11,
        80 * 80 + 1,
    )  # 81 strips of the CPU kernel's 80 columns, which a "valid" map may leave nothing of
    check(kernel_once, shape, reduction="sum", padding=padding)
    x, y = pair(shape)
    alone = fused_ssim.ssim(
        x.to(kernel_once.device), y.to(kernel_once.device), padding=padding, backend=kernel_once.name
    )
    assert_close(
        alone.cpu(), judge.ssim(x.double(), y.double(), padding=padding), tolerance(torch.float32).value, "value"
    )


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("columns", [1, 2, 4, 5, 6, 9, 10, 11])
def test_what_a_narrow_last_strip_leaves_to_its_neighbour(columns, padding):
    """A window of the strip before it reaches past the border too."""
    reason = dispatch.unavailable("cpu", "cpu")
    if reason is not None:
        pytest.skip(reason)
    x, y = pair((1, 1, 11, 80 * 80 + columns))
    got = gradients(fused_ssim.ssim, x, y, None, backend="cpu", padding=padding)
    want = judged(judge.ssim, x, y, None, padding=padding)
    alone = fused_ssim.ssim(x, y, backend="cpu", padding=padding)
    for value, expectation in zip((*got, alone), (*want, want[0]), strict=True):
        assert_close(value, expectation, 2e-6, f"last strip of {columns}")


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("window_size", [1, 3, 5, 7, 9, 11, 13])
def test_window_sizes(backend, window_size, padding):
    if window_size > 11 and backend.name != "reference":
        with pytest.raises(RuntimeError, match=r"window.*11.*13"):
            check(backend, (1, 2, 17, 20), window_size=window_size)
        return
    check(backend, (1, 2, 17, 20), reduction="sum", window_size=window_size, padding=padding, sigma=1.1)


def test_windows_above_eleven_take_the_reference():
    x, y = pair((1, 2, 17, 20), torch.float64)
    assert_close(fused_ssim.ssim(x, y, window_size=13), judge.ssim(x, y, window_size=13), 1e-15, "value")


@pytest.mark.parametrize(
    "options", [{"sigma": 0.4}, {"sigma": 5.0}, {"k1": 0.2}, {"k2": 0.3}, {"data_range": 3.0}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_other_constants_and_dtypes(backend, dtype, options):
    if dtype == torch.float32:
        check(backend, (2, 2, 14, 15), reduction="sum", **options)
        return
    x, y = pair((2, 2, 14, 15), dtype)
    want = judged(judge.ssim, x, y, reduction="sum", **options)
    x, y = x.to(backend.device), y.to(backend.device)
    got = gradients(fused_ssim.ssim, x, y, reduction="sum", backend=backend.name, **options)
    for g, w, limit in zip(got, want, (tolerance(dtype).value, *[tolerance(dtype).gradient] * 2), strict=True):
        assert_close(g.cpu(), w, limit, "value or gradient")


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("exponents", EXPONENTS, ids=str)
def test_float64(backend, exponents, padding):
    x, y = pair((2, 2, 13, 19), torch.float64)
    options = {"reduction": "sum", "exponents": exponents, "padding": padding}
    want = judged(judge.ssim, x, y, **options)
    got = gradients(fused_ssim.ssim, x.to(backend.device), y.to(backend.device), backend=backend.name, **options)
    # The reference's own float64 result is the judge, so what is left is rounding, amplified as in float32.
    loss = 1.0 if tolerance(torch.float32, exponents) == judge.TOLERANCES[torch.float32] else 20.0
    for g, w in zip(got, want, strict=True):
        assert_close(g.cpu(), w, loss * tolerance(torch.float64).gradient, "value or gradient")


def test_tolerances_refuse_a_zero_gradient_and_a_flipped_sign():
    """The comparison itself: peers' absolute tolerances accept a gradient of a mean that is zero throughout."""
    x, y = pair((2, 3, 40, 40))
    _, grad, _ = judged(judge.ssim_loss, x, y)
    assert grad.abs().max() < 1e-3
    for wrong in (torch.zeros_like(grad), -grad, grad * 1.0001, grad.roll(1, -1)):
        with pytest.raises(AssertionError, match="relative L2"):
            assert_close(wrong, grad, tolerance(torch.float32).gradient, "gradient")
