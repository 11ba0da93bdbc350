"""pyramid_ssim_loss: normalisation, ranges, level weights, reductions."""

import emulated
import judge
import pytest
import torch
from judge import assert_close, pair, tolerance

import fused_ssim

SHAPES = [(2, 3, 23, 33), (2, 3, 13, 19), (2, 5, 3, 4), (2, 2, 2, 3)]
CUT = [(2, 1, 261, 17), (2, 2, 5, 330), (2, 3, 6, 7)]
LIMIT = tolerance(torch.float32)


def psi(t, normalize, detach_range):
    """Min-max over the axes of ``normalize``, one region after the other."""
    if normalize is None:
        return t
    n, c = t.shape[:2]
    regions = {
        "tensor": [t],
        "sample": list(t.split(1)),
        "channel": [t[i : i + 1, j : j + 1] for i in range(n) for j in range(c)],
    }[normalize]
    done = []
    for region in regions:
        source = region.detach() if detach_range else region
        low, high = source.min(), source.max()
        done.append((region - low) / (high - low) if high > low else region * 0.0)
    if normalize == "channel":
        return torch.cat([torch.cat(done[i * c : (i + 1) * c], 1) for i in range(n)])
    return torch.cat(done)


def expected(xs, ys, normalize, detach_range, factors, reduction, options):
    values = []
    for x, y, factor in zip(xs, ys, factors, strict=True):
        x, y = psi(x, normalize, detach_range), psi(y, normalize, detach_range)
        kind = "mean" if reduction == "level" else reduction
        values.append(factor * judge.ssim_loss(x, y, reduction=kind, **options))
    return values if reduction == "none" else torch.stack(values) if reduction == "level" else sum(values)


def levels(shapes, dtype, device="cpu"):
    pairs = [pair(shape, torch.float64, seed) for seed, shape in enumerate(shapes)]
    # Another range for each channel, so that the kinds of normalisation differ.
    spread = [torch.linspace(1, 4, x.shape[1], dtype=torch.float64).view(1, -1, 1, 1) for x, _ in pairs]
    xs = [(x * s - 0.5).to(dtype).to(device).requires_grad_() for (x, _), s in zip(pairs, spread, strict=True)]
    ys = [(y * s.flip(1) + 2).to(dtype).to(device).requires_grad_() for (_, y), s in zip(pairs, spread, strict=True)]
    return xs, ys


def compare(
    backend,
    shapes,
    normalize,
    detach_range,
    reduction,
    factors,
    limit=LIMIT,
    dtype=torch.float32,
    both=True,
    edit=None,
    **options,
):
    xs, ys = levels(shapes, dtype, backend.device)
    for t in xs + ys if edit else ():
        edit(t.detach())
    if not both:
        ys = [y.detach() for y in ys]
    wide = [[t.detach().cpu().double().requires_grad_() for t in side] for side in (xs, ys)]
    want = expected(*wide, normalize, detach_range, factors, reduction, options)
    got = fused_ssim.pyramid_ssim_loss(
        xs,
        ys,
        normalize=normalize,
        detach_range=detach_range,
        reduction=reduction,
        level_weights=factors,
        backend=backend.name,
        **options,
    )
    pairs = list(zip(got, want, strict=True)) if reduction == "none" else [(got, want)]
    generator = torch.Generator().manual_seed(0)
    total_got, total_want = 0, 0
    for g, w in pairs:
        assert_close(g.cpu(), w, limit.value, "value")
        upstream = torch.rand(w.shape, generator=generator, dtype=torch.float64)
        total_want = total_want + (w * upstream).sum()
        total_got = total_got + (g * upstream.to(g)).sum()
    got_grads = torch.autograd.grad(total_got, xs + ys if both else xs)
    want_grads = torch.autograd.grad(total_want, wide[0] + wide[1] if both else wide[0])
    for i, (g, w) in enumerate(zip(got_grads, want_grads, strict=True)):
        assert_close(g.cpu(), w, limit.gradient, f"gradient {i}")


@pytest.mark.parametrize("reduction", ["mean", "level", "sum", "sample", "none"])
@pytest.mark.parametrize("detach_range", [True, False])
@pytest.mark.parametrize("normalize", [None, "tensor", "sample", "channel"])
def test_values_and_gradients(backend, normalize, detach_range, reduction):
    compare(backend, SHAPES, normalize, detach_range, reduction, [1.0, 0.5, 2.0, 0.25])


@pytest.mark.parametrize("normalize", [None, "tensor", "sample", "channel"])
@pytest.mark.parametrize("padding", ["same", "reflect"])
def test_levels_cut_into_strips_and_bands(backend, normalize, padding):
    compare(backend, CUT, normalize, True, "level", [1.0, 3.0, 0.0], padding=padding)


@pytest.mark.parametrize("padding", ["same", "reflect", "valid"])
@pytest.mark.parametrize("detach_range", [True, False])
@pytest.mark.parametrize("normalize", ["tensor", "sample", "channel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_training(backend, dtype, normalize, detach_range, padding):
    """The student's gradient alone, in one call: whole maps, maps beside each other, rows of four pixels, cut maps."""
    shapes = [(2, 3, 18, 24), *SHAPES[1:3], *CUT[:2]]
    limit = LIMIT if dtype == torch.float32 else judge.Tolerance(LIMIT.value, 1e-3)
    train(backend, shapes, normalize, detach_range, [1.0, 0.5, 2.0, 1.0, 0.5], limit, dtype, padding)


def train(backend, shapes, normalize, detach_range, factors, limit, dtype, padding):
    emulated.forget(backend.name)
    options = judge.window_options(padding, *shapes)
    compare(backend, shapes, normalize, detach_range, "mean", factors, limit, dtype, both=False, **options)
    emulated.check_served(backend.name, padding)


@pytest.mark.parametrize("padding", ["same", "reflect", "valid"])
@pytest.mark.parametrize("detach_range", [True, False])
@pytest.mark.parametrize("normalize", [None, "channel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_distillation(kernel_once, dtype, normalize, detach_range, padding):
    """Levels of a detector: one launch, in which a block has several maps beside each other."""
    shapes = [(1, 8, 25, 38), (1, 8, 13, 19), (1, 8, 7, 10)]
    assert min(level["maps"] for level in emulated.lean_plan(shapes, padding)["levels"]) > 1
    train(kernel_once, shapes, normalize, detach_range, [1.0, 0.5, 2.0], tolerance(dtype), dtype, padding)


@pytest.mark.parametrize("columns", range(1, 12))
def test_narrow_last_strips_of_a_mirrored_level(kernel_once, columns):
    """Windows of the strip before reach past the border too. The first level makes blocks narrow, and so strips."""
    shapes = [(1, 2, 13, 19), (1, 1, 9, 6 * 48 + columns)]
    plan = emulated.lean_plan(shapes, "reflect")
    assert plan["threads"] == 64 and plan["levels"][1]["strips"] == 7 and plan["levels"][1]["strip_columns"] == 48
    train(kernel_once, shapes, None, True, [1.0, 1.0], LIMIT, torch.float32, "reflect")


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("width", [12, 13])
@pytest.mark.parametrize("normalize", ["tensor", "sample", "channel"])
def test_extremes_that_several_pixels_attain(backend, normalize, width, both):
    """A GPU has several blocks look for them, of 18 rows each if it has four multiprocessors: at both ends of those."""

    def edit(t):
        t[:, :, 0, 3] = t[:, :, 17, 5] = t[:, :, 36, 0] = t[:, 1, 69, width - 1] = -3.0
        t[:, :, 18, 1] = t[:, :, 35, 1] = t[:, :, 53, width - 1] = t[:1, :, 54, 0] = 7.0

    compare(backend, [(2, 2, 70, width)], normalize, False, "sum", [1.0], both=both, edit=edit)


@pytest.mark.slow
def test_several_blocks_share_a_plane():
    """Of one plane on four multiprocessors sixteen may look for extremes; each takes eight rows at least."""
    x, y = (t.requires_grad_() for t in pair((1, 1, 70, 12)))
    blocks = []
    with emulated.backend(multiprocessors=4) as name:
        for options in ({}, {"normalize": "tensor"}, {"normalize": "tensor", "detach_range": False}):
            before = emulated.emulator().blocks_run
            fused_ssim.pyramid_ssim_loss([x], [y], backend=name, **options)
            blocks.append(emulated.emulator().blocks_run - before)
    assert blocks[1] - blocks[0] == 9 + 1, "parts, and one block that joins them"
    assert blocks[2] - blocks[1] == 2 + 2 * 9, "one for what each side's extremes receive, and parts that add it"


@pytest.mark.parametrize("normalize", ["tensor", "sample", "channel"])
@pytest.mark.parametrize("exponents", [(1.0, 1.0, 1.0), (0.5, 0.7, 0.7), (1.0, 0.3, 1.2)], ids=str)
def test_normalised_with_exponents_in_float64(backend, normalize, exponents):
    limit = judge.Tolerance(2e-11, 2e-11)
    options = {"dtype": torch.float64, "exponents": exponents, "data_range": 2.0, "window_size": 7}
    compare(backend, SHAPES[:2], normalize, True, "mean", [1.0, 0.5], limit, **options)


def test_only_the_student_needs_a_gradient(backend):
    xs, ys = levels(SHAPES[:3], torch.float32, backend.device)
    both = torch.autograd.grad(fused_ssim.pyramid_ssim_loss(xs, ys, normalize="sample", backend=backend.name), xs + ys)
    for side, other, wanted in ((xs, ys, both[:3]), (ys, xs, both[3:])):
        frozen = [t.detach() for t in other]
        args = (side, frozen) if side is xs else (frozen, side)
        value = fused_ssim.pyramid_ssim_loss(*args, normalize="sample", backend=backend.name)
        for g, w in zip(torch.autograd.grad(value, side), wanted, strict=True):
            assert_close(g, w, LIMIT.gradient, "gradient")


@pytest.mark.parametrize("normalize", ["tensor", "sample", "channel"])
@pytest.mark.parametrize("detach_range", [True, False])
def test_constant_regions_become_zero(backend, normalize, detach_range):
    x = torch.full((2, 2, 8, 9), 7.0, device=backend.device, requires_grad=True)
    y = torch.full((2, 2, 8, 9), -3.0, device=backend.device)
    options = {"normalize": normalize, "detach_range": detach_range, "backend": backend.name}
    value = fused_ssim.pyramid_ssim_loss([x], [y], **options)
    assert abs(value.item()) <= 4 * 2.0**-24 / 2  # (1 - SSIM) / 2, where each of four products and quotients rounds
    value.backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_weights_of_each_level(backend):
    xs, ys = levels(SHAPES[:2], torch.float32, backend.device)
    weight = [torch.rand(2, 1, *shape[2:], device=backend.device) for shape in SHAPES[:2]]
    for reduction in ("mean", "level", "sum", "sample"):
        got = fused_ssim.pyramid_ssim_loss(xs, ys, weight=weight, reduction=reduction, backend=backend.name)
        kind = "mean" if reduction == "level" else reduction
        want = torch.stack(
            [
                judge.ssim_loss(x.double(), y.double(), weight=w.double(), reduction=kind)
                for x, y, w in zip(xs, ys, weight, strict=True)
            ]
        )
        assert_close(got, want if reduction == "level" else want.sum(0), LIMIT.value, reduction)


def test_unbatched_levels(backend):
    xs, ys = levels([(1, 3, 9, 8), (1, 3, 5, 4)], torch.float32, backend.device)
    for reduction in ("mean", "level", "none"):
        options = {"reduction": reduction, "normalize": "channel", "backend": backend.name}
        want = fused_ssim.pyramid_ssim_loss(xs, ys, **options)
        got = fused_ssim.pyramid_ssim_loss([x[0] for x in xs], [y[0] for y in ys], **options)
        if reduction == "none":
            assert all(torch.equal(g, w[0]) for g, w in zip(got, want, strict=True))
        else:
            assert torch.equal(got, want)


def test_module():
    xs, ys = levels(SHAPES[:3], torch.float32)
    settings = {"normalize": "channel", "level_weights": [1.0, 2.0, 3.0], "reduction": "level"}
    got = fused_ssim.PyramidSSIMLoss(**settings)(xs, ys)
    assert torch.equal(got, fused_ssim.pyramid_ssim_loss(xs, ys, **settings))
