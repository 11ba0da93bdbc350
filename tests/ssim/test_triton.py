"""The Triton backend without a GPU: interpreted, compiled ahead of time, and its PTX run by the PTX interpreter."""

import importlib.util
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import judge
import pytest
import torch
from judge import assert_close, judged, pair, tolerance

from fused_ssim import triton_backend
from fused_ssim.options import SSIMOptions
from fused_ssim.window import kernel_taps

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

INTERPRETED = [
    "test_values and sum_and_its and (7x10 or 3x40)",
    "test_values and (map_under and 7x10 or 1x1x7x321 and sum or 1x1x259x17 and sum and same)",
    "test_values and (value_alone or window_sizes or float64 or other_constants)",
    "test_layouts and (strides and float32 and sum or expanded and sum or weights_of or channels_last) and not beyond",
    "test_robustness and (nan_and_inf_come and float32 and 1.0-nan or normalisation and nan or nearly_equal)",
    "test_robustness and (flat_patches and 0.6 and 1.2 and same or keep_their_digits or poisoned)",
    "test_pyramid and (student or constant_regions or weights_of_each or unbatched)",
    "test_reductions and (which_input or random_upstream)",
    "test_l1 and values_and_gradients and 0.2",
    "test_half and (as_float32 and mean or normalised and level or large_range)",
    "test_autograd and (saves or twice or scalar_upstream or second_derivative or teacher)",
    "test_registration and (opcheck and contiguous or fake_tensors)",
    "test_errors and operator_itself",
]
"""What of the common suite the interpreter runs: every feature, on small tensors."""


@pytest.mark.slow
@pytest.mark.skipif(triton_backend.interpreted, reason="runs inside")
def test_the_common_suite_interpreted():
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(ROOT / "tests" / "ssim")]
    chosen = "triton and not test_triton and (" + " or ".join(f"({part})" for part in INTERPRETED) + ")"
    environment = dict(os.environ, TRITON_INTERPRET="1", PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    result = subprocess.run([*command, "-k", chosen], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    passed = int(re.search(r"(\d+) passed", result.stdout)[1])
    assert passed >= 200, result.stdout[-500:]


OPTIONS = {
    "x": {},
    "x and y": {"sides": 2},
    "map": {"sides": 0, "write_map": True, "write_sums": False},
    "separate": {"form": 2, "exponents": (1.0, 0.3, 1.2)},
    "pyramid of bfloat16": {"dtype": "bf16", "levels": 5, "normalize": True, "track": True},
}


def compiled(target, name):
    import triton.language as tl
    import triton_compiled

    from fused_ssim.triton_launch import WARPS

    options = dict(OPTIONS[name])
    if "dtype" in options:
        options["dtype"] = tl.bfloat16
    if target.backend == "hip":
        options["precision"] = "ieee"
    return triton_compiled.compile_kernel(target, WARPS, **options)


@pytest.mark.slow
@pytest.mark.skipif(triton_backend.interpreted, reason="needs the compiler")
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_compiles_for_nvidia_without_spills(architecture, name):
    import triton_compiled
    from triton.backends.compiler import GPUTarget

    kernel = compiled(GPUTarget("cuda", architecture, 32), name)
    used = triton_compiled.cuda_resources(kernel.asm["cubin"])
    assert used["STACK"] == 0 and used["LOCAL"] == 0, used
    assert 0 < used["REG"] <= 255
    assert kernel.metadata.shared <= 48 * 1024
    assert "tf32" in kernel.asm["ptx"]


@pytest.mark.slow
@pytest.mark.skipif(triton_backend.interpreted, reason="needs the compiler")
def test_compiles_for_amd_without_spills():
    import triton_compiled
    from triton.backends.compiler import GPUTarget

    kernel = compiled(GPUTarget("hip", "gfx942", 64), "x")
    used = triton_compiled.amd_resources(kernel.asm["amdgcn"])
    assert used["vgpr_spill_count"] == 0 and used["private_segment_fixed_size"] == 0, used
    assert kernel.metadata.shared <= 64 * 1024


def _bits(value):
    return struct.unpack("q", struct.pack("d", value))[0]


@pytest.mark.slow
@pytest.mark.skipif(triton_backend.interpreted, reason="needs the compiler")
@pytest.mark.parametrize("shape", [(1, 2, 13, 19), (1, 1, 23, 61)], ids=str)
def test_the_compiled_ptx_computes_the_gradient(shape):
    """Where the truth about tf32 shows: the interpreter of Triton multiplies in float32."""
    import numpy as np
    from ptx import machine
    from ptx.memory import GlobalMemory
    from ptx.program import parse
    from triton.backends.compiler import GPUTarget

    from fused_ssim.triton_kernels import COLUMNS, RADIUS, SUMS
    from fused_ssim.triton_launch import WARPS

    source = compiled(GPUTarget("cuda", 80, 32), "x")
    program = parse(source.asm["ptx"])
    n, c, h, w = shape
    x, y = pair(shape)
    strips = 1 if w <= COLUMNS else -(-(w - COLUMNS) // (COLUMNS - 4 * RADIUS)) + 1
    units = n * c * strips
    memory = GlobalMemory()
    arrays = [x.numpy().copy(), y.numpy().copy(), np.full(shape, np.nan, np.float32)]
    addresses = [memory.add(array) for array in arrays]
    sums = np.full((units, SUMS), np.nan, np.float32)
    strides = [c * h * w, h * w, w, 1]
    none = [0] * 5
    views = [[addresses[0], *strides], [addresses[1], *strides], none, [addresses[2], *strides], none]
    quads = [value for view in views for value in view]
    words = [c, h, w, strips, 1, 0, 0, 1]
    options = SSIMOptions()
    tail = [_bits(1.0), _bits(0.0), *map(_bits, kernel_taps(11, 1.5)), _bits(options.k1**2), _bits(options.k2**2)]
    tail += [_bits(1.0), 0, memory.add(sums)]
    layout = "<25q8i" + f"{len(tail)}q"
    packed = struct.pack(layout, *quads, *words, *tail).ljust(program.parameter_bytes, b"\0")
    shared = source.metadata.shared
    machine.run(program, memory, (units, 1, 1), (32 * WARPS, 1, 1), packed, shared)
    want = judged(judge.ssim, x, y, reduction="sum")
    assert_close(torch.from_numpy(sums[:, 0]).double().sum(), want[0], tolerance(torch.float32).value, "sum")
    assert_close(torch.from_numpy(arrays[2]), want[1], tolerance(torch.float32).gradient, "gradient by x")
