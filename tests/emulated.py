"""The backend "cuda-emulated": the CUDA kernels on CPU tensors, for the tests that every backend passes."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest
from cuda_emulator import building, kernels

from fused_ssim import dispatch, ops

NAME = "cuda-emulated"


@cache
def emulator() -> kernels.Emulator:
    """Compiled and loaded, once for the process."""
    if building.compiler() is None:
        pytest.skip("no C++ compiler for the emulator")
    ops.define(kernels.NAMESPACE)
    return kernels.Emulator(kernels.build())


@contextmanager
def backend(
    order: int = kernels.RANDOM, seed: int = 1, multiprocessors: int = 4, resident_blocks: int = 2
) -> Iterator[str]:
    """``fused_ssim`` functions accept ``backend=NAME`` inside; the name is given back.

    With few multiprocessors, and few blocks on each, the plans pack several small maps into a block already for small
    tensors.
    """
    device = emulator()
    device.configure(order, seed, multiprocessors=multiprocessors, resident_blocks=resident_blocks)
    backends, unavailable = dispatch.BACKENDS, dispatch.unavailable

    def emulated_unavailable(name: str, device_type: str, *window_size: int) -> str | None:
        if name != NAME:
            return unavailable(name, device_type, *window_size)
        # What the CUDA kernels say of a CUDA tensor holds here for one on the CPU.
        return unavailable("cpu", device_type, *window_size)

    dispatch.BACKENDS, dispatch.unavailable = (*backends, NAME), emulated_unavailable
    ops.NAMESPACES[NAME] = kernels.NAMESPACE
    try:
        yield NAME
    finally:
        dispatch.BACKENDS, dispatch.unavailable = backends, unavailable
        del ops.NAMESPACES[NAME]
