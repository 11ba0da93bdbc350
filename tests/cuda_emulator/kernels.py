"""The real CUDA kernels, compiled for the emulator as a torch library that serves CPU tensors.

It registers the operators of ``fused_ssim.ops`` in the namespace ``fused_ssim_emulated``.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from cuda_emulator import building

NAMESPACE = "fused_ssim_emulated"
ASCENDING, RANDOM, DESCENDING = range(3)


def sources(csrc: Path) -> list[Path]:
    """What the extension compiles for CUDA."""
    return sorted([*csrc.glob("cuda/*.cu"), *csrc.glob("cuda/*.cpp"), csrc / "ops_cuda.cpp"])


def headers(csrc: Path) -> list[Path]:
    return sorted([*csrc.glob("*.h"), *csrc.glob("cuda/*.h"), *csrc.glob("cuda/*.cuh")])


def build(
    csrc: Path = building.ROOT / "csrc", flags: Sequence[str] = building.PLAIN, namespace: str = NAMESPACE
) -> Path:
    """The library, compiled from a source folder (a patched copy, say), or from the cache."""
    from torch.utils.cpp_extension import include_paths, library_paths

    runtime = building.HERE / "kernel_runtime.h"
    definitions = [
        "-fPIC",
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
        f'-DSSIM_CUDA_RUNTIME="{runtime}"',
        f"-DSSIM_NAMESPACE={namespace}",
        "-DSSIM_DISPATCH_KEY=CPU",
        *(f"-isystem{path}" for path in include_paths()),
    ]
    libraries = [f"-L{path}" for path in library_paths()] + ["-ltorch", "-ltorch_cpu", "-lc10"]
    return building.link(
        "fused_ssim_emulated",
        sources(csrc),
        [*flags, *definitions],
        headers=[*headers(csrc), runtime, Path(torch.__file__).parent / "version.py"],
        link_flags=["-shared", *libraries],
    )


class Emulator:
    """A loaded library: its operators are registered, and its threads run in the order that is set here."""

    def __init__(self, library: Path) -> None:
        torch.ops.load_library(str(library))
        self._library = ctypes.CDLL(str(library))
        self._library.cuda_emulator_blocks_run.restype = ctypes.c_uint64

    def configure(self, order: int = RANDOM, seed: int = 0, os_threads: int = 1, multiprocessors: int = 132) -> None:
        """Order of the threads of a block, blocks at a time, and what the device says it has."""
        self._library.cuda_emulator_configure(order, ctypes.c_uint(seed), os_threads, multiprocessors)

    @property
    def blocks_run(self) -> int:
        """Blocks that have run in this process so far."""
        return self._library.cuda_emulator_blocks_run()
