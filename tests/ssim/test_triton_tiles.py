"""The tiles of the Triton kernel: which one a launch takes, trials on request, and that each computes the same."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import judge
import pytest
import torch
from judge import assert_close, gradients, judged, pair, tolerance

import fused_ssim
from fused_ssim import triton_tiles as tiles
from fused_ssim.triton_tiles import NARROW, OFFERED, WIDE

CPU = torch.device("cpu")
REACH = 10
LIMIT = tolerance(torch.float32).gradient


@pytest.mark.parametrize("columns", [32, 64])
@pytest.mark.parametrize("reach", [5, 10])
def test_strips_hold_all_that_their_own_columns_see(columns, reach):
    """Strips begin ``columns - 2 * reach`` apart; each keeps what is ``reach`` from its edges or at the map's."""
    step = columns - 2 * reach
    for w in range(1, 5 * columns):
        count = tiles.strips_of(w, columns, reach)
        assert (count - 1) * step + columns >= w, "the last strip ends at the map's last column or beyond"
        assert count == 1 or (count - 2) * step + columns < w, "no strip is without need"


def test_the_tile_of_a_shape():
    assert tiles.default([(8, 256, 13, 19)], REACH, True) == NARROW
    assert tiles.default([(1, 3, 40, 64)], REACH, True) == WIDE
    assert tiles.default([(1, 256, 100, 152)], REACH, True) == WIDE
    assert tiles.default([(1, 256, 100, 152)], REACH, False) == NARROW
    pyramid = [(1, 256, h, w) for h, w in ((100, 152), (50, 76), (25, 38), (13, 19), (7, 10))]
    assert tiles.default(pyramid, REACH, True) == WIDE, "the largest level decides"


@pytest.fixture
def clock(monkeypatch):
    """Times that a test sets for each tile, instead of measured ones; counts what was timed."""
    seconds, timed = dict.fromkeys(OFFERED, 1.0), []

    def milliseconds(run, device):
        tile = run()
        timed.append(tile)
        return seconds[getattr(tile, "tile", tile)]

    monkeypatch.setattr(tiles, "milliseconds", milliseconds)
    monkeypatch.setattr(tiles, "_fastest", {})
    return seconds, timed


def test_without_the_request_nothing_is_timed(clock, monkeypatch):
    monkeypatch.delenv("FUSED_SSIM_TRITON_AUTOTUNE", raising=False)
    clock[0][OFFERED[2]] = 0.5
    assert tiles.launched(lambda tile: tile, WIDE, OFFERED, CPU, "kind") == WIDE
    assert clock[1] == []


def test_the_fastest_is_found_once_for_each_kind_and_kept(clock, monkeypatch):
    monkeypatch.setenv("FUSED_SSIM_TRITON_AUTOTUNE", "1")
    seconds, timed = clock
    seconds[OFFERED[2]] = 0.5
    assert tiles.launched(lambda tile: tile, WIDE, OFFERED, CPU, "kind") == OFFERED[2]
    assert timed == list(OFFERED)
    seconds[WIDE] = 0.1
    assert tiles.launched(lambda tile: tile, WIDE, OFFERED, CPU, "kind") == OFFERED[2], "another would change the bits"
    assert tiles.launched(lambda tile: tile, NARROW, OFFERED, CPU, "another kind") == WIDE
    assert tiles.launched(lambda tile: tile, NARROW, tiles.NARROW_ONES, CPU, "third kind") == OFFERED[2]


def test_threads_that_meet_the_same_kind_try_it_once(clock, monkeypatch):
    monkeypatch.setenv("FUSED_SSIM_TRITON_AUTOTUNE", "1")
    together = threading.Barrier(4)

    def run(tile):
        time.sleep(0.01)  # so that all have asked before the first is through
        return tile

    def call(_):
        together.wait()
        return tiles.launched(run, NARROW, OFFERED, CPU, "kind")

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(call, range(4))) == {OFFERED[0]}
    assert clock[1] == list(OFFERED)


def test_the_time_of_a_tile_is_a_median_without_its_first_call(monkeypatch):
    calls, now = [], [0.0]

    def run():
        calls.append(None)
        now[0] += 100.0 if len(calls) in (1, 3) else 1.0

    monkeypatch.setattr(tiles.time, "perf_counter", lambda: now[0])
    assert tiles.milliseconds(run, CPU) == 1e3
    assert len(calls) == 1 + tiles.TRIALS


def test_a_tile_is_timed_on_the_device_of_its_launch(monkeypatch):
    """Events of the current device would time a stream that the kernel does not run on."""
    current, recorded = [0], []

    @contextmanager
    def on(device):
        before, current[0] = current[0], device.index
        yield
        current[0] = before

    class Event:
        def __init__(self, enable_timing):
            pass

        def record(self):
            recorded.append(current[0])

        def synchronize(self):
            pass

        def elapsed_time(self, other):
            return 1.0

    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert tiles.milliseconds(lambda: None, torch.device("cuda", 1)) == 1.0
    assert set(recorded) == {1}


def weighted_l1_ssim(x, y, weight, padding):
    return judge.reduce(0.8 * (x - y).abs(), "sum", weight) + 0.2 * judge.reduce(
        1 - judge.reference.ssim_map(x, y, judge.SSIMOptions(padding=padding)), "sum", weight
    )


@pytest.mark.parametrize("kernel_once", ["triton"], indirect=True)
@pytest.mark.parametrize("tile", [NARROW, WIDE], ids=lambda tile: str(tile.columns))
@pytest.mark.parametrize("what", ["flat window", "reflect", "valid", "value", "weighted L1", "mirrored weighted L1"])
def test_each_tile_puts_its_strips_together(kernel_once, tile, what, monkeypatch):
    monkeypatch.setattr(tiles, "default", lambda *_, **__: tile)
    x, y = (t.to(kernel_once.device) for t in pair((1, 2, 18, 109)))
    flat = {"sigma": 20.0, "reduction": "sum"}  # what is farthest counts as much as what is near
    if what == "value":
        got = (fused_ssim.ssim(x, y, backend="triton", **flat),)
        want = (judge.ssim(x.cpu().double(), y.cpu().double(), **flat),)
    elif "L1" in what:
        options = {"padding": "reflect" if "mirrored" in what else "same"}
        options["weight"] = torch.rand(x.shape, generator=torch.Generator().manual_seed(3)).to(kernel_once.device)
        got = gradients(fused_ssim.l1_ssim_loss, x, y, backend="triton", reduction="sum", **options)
        want = judged(weighted_l1_ssim, x.cpu(), y.cpu(), **options | {"weight": options["weight"].cpu()})
    else:
        flat["padding"] = "same" if what == "flat window" else what
        got = gradients(fused_ssim.ssim, x, y, backend="triton", **flat)
        want = judged(judge.ssim, x.cpu(), y.cpu(), **flat)
    for g, w, name in zip(got, want, ("value", "gradient by x", "gradient by y"), strict=False):
        assert_close(g.cpu(), w, LIMIT, name)


@pytest.mark.parametrize("kernel_once", ["triton"], indirect=True)
def test_a_tuned_call_repeats_itself_bit_for_bit(kernel_once, clock, monkeypatch):
    """Also the call that tries: what the trials wrote must be gone."""
    monkeypatch.setenv("FUSED_SSIM_TRITON_AUTOTUNE", "1")
    clock[0][NARROW] = 0.5
    x, y = (t.to(kernel_once.device) for t in pair((1, 1, 13, 70)))
    one, other = (gradients(fused_ssim.ssim, x, y, backend="triton", reduction="sum") for _ in range(2))
    assert [launch.tile for launch in clock[1]] == list(OFFERED)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)
    monkeypatch.setattr(tiles, "default", lambda *_, **__: NARROW)
    monkeypatch.delenv("FUSED_SSIM_TRITON_AUTOTUNE")
    for a, b in zip(one, gradients(fused_ssim.ssim, x, y, backend="triton", reduction="sum"), strict=True):
        assert torch.equal(a, b)
