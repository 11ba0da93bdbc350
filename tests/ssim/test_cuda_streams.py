"""Side streams and CUDA graphs. Only a device shows whether they hold; on the emulator the same steps run one after the
other, so that no lent minute is lost to a mistake in this file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import emulated
import pytest
import torch
from judge import pair
from torch import Tensor

import fused_ssim
from fused_ssim import dispatch


class Device:
    """A backend on a real device."""

    name = "cuda"
    shapes = ((2, 16, 50, 76), (2, 16, 13, 19))

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def tensors(self, seed: int = 0) -> list[list[Tensor]]:
        """x, y, weight and upstream gradient of a map, each of every level."""
        levels = [(*pair(s, seed=2 * seed), *pair(s, seed=2 * seed + 1)) for s in self.shapes]
        return [[t.to(self.name) for t in column] for column in zip(*levels, strict=True)]

    @contextmanager
    def side_stream(self) -> Iterator[None]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield
        torch.cuda.current_stream().wait_stream(stream)

    def delay(self) -> None:
        """Work for the current stream, of some milliseconds."""
        torch.cuda._sleep(50_000_000)

    def capture(self, run: Callable[[], tuple[Tensor, ...]]) -> tuple[Callable[[], object], tuple[Tensor, ...]]:
        """A replay, and the tensors that it fills anew."""
        with self.side_stream():
            run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = run()
        return graph.replay, results


class Emulated(Device):
    """No streams: everything in the order of the program."""

    name = "cpu"
    shapes = ((2, 2, 9, 13), (2, 2, 7, 10))

    @contextmanager
    def side_stream(self) -> Iterator[None]:
        yield

    def delay(self) -> None:
        pass

    def capture(self, run):
        results = run()

        def replay() -> None:
            for old, new in zip(results, run(), strict=True):
                old.copy_(new)

        return replay, results


@pytest.fixture(params=["cuda", "triton", "cuda-emulated"])
def device(request) -> Iterator[Device]:
    if request.param == "cuda-emulated":
        with emulated.backend() as name:
            yield Emulated(name)
        return
    if not torch.cuda.is_available():
        pytest.skip(f"{request.param}: this machine has no CUDA device")
    reason = dispatch.unavailable(request.param, "cuda")
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    yield Device(request.param)


# Each a value and the upstream gradient with which it goes backward; x, y, weight, upstream: of every level.
def lean_loss(backend, x, y, weight, upstream):
    """What training asks for; backward has nothing to scale."""
    return fused_ssim.ssim_loss(x[0], y[0], backend=backend), None


def scaled_loss(backend, x, y, weight, upstream):
    """An upstream gradient that only the device knows."""
    return fused_ssim.ssim_loss(x[0], y[0], backend=backend), 1.0 + upstream[0].mean()


def scaled_samples(backend, x, y, weight, upstream):
    """One for each sample."""
    values = fused_ssim.pyramid_ssim_loss(x, y, reduction="sample", backend=backend)
    return values, upstream[0].mean((1, 2, 3)) - 2


def map_backward(backend, x, y, weight, upstream):
    """A second launch, which computes anew what it needs."""
    return fused_ssim.ssim(x[0], y[0], reduction="none", padding="reflect", backend=backend), upstream[0]


def rescaled(backend, x, y, weight, upstream):
    """kd's default: minima, maxima and their gradients are found on the device."""
    options = {"normalize": "channel", "detach_range": False, "padding": "reflect", "reduction": "level"}
    return fused_ssim.pyramid_ssim_loss(x, y, backend=backend, **options), upstream[0].flatten()[:2]


def weighted(backend, x, y, weight, upstream):
    """A mean over weights, the sum of which only the device knows."""
    return fused_ssim.pyramid_ssim_loss(x, y, weight=weight, backend=backend), upstream[0].mean()


LOSSES = (lean_loss, scaled_loss, scaled_samples, map_backward, rescaled, weighted)


def step(loss, backend: str, tensors: list[list[Tensor]]) -> tuple[Tensor, ...]:
    """Value and gradients by x."""
    x, *rest = tensors
    x = [level.detach().requires_grad_() for level in x]
    value, upstream = loss(backend, x, *rest)
    grads = torch.autograd.grad(value, x, upstream, allow_unused=True)
    return value.detach(), *(grad for grad in grads if grad is not None)


def copy_all(targets: list[list[Tensor]], sources: list[list[Tensor]]) -> None:
    for column, source_column in zip(targets, sources, strict=True):
        for target, source in zip(column, source_column, strict=True):
            target.copy_(source)


def assert_same_bits(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    assert all(w.isfinite().all() and w.count_nonzero() for w in want)
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_side_stream_sees_its_own_input_and_hands_on_its_output(device, loss):
    tensors = device.tensors()
    want = step(loss, device.backend, tensors)
    with device.side_stream():
        late = [[torch.zeros_like(t) for t in column] for column in tensors]
        device.delay()
        copy_all(late, tensors)  # a launch on another stream would compute zeros
        got = step(loss, device.backend, late)
    assert_same_bits(got, want)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_graph_capture_and_replay(device, loss):
    tensors = device.tensors()
    replay, results = device.capture(lambda: step(loss, device.backend, tensors))
    for seed in (1, 2):
        others = device.tensors(seed)
        copy_all(tensors, others)
        replay()
        assert_same_bits(results, step(loss, device.backend, others))
