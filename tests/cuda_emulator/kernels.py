"""The real CUDA kernels, compiled for the emulator as a torch library that serves CPU tensors.

It registers the operators of ``fused_ssim.ops`` in the namespace ``fused_ssim_emulated``.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from cuda_emulator import building

NAMESPACE = "fused_ssim_emulated"
ASCENDING, RANDOM, DESCENDING = range(3)

EXECUTOR = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_uint),
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.POINTER(ctypes.c_size_t),
    ctypes.c_int,
)
Launch = Callable[[str, tuple[int, int, int], tuple[int, int, int], int, list[bytes]], None]
"""Kernel name, grid, block, bytes of shared memory, parameters."""


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
        [*sources(csrc), building.HERE / "allocations.cpp"],
        [*flags, *definitions],
        headers=[*headers(csrc), runtime, Path(torch.__file__).parent / "version.py"],
        link_flags=["-shared", "-Wl,--wrap=torch_call_dispatcher", *libraries],
    )


class Emulator:
    """A loaded library: its operators are registered, and its threads run in the order that is set here."""

    def __init__(self, library: Path) -> None:
        torch.ops.load_library(str(library))
        self._library = ctypes.CDLL(str(library))
        self._library.cuda_emulator_blocks_run.restype = ctypes.c_uint64
        self._library.cuda_emulator_launched_kernels.restype = ctypes.c_char_p

    def configure(
        self,
        order: int = RANDOM,
        seed: int = 0,
        os_threads: int = 1,
        multiprocessors: int = 132,
        resident_blocks: int = 2,
    ) -> None:
        """Order of the threads of a block, blocks at a time, and what the device says it has and each of them holds."""
        self._library.cuda_emulator_configure(order, ctypes.c_uint(seed), os_threads, multiprocessors, resident_blocks)

    @contextmanager
    def executed_by(self, launch: Launch) -> Iterator[None]:
        """Inside, launches go to a function instead of the emulator. What it raises comes out at the end."""
        errors: list[BaseException] = []

        def execute(name, grid, block, shared_bytes, places, sizes, count):
            try:
                parameters = [ctypes.string_at(places[i], sizes[i]) for i in range(count)]
                launch(name.decode(), tuple(grid[:3]), tuple(block[:3]), shared_bytes, parameters)
            except BaseException as error:
                errors.append(error)
                return 1
            return 0

        callback = EXECUTOR(execute)
        self._library.cuda_emulator_allocations(None, None)
        self._library.cuda_emulator_execute_by(callback)
        try:
            yield
        except RuntimeError:
            if not errors:
                raise
        finally:
            self._library.cuda_emulator_execute_by(None)
        if errors:
            raise errors[0]

    def allocations(self) -> list[tuple[int, int]]:
        """Address and bytes of each tensor that the operators have made inside ``executed_by``, living or not."""
        count = self._library.cuda_emulator_allocations((ctypes.c_void_p * 0)(), None)
        addresses, sizes = (ctypes.c_void_p * count)(), (ctypes.c_int64 * count)()
        self._library.cuda_emulator_allocations(addresses, sizes)
        return [(address, size) for address, size in zip(addresses, sizes, strict=True) if address]

    def launched_kernels(self) -> list[str]:
        """Mangled names of the kernels launched since the last call."""
        return self._library.cuda_emulator_launched_kernels().decode().split()

    @property
    def blocks_run(self) -> int:
        """Blocks that have run in this process so far."""
        return self._library.cuda_emulator_blocks_run()


def build_check(
    csrc: Path = building.ROOT / "csrc", flags: Sequence[str] = building.PLAIN, lean_only: bool = False
) -> Path:
    """``kernel_check``: the same kernels in a program of their own, without torch but for a few of its headers."""
    from torch.utils.cpp_extension import include_paths

    runtime = building.HERE / "kernel_runtime.h"
    chosen = [source for source in sources(csrc) if source.name != "ops_cuda.cpp"]
    if lean_only:
        chosen = [source for source in chosen if "general" not in source.name]
    definitions = [f'-DSSIM_CUDA_RUNTIME="{runtime}"', f"-I{csrc}", *(f"-isystem{path}" for path in include_paths())]
    return building.link(
        "kernel_check",
        [*chosen, building.HERE / "kernel_check.cpp"],
        [*flags, *definitions, *(["-DLEAN_ONLY"] if lean_only else [])],
        headers=[*headers(csrc), runtime],
    )
