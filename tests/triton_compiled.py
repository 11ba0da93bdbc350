"""Triton kernels compiled ahead of time, for machines that are not there."""

import re
import subprocess
import tempfile
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

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
    level = Level(*[VIEW] * 5, *["i32"] * 8, "i64", "i64")
    signature = {"levels": (level,) * levels, "taps": ("i64",) * 11, "constants": ("i64",) * 3}
    signature |= {"ranges": "i64", "sums": "i64"} | dict.fromkeys([*MAIN, "COLUMNS"], "constexpr")
    source = ASTSource(fn=ssim_kernel, signature=signature, constexprs=MAIN | {"COLUMNS": tile.columns} | options)
    return triton.compile(source, target=target, options={"num_warps": tile.warps, "num_stages": tile.stages})


def compile_small_kernels(target: GPUTarget, compute: tl.dtype = tl.float32):
    """Each of the kernels of triton_reductions.py, by name."""
    total = small.Total(*["i32"] * 3, *["i64"] * 3, "i32")
    plane = small.Plane(VIEW, VIEW, *["i32"] * 6)
    gradient = small.Gradient(VIEW, *["i32"] * 5, "i64")
    addresses = dict.fromkeys(["sums", "values", "extremes", "ranges", "factor", "data_range"], "i64")
    tuples = {small.values_kernel: ("totals", total), small.scale_kernel: ("grads", gradient)}
    constants = {"compute": compute, "dtype": compute, "factor_dtype": compute, "index": tl.int64}
    constants |= {"seeds": True, "l1": True, "tiny": 1e-38}
    found = {}
    for kernel in (small.values_kernel, small.extremes_kernel, small.ranges_kernel, small.scale_kernel):
        name, entry = tuples.get(kernel, ("levels", plane))
        kinds = addresses | dict.fromkeys(constants, "constexpr") | {name: (entry,) * 2}
        signature = {argument: kinds.get(argument, "i32") for argument in kernel.arg_names}
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
