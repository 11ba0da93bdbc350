"""The backend "triton-compiled": the Triton operators on CPU tensors, their kernels compiled for sm_80 and interpreted.

Triton's own interpreter knows neither what its compiler emits nor the products of tf32. Launches, types of arguments
and plans are those of a device. A kernel may touch what the operator was given and what it allocated, nothing else.
"""

import contextlib
import struct
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import emulated
import torch
import triton
import triton_compiled
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget

from fused_ssim import ops, triton_backend, triton_launch

from . import machine
from .memory import GlobalMemory
from .program import parse

NAME, NAMESPACE = "triton-compiled", "fused_ssim_triton_compiled"
TARGET = GPUTarget("cuda", 80, 32)

_compiled: dict[Any, Any] = {}  # of triton_start, for TARGET


class _Buffers(TorchDispatchMode):
    """Collects the tensors of an operator: its arguments and what is made while it runs."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []
        self.add(arguments)

    def add(self, values: Any) -> None:
        self.tensors += [value for value in tree_leaves(values) if isinstance(value, Tensor)]

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        self.add(result)
        return result


_running: list[_Buffers] = []


class _Kernel:
    """Started by ``kernel[grid](*arguments)``, as what triton.compile gives."""

    def __init__(self, compiled: Any, signature: dict[str, Any]) -> None:
        self.program = parse(compiled.asm["ptx"])
        self.metadata, self.kinds = compiled.metadata, tuple(signature.values())

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any) -> None:
            given = [a for a, kind in zip(arguments, self.kinds, strict=True) if kind != "constexpr"]
            words = tree_leaves(given)
            packed = struct.pack(f"<{len(words)}q", *words).ljust(self.program.parameter_bytes, b"\0")
            memory = GlobalMemory()
            for tensor in _running[-1].tensors:
                memory.add_address(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
            block = 32 * self.metadata.num_warps, 1, 1
            machine.run(self.program, memory, grid, block, packed, self.metadata.shared)

        return launch


@cache
def _register() -> list[torch.library.Library]:
    ops.define(NAMESPACE)
    library = torch.library.Library(NAMESPACE, "IMPL")
    for name in triton_backend.OPERATORS:

        def kernel(*arguments: Any, _name: str = name) -> Any:
            with _Buffers(arguments) as buffers:
                _running.append(buffers)
                try:
                    return getattr(triton_launch, _name)(*arguments)
                finally:
                    _running.pop()

        library.impl(name, kernel, "CPU")
    return [library]


@contextlib.contextmanager
def backend() -> Iterator[str]:
    """Inside, ``backend=NAME`` runs the compiled kernels."""
    _register()
    compile_now = triton.compiler.compile

    def compile_and_parse(source: Any, options: dict[str, int]) -> _Kernel:
        return _Kernel(compile_now(source, target=TARGET, options=options), source.signature)

    with triton_compiled.compiled_by(compile_and_parse, TARGET, _compiled), emulated.added(NAME, NAMESPACE):
        yield NAME
