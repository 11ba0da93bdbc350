import kornia
import pytest
import torch
from torch.nn import functional as F

from kd.losses import feature_loss
from kd.losses.rescale import min_max


def pyramid(sizes=((16, 20), (8, 10), (6, 7)), channels=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, *size, generator=generator, dtype=torch.float64).float() * 3 + 1 for size in sizes]


def scaled(x, axes):
    """psi, written out with loops."""
    out = torch.empty_like(x)
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            part = {"channel": x[n, c], "sample": x[n], "tensor": x}[axes]
            out[n, c] = (x[n, c] - part.min()) / (part.max() - part.min())
    return out


@pytest.mark.parametrize("axes", ["tensor", "sample", "channel"])
def test_min_max_against_loops(axes):
    x = pyramid()[0]
    torch.testing.assert_close(min_max(x, axes), scaled(x, axes))
    assert min_max(torch.full((1, 2, 3, 3), 7.0), axes).abs().max() == 0


@pytest.mark.parametrize("axes", ["tensor", "sample", "channel"])
def test_ssim_equals_kornia_per_level(axes):
    students, teachers = pyramid(seed=1), pyramid(seed=2)
    ours = feature_loss("ssim", normalize=axes)(students, teachers)
    assert ours.shape == (3,)
    for value, s, t in zip(ours, students, teachers, strict=True):
        expected = kornia.losses.ssim_loss(scaled(s, axes), scaled(t, axes), 11)
        assert abs(value - expected) < 1e-6
        assert 0.05 < expected < 0.95


def paper_ssim(x, y, exponents, window=11, sigma=1.5):
    """l^alpha c^beta s^gamma with explicit windows over a reflected border, pixel by pixel, in float64."""
    x, y = x.double(), y.double()
    taps = torch.exp(-((torch.arange(window, dtype=torch.float64) - window // 2) ** 2) / (2 * sigma**2))
    weights = torch.outer(taps, taps) / taps.sum() ** 2
    c1, c2 = 1e-4, 9e-4
    pad = window // 2
    px, py = (F.pad(v, (pad,) * 4, mode="reflect").unfold(2, window, 1).unfold(3, window, 1) for v in (x, y))
    mean_x, mean_y = ((p * weights).sum((-1, -2)) for p in (px, py))
    dx, dy = px - mean_x[..., None, None], py - mean_y[..., None, None]
    var_x, var_y, cov = ((a * b * weights).sum((-1, -2)) for a, b in ((dx, dx), (dy, dy), (dx, dy)))
    std = (var_x * var_y).sqrt()
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    contrast = (2 * std + c2) / (var_x + var_y + c2)
    structure = (cov + c2 / 2) / (std + c2 / 2)
    return luminance ** exponents[0] * contrast ** exponents[1] * structure ** exponents[2]


@pytest.mark.parametrize("exponents", [(1.0, 1.0, 1.0), (0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 0.0, 0.0)])
def test_ssim_equals_the_papers_formula(exponents):
    students, teachers = pyramid(seed=3), pyramid(seed=4)
    ours = feature_loss("ssim", exponents=exponents)(students, teachers)
    for value, s, t in zip(ours, students, teachers, strict=True):
        expected = ((1 - paper_ssim(scaled(s, "channel"), scaled(t, "channel"), exponents)) / 2).mean()
        assert abs(value.double() - expected) < 2e-6


def test_ssim_on_levels_smaller_than_the_window():
    students, teachers = pyramid(((4, 11), (1, 1), (2, 3)), seed=5), pyramid(((4, 11), (1, 1), (2, 3)), seed=6)
    for s in students:
        s.requires_grad_()
    losses = feature_loss("ssim")(students, teachers)
    losses.sum().backward()
    assert torch.isfinite(losses).all() and losses[0] > 0.05
    assert all(torch.isfinite(s.grad).all() for s in students)


def test_ssim_components_multiply_to_ssim_where_flat_in_space():
    students, teachers = pyramid(seed=3), pyramid(seed=4)
    parts = feature_loss("ssim").components(students, teachers)
    assert parts.shape == (3, 3)
    for row, s, t in zip(parts, students, teachers, strict=True):
        for k, exponents in enumerate(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))):
            expected = paper_ssim(scaled(s, "channel"), scaled(t, "channel"), exponents).mean()
            assert abs(row[k].double() - expected) < 1e-5


def test_l1_and_l2():
    s, t = pyramid(seed=1), pyramid(seed=2)
    for value, a, b in zip(feature_loss("l1")(s, t), s, t, strict=True):
        torch.testing.assert_close(value, (scaled(a, "channel") - scaled(b, "channel")).abs().mean())
    for value, a, b in zip(feature_loss("l2", normalize=None)(s, t), s, t, strict=True):
        torch.testing.assert_close(value, ((a - b) ** 2).mean())


def test_pkd_is_one_minus_correlation():
    s, t = pyramid(seed=1), pyramid(seed=2)
    for value, a, b in zip(feature_loss("pkd")(s, t), s, t, strict=True):
        rows = [torch.corrcoef(torch.stack([a[:, c].flatten(), b[:, c].flatten()]))[0, 1] for c in range(a.shape[1])]
        torch.testing.assert_close(value, 1 - torch.stack(rows).mean(), atol=1e-5, rtol=0)


def test_pkd_dead_channels_have_finite_gradients():
    student = torch.zeros(1, 2, 4, 4)
    student[:, 1] = torch.rand(4, 4)
    student.requires_grad_()
    feature_loss("pkd")([student], [torch.rand(1, 2, 4, 4)]).sum().backward()
    assert torch.isfinite(student.grad).all() and student.grad[:, 1].abs().max() > 0
    assert student.grad[:, 0].abs().max() == 0


def test_cwd_is_the_divergence_of_spatial_softmaxes():
    s, t = pyramid(seed=1)[:1], pyramid(seed=2)[:1]
    (value,) = feature_loss("cwd", temperature=2.0)(s, t)
    p, q = (torch.softmax(x.flatten(2) / 2, -1) for x in (t[0], s[0]))
    torch.testing.assert_close(value, 4 * (p * (p / q).log()).sum(-1).mean())


@pytest.mark.parametrize("loss", ["ssim", "l1", "l2"])
def test_detached_range_changes_the_gradient_not_the_value(loss):
    results = []
    for detach in (True, False):
        student = pyramid(seed=1)[:1]
        student[0].requires_grad_()
        value = feature_loss(loss, detach_range=detach)(student, pyramid(seed=2)[:1]).sum()
        value.backward()
        results.append((value.detach(), student[0].grad))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert (results[0][1] - results[1][1]).abs().max() > 1e-5


@pytest.mark.parametrize("loss", ["ssim", "l1", "l2"])
def test_a_shift_or_scale_of_a_channel_has_no_gradient_by_default(loss):
    """The rescaling undoes both, so a gradient along them could only make the student's biases drift."""
    teacher = pyramid(seed=2)[:1]
    slopes = {}
    for options in ({}, {"detach_range": True}):
        shift, scale = torch.zeros(1, 4, 1, 1, requires_grad=True), torch.ones(1, 4, 1, 1, requires_grad=True)
        feature_loss(loss, **options)([pyramid(seed=1)[0] * scale + shift], teacher).sum().backward()
        slopes[bool(options)] = max(float(shift.grad.abs().max()), float(scale.grad.abs().max()))
    assert slopes[False] < 1e-6 < 1e-3 < slopes[True]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("l3", {}, "loss: got 'l3'"),
        ("l2", {"window_size": 3}, "loss options:.*window_size"),
        ("ssim", {"normalize": "batch"}, "normalize: got 'batch'"),
        ("ssim", {"window_size": -1}, "window_size must be an odd int >= 1, got -1"),
        ("ssim", {"window_size": 11.0}, "window_size must be an odd int >= 1, got float"),
        ("ssim", {"exponents": 1.0}, "exponents must be three numbers.*got 1.0"),
        ("ssim", {"backend": "gpu"}, "backend must be None or one of .*got 'gpu'"),
        ("cwd", {"temperature": 0.0}, "temperature: got 0.0"),
    ],
)
def test_wrong_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        feature_loss(name, **options)
