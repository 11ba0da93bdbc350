"""How it is measured: errors against float64, interleaved times, and the peak memory of a fresh process."""

import ctypes
import math
import multiprocessing
import statistics
import time
from typing import NamedTuple

import torch
from torch import Tensor

import fused_ssim

from . import peers
from .cases import Shape
from .peers import Candidate, Loss

TURN_SECONDS = 4e-3
"""A candidate's turn repeats short calls for about this long, so that clock and call overhead do not decide."""
WARM_SECONDS = 50e-3
"""Where a call is shorter than this, a turn begins with one that is not counted: a few calls would otherwise pay more
of what the candidate before left behind (cold caches, sleeping threads) than many do."""
PATIENCE_SECONDS = 4.0
"""A candidate that has used this much in one case gets no more turns, once it had LEAST_TURNS."""
LEAST_TURNS = 3
GRADIENT_LIMIT = 1e-3
"""Relative L2 error of the gradient above which a candidate computes something else and is not timed."""


class Errors(NamedTuple):
    """Against float64 autograd of the reference of the same definition."""

    value: float
    """|SSIM - SSIM in float64|, of the mean."""
    gradient: float
    """Relative L2 error of the gradient."""
    gradient_max: float
    """Largest error of one pixel's gradient, relative to the largest gradient."""


def images(shape: Shape, device: str) -> tuple[Tensor, Tensor]:
    """Two unequal, correlated tensors with values in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator)
    y = 0.6 * x + 0.4 * torch.rand(shape, generator=generator)
    return x.to(device), y.to(device)


def value_and_gradient(loss: Loss, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    value = loss(x, y)
    value.backward()
    assert x.grad is not None
    return value.detach(), x.grad


class Judge:
    """SSIM and gradient in float64 of one pair, each definition computed once."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self._known: dict[tuple[str, peers.Exponents], tuple[Tensor, Tensor]] = {}

    def errors(self, candidate: Candidate, loss: Loss) -> Errors:
        """How far ``loss``, which is ``candidate.scale * (1 - SSIM)``, is from the truth."""
        definition = (candidate.padding, candidate.exponents)
        if definition not in self._known:
            self._known[definition] = value_and_gradient(
                lambda x, y: fused_ssim.ssim(
                    x, y, padding=candidate.padding, exponents=candidate.exponents, backend="reference"
                ),
                self.x.double(),
                self.y.double(),
            )
        true_value, true_gradient = self._known[definition]
        value, gradient = value_and_gradient(loss, self.x, self.y)
        value, gradient = 1 - value.double() / candidate.scale, -gradient.double() / candidate.scale
        difference = gradient - true_gradient
        return Errors(
            float((value - true_value).abs()),
            float(difference.norm() / true_gradient.norm()),
            float(difference.abs().max() / true_gradient.abs().max()),
        )


def _synchronize(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def _turn(loss: Loss, x: Tensor, y: Tensor, calls: int) -> float:
    """Seconds of one loss + gradient, the mean of ``calls``."""
    x = x.detach().requires_grad_()
    _synchronize(x)
    start = time.perf_counter()
    for _ in range(calls):
        x.grad = None
        loss(x, y).backward()
    _synchronize(x)
    return (time.perf_counter() - start) / calls


def order(count: int, number: int) -> list[int]:
    """The order of ``count`` candidates in round ``number``: one order, moved on, so that neighbours change.

    That one is 0, 1, -1, 2, -2, ... modulo an even size. Its steps are all different, so in ``size`` rounds everybody
    comes right after everybody else, once. An odd count leaves out one place of the next even size.
    """
    size = count + count % 2
    zigzag = [(i + 1) // 2 if i % 2 else -i // 2 for i in range(size)]
    return [place for step in zigzag if (place := (step + number) % size) < count]


def times(losses: dict[str, Loss], x: Tensor, y: Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds of loss + gradient, turn by turn, the candidates taking turns in each round.

    So whatever else the machine does meets all of them alike, and ratios of their medians hold where times do not.
    What the candidate before leaves behind (cold caches, pages to clear, a lower clock) would not: so a turn of short
    calls begins with one that is not counted, and the order changes from round to round (``order``).
    """
    calls, warm = {}, set()
    for name, loss in losses.items():
        once = _turn(loss, x, y, 1)  # with what happens once: compilation, lazy initialisation, page faults
        once = min(_turn(loss, x, y, 1) for _ in range(2 if once < PATIENCE_SECONDS else 1))
        calls[name] = max(1, min(50, math.ceil(TURN_SECONDS / once)))
        if once < WARM_SECONDS:
            warm.add(name)
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    names = list(losses)
    for number in range(rounds):
        for name in (names[i] for i in order(len(names), number)):
            used = sum(seconds[name]) * calls[name]
            if len(seconds[name]) < LEAST_TURNS or used < PATIENCE_SECONDS:
                if name in warm:
                    _turn(losses[name], x, y, 1)
                seconds[name].append(_turn(losses[name], x, y, calls[name]))
    return seconds


def median(seconds: list[float]) -> float:
    return statistics.median(seconds)


def peak_bytes(name: str, shape: Shape, device: str, threads: int) -> int | None:
    """The most memory that one loss + gradient holds beyond x and y; x's gradient is in it.

    On a CPU: growth of the resident set's high-water mark over one call, in a process of its own, which is a fork of
    one that has imported everything and run nothing. A first call in that process takes what is paid once (thread
    pools, compilation). None where the kernel does not let a process reset its mark. On a GPU: torch's own count.
    """
    if device == "cuda":
        return _peak_of_allocator(name, shape)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.preload"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report_peak, args=(sender, name, shape, threads))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:  # it was killed, most likely for memory
        result = None
    process.join()
    return result


def _find(name: str, device: str) -> Candidate:
    return next(c for c in peers.candidates(device, compiled=True) if c.name == name)


def _report_peak(sender, name: str, shape: Shape, threads: int) -> None:
    torch.set_num_threads(threads)
    loss = _find(name, "cpu").build()
    x, y = images(shape, "cpu")
    value_and_gradient(loss, x, y)
    sender.send(_high_water_mark(lambda: value_and_gradient(loss, x, y)))


def _high_water_mark(call) -> int | None:
    """Bytes by which the resident set of this process rises while ``call`` runs, at the most."""
    ctypes.CDLL(None).malloc_trim(0)
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the mark falls to what is resident now
        before = _status("VmRSS")
        result = call()
        peak = _status("VmHWM") - before
        del result
    except OSError:
        return None
    return peak


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def _peak_of_allocator(name: str, shape: Shape) -> int:
    loss = _find(name, "cuda").build()
    x, y = images(shape, "cuda")
    value_and_gradient(loss, x, y)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    value_and_gradient(loss, x, y)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
