"""The tiles that the large Triton kernel may take: which one a launch takes, and trials where they are asked for.

Without being asked, the tile is a pure function of the shapes. ``FUSED_SSIM_TRITON_AUTOTUNE=1`` times every tile of
OFFERED when a kind of launch meets new shapes, waits for the device while it does, and keeps the fastest until the
process ends. Another tile cuts maps elsewhere, and sums differ in their last bits: a process repeats itself bit for bit
either way, another process may tune differently.
"""

import os
import statistics
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import torch

Launch = TypeVar("Launch")


class Tile(NamedTuple):
    """Columns of a strip, its halo included, and how the kernel is compiled."""

    columns: int
    warps: int
    stages: int  # 2: the rows of the next step are loaded during this one


NARROW, WIDE = Tile(32, 4, 2), Tile(64, 8, 2)
OFFERED = (NARROW, WIDE, Tile(32, 4, 1), Tile(64, 8, 1))
NARROW_ONES = tuple(tile for tile in OFFERED if tile.columns == NARROW.columns)

COST = {NARROW: 1.0, WIDE: 1.13}
"""Instructions of a step for each of its pixels, kept or not, relative to NARROW (docs/kernel/gpu.md)."""

TRIALS = 5

_fastest: dict[Hashable, Tile] = {}
_trying = threading.Lock()


def strips_of(w: int, columns: int, reach: int) -> int:
    """How many strips a map of ``w`` columns takes, of which each overlaps the next by ``2 * reach``."""
    return 1 if w <= columns else -(-(w - columns) // (columns - 2 * reach)) + 1


def default(shapes: Iterable[tuple[int, ...]], reach: int, wide: bool) -> Tile:
    """The tile with the least work for all levels of a launch; ``wide``: whether WIDE may be taken."""
    work = dict.fromkeys((NARROW, WIDE) if wide else (NARROW,), 0.0)
    for n, c, h, w in shapes:
        for tile in work:
            work[tile] += COST[tile] * n * c * h * tile.columns * strips_of(w, tile.columns, reach)
    return min(work, key=work.__getitem__)


def launched(
    run: Callable[[Tile], Launch], usual: Tile, offered: Sequence[Tile], device: torch.device, kind: Hashable
) -> Launch:
    """``run`` with ``usual``, or, where that is asked for, with the fastest of ``offered`` for this ``kind`` of launch.

    ``run`` may be called several times and must leave the same each time.
    """
    if os.environ.get("FUSED_SSIM_TRITON_AUTOTUNE", "0") != "1":
        return run(usual)
    key = (device, kind)
    if key not in _fastest:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return run(usual)  # a graph under capture records launches and runs none
        with _trying:
            if key not in _fastest:
                _fastest[key] = min(offered, key=lambda tile: milliseconds(lambda: run(tile), device))
    return run(_fastest[key])


def milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """The median of some calls, after one that compiles."""
    run()
    spent = []
    for _ in range(TRIALS):
        if device.type == "cpu":
            start = time.perf_counter()
            run()
            spent.append(1e3 * (time.perf_counter() - start))
        else:
            with torch.cuda.device(device):  # events are of the current device's stream
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                run()
                end.record()
                end.synchronize()
                spent.append(begin.elapsed_time(end))
    return statistics.median(spent)
