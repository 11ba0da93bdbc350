"""How the CUDA kernel cuts levels into blocks: a pure function, so no device is needed."""

import timeit
from functools import partial
from typing import NamedTuple

import emulated
import judge
import pytest
import torch
from judge import assert_close, pair, relative_l2

from fused_ssim import native, ssim_loss

FPN = [(256, 100, 152), (256, 50, 76), (256, 25, 38), (256, 13, 19), (256, 7, 10)]
SHAPES = {
    **{f"FPN, N={n}": [(n * planes, h, w) for planes, h, w in FPN] for n in (1, 2, 8, 16)},
    **{f"{level}": [level] for level in FPN},
    "5x5x1080x1920": [(25, 1080, 1920)],
    "3x1080x1920": [(3, 1080, 1920)],
    "3x256x256": [(3, 256, 256)],
    "512x512": [(1, 512, 512)],
    **{f"{level}": [level] for level in [(1, 1, 1), (1, 1, 5000), (7, 300, 257), (5, 40, 304), (2, 2_000_000, 4)]},
    "eight levels": [(3 << 2 * i, 2048 >> i, 2048 >> i) for i in range(8)],
}


class Device(NamedTuple):
    """What plan_cuda asks of one; from the makers' tables."""

    multiprocessors: int
    shared_per_block: int
    shared_per_multiprocessor: int
    shared_reserved: int
    threads_per_multiprocessor: int
    blocks_per_multiprocessor: int


DEVICES = {
    "H100": Device(132, 227 << 10, 228 << 10, 1024, 2048, 32),
    "A100": Device(108, 163 << 10, 164 << 10, 1024, 2048, 32),
    "T4": Device(40, 64 << 10, 64 << 10, 0, 1024, 16),
    "RTX 4090": Device(128, 99 << 10, 100 << 10, 1024, 1536, 24),
}


@pytest.fixture
def plan_cuda():
    if native._C is None:
        pytest.skip(native.error)
    return native._C.plan_cuda


@pytest.fixture(params=DEVICES)
def device(request) -> Device:
    return DEVICES[request.param]


@pytest.mark.parametrize("shapes", SHAPES)
def test_blocks_cover_every_pixel_once(plan_cuda, device, shapes):
    plan = plan_cuda(SHAPES[shapes], **device._asdict())
    assert plan["threads"] % 32 == 0 and plan["threads"] <= 224
    for (planes, h, w), part in zip(SHAPES[shapes], plan["levels"], strict=True):
        assert part["strip_columns"] * (part["strips"] - 1) < w <= part["strip_columns"] * part["strips"]
        assert part["band_rows"] * (part["bands"] - 1) < h <= part["band_rows"] * part["bands"]
        assert part["blocks"] == -(-planes // part["maps"]) * part["strips"] * part["bands"]
        if part["strips"] > 1:
            left, right = 8, 5  # columns before and behind a strip's own, whose partials it recomputes
            inner = part["strips"] > 2
            assert part["maps"] == 1 and part["strip_columns"] % 8 == 0
            assert left + part["strip_columns"] + (right if inner else 0) <= plan["threads"]
        else:
            assert part["slot"] % 8 == 0 and part["slot"] >= w + 5
            assert (part["maps"] - 1) * part["slot"] + w <= plan["threads"]


@pytest.mark.parametrize("registers, in_units", [(128, 128), (136, 136), (255, 256)])
@pytest.mark.parametrize("shapes", SHAPES)
def test_blocks_fit_as_often_as_the_plan_says(plan_cuda, device, shapes, registers, in_units):
    plan = plan_cuda(SHAPES[shapes], registers=registers, **device._asdict())
    assert plan["shared_bytes"] <= device.shared_per_block
    warps = plan["threads"] // 32
    most = {
        "shared memory": device.shared_per_multiprocessor // (plan["shared_bytes"] + device.shared_reserved),
        "registers": 4 * (16384 // (32 * in_units)) // warps,  # each of four parts holds whole warps
        "threads": device.threads_per_multiprocessor // plan["threads"],
        "blocks": device.blocks_per_multiprocessor,
    }
    assert plan["resident"] == min(most.values()), most


def marched(part) -> int:
    """Rows that blocks march down for each column of a map: ten behind the last one, ten before a band inside."""
    return part["bands"] * (part["band_rows"] + (20 if part["bands"] > 1 else 10))


@pytest.mark.parametrize("n", [1, 2, 8, 16])
def test_a_pyramid_keeps_its_maps_whole_and_packs_small_ones(plan_cuda, device, n):
    """No multiprocessor is idle with 256 maps, so that a cut would only compute rows twice."""
    plan = plan_cuda(SHAPES[f"FPN, N={n}"], **device._asdict())
    assert all(part["bands"] == 1 for part in plan["levels"])
    if device.shared_per_block > 80 << 10:  # 160 columns fit
        assert plan["threads"] >= 160 and all(part["strips"] == 1 for part in plan["levels"])
    assert plan["levels"][0]["maps"] == 1 and plan["levels"][-1]["maps"] >= 5


def test_as_many_blocks_at_once_as_registers_allow(plan_cuda):
    """Blocks of 192 threads would take the same shared memory for two maps of 76 columns, but fit twice, not thrice."""
    plan = plan_cuda(FPN, **DEVICES["H100"]._asdict())
    assert plan["threads"] == 160 and plan["resident"] == 3


@pytest.mark.parametrize("shapes", ["5x5x1080x1920", "3x1080x1920", "3x256x256", "512x512"])
def test_a_single_image_fills_the_chip(plan_cuda, device, shapes):
    plan = plan_cuda(SHAPES[shapes], **device._asdict())
    (part,) = plan["levels"]
    # A few multiprocessors may be left without a block where one band more would need a second turn of all.
    assert part["blocks"] >= 0.9 * device.multiprocessors
    if part["blocks"] > device.multiprocessors * plan["resident"]:  # nobody waits long for the last ones
        turns = part["blocks"] / (device.multiprocessors * plan["resident"])
        assert -(-turns // 1) <= 1.6 * turns


@pytest.mark.parametrize("shapes", SHAPES)
def test_no_more_rows_are_computed_twice_than_it_takes_to_fill_the_chip(plan_cuda, device, shapes):
    plan = plan_cuda(SHAPES[shapes], **device._asdict())
    own = sum(planes * h for planes, h, _ in SHAPES[shapes])
    rows = sum(planes * marched(part) for (planes, _, _), part in zip(SHAPES[shapes], plan["levels"], strict=True))
    whole = sum(planes * (h + 10) for planes, h, _ in SHAPES[shapes])
    blocks = sum(part["blocks"] for part in plan["levels"])
    if own >= device.multiprocessors * 3 * 1080:
        assert rows <= 1.1 * whole
    assert blocks <= device.multiprocessors * plan["resident"] or rows <= 1.4 * whole
    assert all(part["band_rows"] >= 8 or part["bands"] == 1 for part in plan["levels"])


def test_one_wave_of_whole_maps_is_not_cut(plan_cuda, device):
    """256 maps are enough for each of these devices: 512 halves would compute a fifth more rows, for nothing."""
    (part,) = plan_cuda([(256, 100, 152)], **device._asdict())["levels"]
    assert part["bands"] == 1 and part["blocks"] == 256 * part["strips"]


def test_a_plan_takes_no_time(plan_cuda, device):
    plan = partial(plan_cuda, FPN, **device._asdict())
    assert min(timeit.repeat(plan, number=20, repeat=5)) / 20 < 60e-6  # 10 of them Python's


def test_a_device_without_enough_shared_memory_is_refused(plan_cuda):
    with pytest.raises(RuntimeError, match="1024 bytes of shared memory"):
        plan_cuda([(1, 10, 10)], shared_per_block=1024)


def test_more_levels_than_a_launch_holds_are_refused(plan_cuda):
    with pytest.raises(RuntimeError, match="8 levels, got 9"):
        plan_cuda([(1, 10, 10)] * 9)


@pytest.mark.slow
@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("padding", ["same", "reflect", "valid"])
@pytest.mark.parametrize("width", [40, 41, 300])
def test_bands_of_as_few_rows_as_can_be(width, padding, both):
    """As wide as a band recomputes and less, with the last one shorter still."""
    xs = [t.requires_grad_(i == 0 or both) for i, t in enumerate(pair((1, 1, 90, width)))]
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in xs]
    with emulated.backend(multiprocessors=132) as name:
        before = emulated.emulator().blocks_run
        value = ssim_loss(*xs, padding=padding, reduction="sum", backend=name)
        assert emulated.emulator().blocks_run - before >= 11
        value.backward()
    want = judge.ssim_loss(*wide, padding=padding, reduction="sum")
    want.backward()
    limit = judge.tolerance(torch.float32)
    assert_close(value, want, limit.value, "value")
    for got, expected in zip(xs[: 1 + both], wide, strict=False):
        assert_close(got.grad, expected.grad, limit.gradient, "gradient")


@pytest.mark.slow
def test_no_launch_takes_back_the_shared_memory_that_another_asked_for():
    """Of one kernel, in any thread: the emulated device refuses that. 224 columns take 97,440 bytes, 128 59,040."""
    with emulated.backend(multiprocessors=1, resident_blocks=1) as name:
        for columns in (220, 124, 220):
            x, y = pair((1, 1, 12, columns))
            ssim_loss(x.requires_grad_(), y, backend=name)


@pytest.mark.slow
def test_a_piece_of_more_chunks_than_16_bits_count():
    """Maps of 262,500 rows in blocks that march down all of them: 32,813 chunks of eight rows."""
    x, y = (t.requires_grad_() for t in torch.rand(2, 1, 2, 262500, 4))
    with emulated.backend(multiprocessors=1, resident_blocks=1) as name:
        before = emulated.emulator().blocks_run
        value = ssim_loss(x, y.detach(), backend=name)
        assert emulated.emulator().blocks_run - before <= 2, "maps are cut into bands"
        value.backward()
    got = x.grad
    (want,) = torch.autograd.grad(ssim_loss(x, y.detach(), backend="cpu"), x)
    assert relative_l2(got[:, :, -200:], want[:, :, -200:]) < 1e-5 and relative_l2(got, want) < 1e-5
