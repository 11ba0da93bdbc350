"""The backend "cuda-emulated": the CUDA kernels on CPU tensors, for the tests that every backend passes."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from cuda_emulator import building, kernels

from fused_ssim import dispatch, native, ops

NAME = "cuda-emulated"
MULTIPROCESSORS, RESIDENT_BLOCKS = 4, 2  # of the emulated device


@cache
def emulator() -> kernels.Emulator:
    """Compiled and loaded, once for the process."""
    if building.compiler() is None:
        pytest.skip("no C++ compiler for the emulator")
    ops.define(kernels.NAMESPACE)
    return kernels.Emulator(kernels.build())


def served() -> list[str]:
    """Which main kernels ran since the last call: "same" (also for "valid") or "reflect", the lean ones, or "all"."""
    names = emulator().launched_kernels()
    return [("all", "same", "reflect")[int(found[1])] for name in names if (found := re.search(r"ServesE(\d)E", name))]


def forget(name: str) -> None:
    """``check_served`` will not count what has run so far."""
    if name == NAME:
        served()


def check_served(name: str, padding: str) -> None:
    """That a lean kernel for this padding has run, and no other; of backends that have no such kernel nothing."""
    if name == NAME:
        assert served() == ["reflect" if padding == "reflect" else "same"]


def lean_plan(shapes: Sequence[Sequence[int]], padding: str) -> dict[str, Any]:
    """How a lean kernel cuts tensors (N, C, H, W) on the emulated device."""
    if native._C is None:
        pytest.skip(native.error)
    levels = [(n * c, h, w) for n, c, h, w in shapes]
    # Twice the radius, since images of two maps stand between them, and kMirrorTableBytes.
    kernel = {"gap": 10, "table_bytes": 2304} if padding == "reflect" else {}
    return native._C.plan_cuda(
        levels, multiprocessors=MULTIPROCESSORS, blocks_per_multiprocessor=RESIDENT_BLOCKS, **kernel
    )


@contextmanager
def backend(
    order: int = kernels.RANDOM,
    seed: int = 1,
    multiprocessors: int = MULTIPROCESSORS,
    resident_blocks: int = RESIDENT_BLOCKS,
) -> Iterator[str]:
    """``fused_ssim`` functions accept ``backend=NAME`` inside; the name is given back.

    With few multiprocessors, and few blocks on each, the plans pack several small maps into a block already for small
    tensors.
    """
    device = emulator()
    device.configure(order, seed, multiprocessors=multiprocessors, resident_blocks=resident_blocks)
    with added(NAME, kernels.NAMESPACE):
        yield NAME


@contextmanager
def added(backend: str, namespace: str) -> Iterator[None]:
    """One backend more, for tensors on the CPU, with operators of that namespace."""
    backends, unavailable = dispatch.BACKENDS, dispatch.unavailable

    def or_added(name: str, device: torch.device | str, *window_size: int) -> str | None:
        # What the kernels say of a tensor on a GPU holds here for one on the CPU.
        return unavailable("cpu" if name == backend else name, device, *window_size)

    dispatch.BACKENDS, dispatch.unavailable = (*backends, backend), or_added
    ops.NAMESPACES[backend] = namespace
    try:
        yield
    finally:
        dispatch.BACKENDS, dispatch.unavailable = backends, unavailable
        del ops.NAMESPACES[backend]
