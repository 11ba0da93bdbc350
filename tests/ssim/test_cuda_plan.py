"""How the CUDA kernel cuts levels into blocks: a pure function, so no device is needed."""

import emulated
import pytest
import torch
from judge import relative_l2

from fused_ssim import native, ssim_loss

FPN = [(256, 100, 152), (256, 50, 76), (256, 25, 38), (256, 13, 19), (256, 7, 10)]


@pytest.fixture
def plan_cuda():
    if native._C is None:
        pytest.skip(native.error)
    return native._C.plan_cuda


@pytest.mark.parametrize(
    "level", [*FPN, (3, 1080, 1920), (25, 1080, 1920), (1, 1, 1), (1, 1, 5000), (7, 300, 257), (5, 40, 304)], ids=str
)
def test_blocks_cover_every_pixel(plan_cuda, level):
    plan = plan_cuda([level])
    planes, h, w = level
    (part,) = plan["levels"]
    assert plan["threads"] % 32 == 0 and plan["shared_bytes"] <= 232448
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


def test_a_pyramid_keeps_its_maps_whole_and_packs_small_ones(plan_cuda):
    plan = plan_cuda(FPN)
    assert plan["threads"] in (160, 192)
    assert all(part["strips"] == part["bands"] == 1 for part in plan["levels"])
    assert plan["levels"][0]["maps"] == 1 and plan["levels"][-1]["maps"] > 1


def test_a_single_image_fills_the_chip(plan_cuda):
    (part,) = plan_cuda([(3, 1080, 1920)])["levels"]
    assert part["strips"] > 1 and part["bands"] > 1 and part["blocks"] >= 2 * 132


def test_a_device_without_enough_shared_memory_is_refused(plan_cuda):
    with pytest.raises(RuntimeError, match="1024 bytes of shared memory"):
        plan_cuda([(1, 10, 10)], shared_per_block=1024)


@pytest.mark.slow
def test_a_piece_of_more_chunks_than_16_bits_count():
    """Maps of 262,500 rows in blocks that march down all of them: 32,813 chunks of eight rows."""
    x, y = (t.requires_grad_() for t in torch.rand(2, 1, 2, 262500, 4))
    with emulated.backend(multiprocessors=1) as name:
        before = emulated.emulator().blocks_run
        value = ssim_loss(x, y.detach(), backend=name)
        assert emulated.emulator().blocks_run - before <= 2, "maps are cut into bands"
        value.backward()
    got = x.grad
    (want,) = torch.autograd.grad(ssim_loss(x, y.detach(), backend="cpu"), x)
    assert relative_l2(got[:, :, -200:], want[:, :, -200:]) < 1e-5 and relative_l2(got, want) < 1e-5
