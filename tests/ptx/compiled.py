"""PTX of the real kernels, as nvcc emits it, and launches of the operators that run it instead of the emulator."""

import hashlib
import math
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import emulated
from cuda_emulator import building, kernels
from torch import Tensor

from . import machine
from .memory import GlobalMemory
from .program import Program, entries, parse

CACHE = building.ROOT / "build" / "ptx"
ARCH = 80
"""compute_80, the oldest with every instruction that the kernels use."""


def nvcc() -> str | None:
    """The CUDA compiler, or None where there is none."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which(str(Path(home) / "bin" / "nvcc"))


@cache
def ptx_of(source: Path) -> str:
    """What nvcc makes of a source for ARCH; kept under build/ by content."""
    from torch.utils.cpp_extension import include_paths

    content = b"".join(file.read_bytes() for file in [source, *kernels.headers(source.parents[1])])
    built = CACHE / f"{source.stem}-{hashlib.sha256(content).hexdigest()[:16]}.ptx"
    if not built.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = built.with_suffix(f".{os.getpid()}.partial")
        includes = [part for path in include_paths() for part in ("-isystem", path)]
        flags = ["-std=c++20", "-O3", f"-arch=compute_{ARCH}", "-lineinfo", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
        command = [str(nvcc()), *flags, *includes, "-ptx", str(source), "-o", str(partial)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise building.CompileError(f"{' '.join(command)}\n{result.stderr[-4000:]}")
        partial.replace(built)
    return built.read_text()


@cache
def program(kernel: str, sources: tuple[str, ...]) -> Program:
    """The kernel of that mangled name, out of those files of csrc/cuda."""
    for name in sources:
        text = ptx_of(building.ROOT / "csrc" / "cuda" / name)
        if kernel in entries(text):
            return parse(text, kernel)
    raise KeyError(f"none of {sources} has the kernel {kernel}")


@dataclass
class Executed:
    """What the launches of one kernel came to."""

    blocks: int = 0  # of all its launches
    block: int = 0  # threads
    shared_bytes: int = 0  # of a block
    program: Program | None = None
    counts: machine.Counts | None = None

    @property
    def instructions(self) -> Counter[str]:
        """Executed by threads, by name."""
        assert self.program is not None and self.counts is not None
        return machine.by_kind(self.program, self.counts.by_threads)


@contextmanager
def interpreted(
    sources: Sequence[str], tensors: Sequence[Tensor], multiprocessors: int = 4, resident_blocks: int = 2
) -> Iterator[dict[str, Executed]]:
    """Inside, ``backend=emulated.NAME`` runs the PTX of these files, which may touch these tensors and its outputs.

    With one multiprocessor two blocks already fill the device, and no map is cut. Gives what the threads of each kernel
    executed.
    """
    kernels_run: dict[str, Executed] = {}
    device = emulated.emulator()

    def launch(kernel, grid, block, shared_bytes, parameters):
        memory = GlobalMemory()
        for tensor in tensors:
            storage = tensor.untyped_storage()
            memory.add_address(storage.data_ptr(), storage.nbytes())
        for address, size in device.allocations():
            memory.add_address(address, size)
        code = program(kernel, tuple(sources))
        packed = bytearray(code.parameter_bytes)
        for (_, offset, size), value in zip(code.parameters, parameters, strict=True):
            assert len(value) == size, f"{kernel}: a parameter of {size} bytes here, {len(value)} on the host"
            packed[offset : offset + size] = value
        counts = machine.run(code, memory, grid, block, bytes(packed), shared_bytes)
        record = kernels_run.setdefault(kernel, Executed(program=code, counts=machine.Counts.of(code)))
        record.block, record.shared_bytes = math.prod(block), shared_bytes
        record.counts.add(counts)
        record.blocks += math.prod(grid)

    with emulated.backend(multiprocessors=multiprocessors, resident_blocks=resident_blocks), device.executed_by(launch):
        yield kernels_run
