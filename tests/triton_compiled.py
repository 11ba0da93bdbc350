"""Triton kernels compiled ahead of time, for machines that are not there."""

import re
import subprocess
import tempfile
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fused_ssim.triton_kernels import Level, View, ssim_kernel

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


def compile_kernel(target: GPUTarget, warps: int, levels: int = 1, **options):
    """The large kernel for ``target``: MAIN with other ``options``."""
    view = View(*["i64"] * 5)
    level = Level(*[view] * 5, *["i32"] * 8, "i64", "i64")
    signature = {"levels": (level,) * levels, "taps": ("i64",) * 11, "constants": ("i64",) * 3}
    signature |= {"ranges": "i64", "sums": "i64"} | dict.fromkeys(MAIN, "constexpr")
    source = ASTSource(fn=ssim_kernel, signature=signature, constexprs=MAIN | options)
    return triton.compile(source, target=target, options={"num_warps": warps})


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
