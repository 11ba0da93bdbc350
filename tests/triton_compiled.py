"""Triton kernels compiled ahead of time, for machines that are not there."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.driver import driver

from fused_ssim import triton_launch, triton_start
from fused_ssim import triton_reductions as small
from fused_ssim.triton_kernels import Level, View, ssim_kernel
from fused_ssim.triton_tiles import Tile

MAIN = {
    "dtype": tl.float32,
    "seed_dtype": None,
    "compute": tl.float32,
    "index": tl.int32,
    "form": 0,
    "exponents": (1.0, 1.0, 1.0),
    "padding_reflect": False,
    "margin": 0,
    "sides": 1,
    "write_map": False,
    "write_sums": True,
    "l1": False,
    "normalize": False,
    "track": False,
    "precision": "tf32x3",
}
"""Loss and gradient by x of float32 features."""

VIEW = View(*["i64"] * 5)


def compile_kernel(target: GPUTarget, tile: Tile, levels: int = 1, **options):
    """The large kernel for ``target``: MAIN with other ``options``."""
    level = Level(*[VIEW] * 5, *["i64"] * 10)
    signature = {"levels": (level,) * levels, "taps": ("i64",) * 11, "constants": ("i64",) * 3}
    signature |= {"ranges": "i64", "sums": "i64"} | dict.fromkeys([*MAIN, "COLUMNS"], "constexpr")
    source = ASTSource(fn=ssim_kernel, signature=signature, constexprs=MAIN | {"COLUMNS": tile.columns} | options)
    return triton.compile(source, target=target, options={"num_warps": tile.warps, "num_stages": tile.stages})


def compile_small_kernels(target: GPUTarget, compute: tl.dtype = tl.float32):
    """Each of the kernels of triton_reductions.py, by name."""
    total = small.Total(*["i64"] * 7)
    plane = small.Plane(VIEW, VIEW, *["i64"] * 6)
    gradient = small.Gradient(VIEW, *["i64"] * 6)
    tuples = {small.values_kernel: ("totals", total), small.scale_kernel: ("grads", gradient)}
    constants = {"compute": compute, "dtype": compute, "factor_dtype": compute, "index": tl.int64}
    constants |= {"seeds": True, "l1": True, "tiny": 1e-38}
    found = {}
    for kernel in (small.values_kernel, small.extremes_kernel, small.ranges_kernel, small.scale_kernel):
        name, entry = tuples.get(kernel, ("levels", plane))
        kinds = dict.fromkeys(constants, "constexpr") | {name: (entry,) * 2}
        signature = {argument: kinds.get(argument, "i64") for argument in kernel.arg_names}
        constexprs = {key: value for key, value in constants.items() if key in signature}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs)
        found[kernel.fn.__name__] = triton.compile(source, target=target)
    return found


def cuda_resources(cubin: bytes) -> dict[str, int]:
    """REG, STACK and others of the one kernel in a cubin."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}


def amd_resources(assembly: str) -> dict[str, int]:
    """Register counts, spills and memory that the metadata of an AMD kernel name."""
    names = r"vgpr_count|vgpr_spill_count|sgpr_spill_count|private_segment_fixed_size"
    return {name: int(value) for name, value in re.findall(rf"\.({names}):\s*(\d+)", assembly)}


@contextmanager
def compiled_by(compiler: Callable[..., Any], target: GPUTarget, compiled: dict[Any, Any]) -> Iterator[None]:
    """Calls of triton_launch on CPU tensors go as on a device ``target``, where they start what ``compiler`` makes.

    compiled: what was made so far, by the key of triton_start.
    """
    device = SimpleNamespace(
        get_current_target=lambda: target, get_current_device=lambda: 0, get_current_stream=lambda device: 0
    )
    with (
        mock.patch.object(driver, "_active", device),
        mock.patch.object(triton.compiler, "compile", compiler),
        mock.patch.object(triton_start, "_compiled", compiled),
        mock.patch.object(triton_launch, "_precision", lambda device: "tf32x3"),
    ):
        yield


@contextmanager
def launches_for(target: GPUTarget, compiling: bool) -> Iterator[list[str]]:
    """Calls of triton_launch on CPU tensors go as far as a launch would for ``target``, and run nothing.

    Gives the name of each kernel when it is to be compiled; ``compiling``: it is.
    """
    compile_now, compiled = triton.compiler.compile, []

    def keep(source: ASTSource, **more: Any) -> mock.MagicMock:
        def launch(*arguments):
            given = [None if kind == "constexpr" else argument for kind, argument in zip(types, arguments, strict=True)]
            assert triton_start._type(tuple(given)) == tuple("i64" if kind == "constexpr" else kind for kind in types)

        types = tuple(source.signature.values())
        compiled.append(source.name)
        if compiling:
            compile_now(source, target=target, **more)
        result = mock.MagicMock()
        result.__getitem__.return_value = launch
        return result

    with compiled_by(keep, target, {}):
        yield compiled
