"""The Triton backend without a GPU: interpreted, compiled ahead of time, and its PTX run by the PTX interpreter."""

import collections
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
from torch._subclasses import FakeTensorMode

from fused_ssim import dispatch, native, triton_backend
from fused_ssim import triton_tiles as tiles
from fused_ssim.options import SSIMOptions
from fused_ssim.window import kernel_taps

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

INTERPRETED = [
    "test_values and sum_and_its and (7x10 or 3x40)",
    "test_values and (map_under and 7x10 or 1x1x7x321 and sum or 1x1x259x17 and sum and same)",
    "test_values and (value_alone or window_sizes or float64 or other_constants)",
    "test_layouts and (strides and float32 and sum or expanded and sum or weights_of or channels_last or beyond)",
    "test_robustness and (nan_and_inf_come and float32 and 1.0-nan or normalisation and nan or nearly_equal)",
    "test_robustness and (flat_patches and 0.6 and 1.2 and same or keep_their_digits or poisoned)",
    "test_pyramid and (student or constant_regions or weights_of_each or unbatched)",
    "test_pyramid and values_and_gradients and False and level",
    "test_reductions and (which_input or random_upstream)",
    "test_l1 and values_and_gradients and 0.2",
    "test_half and (as_float32 and mean or normalised and level or large_range)",
    "test_autograd and (saves or twice or scalar_upstream or second_derivative or teacher)",
    "test_registration and (opcheck and contiguous or fake_tensors)",
    "test_errors and operator_itself",
    "test_triton_tiles",
]
"""What of the common suite the interpreter runs: every feature, on small tensors."""


@pytest.mark.slow
@pytest.mark.skipif(triton_backend.interpreted, reason="runs inside")
@pytest.mark.skipif(triton_backend.interpreter_fails() is not None, reason=str(triton_backend.interpreter_fails()))
def test_the_common_suite_interpreted():
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(ROOT / "tests" / "ssim")]
    chosen = "triton and not test_triton.py and (" + " or ".join(f"({part})" for part in INTERPRETED) + ")"
    environment = dict(os.environ, TRITON_INTERPRET="1", PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    result = subprocess.run([*command, "-k", chosen], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    passed = int(re.search(r"(\d+) passed", result.stdout)[1])
    assert passed >= 200, result.stdout[-500:]


@pytest.mark.skipif(triton_backend.interpreted, reason="replaces what the interpreter is asked with")
def test_an_interpreter_that_fails_is_named(monkeypatch):
    versions = {"triton": "3.6.0", "numpy": "2.4.6"}
    monkeypatch.setattr(triton_backend, "version", versions.__getitem__)
    assert triton_backend.interpreter_fails() == "the interpreter of Triton 3.6.0 needs NumPy < 2.4, got 2.4.6"
    versions["numpy"] = "2.3.5"
    assert triton_backend.interpreter_fails() is None
    versions.update(triton="3.10.1", numpy="2.4.6")
    assert triton_backend.interpreter_fails() is None


COMPILES = """
import sysconfig
from fused_ssim import triton_backend
from triton.runtime.build import compile_module_from_src
if {headers!r}:
    paths = dict(sysconfig.get_paths(), include={headers!r})
    sysconfig.get_paths = lambda *_, **__: paths
print(triton_backend.compiler_fails(), flush=True)
source = '#include <Python.h>\\nstatic struct PyModuleDef probe = {{PyModuleDef_HEAD_INIT, "probe"}};'
compile_module_from_src(source + "PyMODINIT_FUNC PyInit_probe(void) {{ return PyModule_Create(&probe); }}", "probe")
"""


@pytest.mark.parametrize(
    "environment, headers, named",
    [
        ({}, "", "None"),
        ({"PATH": ""}, "", "C compiler.*gcc"),
        ({"CC": "no-such-compiler"}, "", "C compiler.*no-such-compiler"),
        ({}, "/nowhere", "headers.*/nowhere/Python.h"),
    ],
    ids=["all is there", "no compiler", "CC is wrong", "no headers"],
)
def test_what_triton_compiles_its_launcher_with(tmp_path, environment, headers, named):
    """What is missing is named where, and only where, Triton would fail in the middle of a first call."""
    usual = {name: value for name, value in os.environ.items() if name != "CC"}
    usual |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILES.format(headers=headers)]
    result = subprocess.run(command, capture_output=True, text=True, env=usual | environment)
    assert (result.stdout == "None\n") == (result.returncode == 0), result.stdout + result.stderr
    if named != "None" or triton_backend.compiler_fails() is None:
        assert re.search(named, result.stdout), result.stdout + result.stderr


@pytest.mark.skipif(triton_backend.interpreted, reason="a device is then refused for another reason")
def test_where_triton_cannot_compile_the_reference_serves(monkeypatch):
    monkeypatch.setattr(native, "error", None)
    monkeypatch.setattr(native, "cuda_archs", ())
    monkeypatch.setattr(triton_backend, "_fails", None)
    assert dispatch.preferred("cuda") == "triton"
    monkeypatch.setattr(triton_backend, "_fails", "no C compiler")
    assert dispatch.preferred("cuda") == "reference"
    with FakeTensorMode():
        x = torch.empty(1, 1, 16, 16, device="cuda")
    with pytest.raises(RuntimeError, match="'triton' cannot be used: no C compiler"):
        dispatch.choose("triton", x, SSIMOptions())


@pytest.mark.parametrize("value", ["1", "true", "ON", "0", ""])
def test_triton_and_its_backend_agree_on_whether_it_interprets(value):
    """Else the interpreter would be given the addresses of a device."""
    code = "import triton; from fused_ssim import triton_backend; "
    code += "assert triton_backend.interpreted == triton.knobs.runtime.interpret, triton_backend.interpreted"
    environment = dict(os.environ, TRITON_INTERPRET=value, PYTHONPATH=str(ROOT))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr


OPTIONS = {
    "x": {},
    "x and y": {"sides": 2},
    "map": {"sides": 0, "write_map": True, "write_sums": False},
    "separate": {"form": 2, "exponents": (1.0, 0.3, 1.2)},
    "pyramid of bfloat16": {"dtype": "bf16", "levels": 5, "normalize": True, "track": True},
    "reflect, x and y, weights, L1": {"padding_reflect": True, "sides": 2, "seed_dtype": "fp32", "l1": True},
    "float64": {"dtype": "fp64", "compute": "fp64", "precision": "ieee", "sides": 2},
}


def most_stack(name, architecture, columns):
    """Bytes of stack that are accepted: 0 for losses and gradients of float32 where sm_80 and sm_90 compute them.

    ptxas hands out all 255 registers before it looks for another order, and keeps a few values on the stack where none
    fits: a move for four bytes, of the 1400 to 3000 instructions of a step. Halving what a thread holds (twice the
    warps) would cost 1.7 times the instructions.
    """
    large = name in ("reflect, x and y, weights, L1", "pyramid of bfloat16", "float64")
    if columns == 32:
        return 40 if large and name != "pyramid of bfloat16" else 0
    return 256 if architecture == 100 else 64 if large else 0


def compiled(target, name, tile):
    import triton.language as tl
    import triton_compiled

    types = {"bf16": tl.bfloat16, "fp32": tl.float32, "fp64": tl.float64}
    options = {key: types.get(value, value) for key, value in OPTIONS[name].items()}
    if target.backend == "hip":
        options["precision"] = "ieee"
    return triton_compiled.compile_kernel(target, tile, **options)


def tiles_of(name):
    """What may be launched: all tiles for the main configuration, the two defaults for others."""
    return tiles.NARROW_ONES[:1] if name == "float64" else tiles.OFFERED if name == "x" else tiles.OFFERED[:2]


@pytest.mark.slow
@pytest.mark.skipif(triton_backend.interpreted, reason="needs the compiler")
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_compiles_for_nvidia(architecture, name):
    import triton_compiled
    from triton.backends.compiler import GPUTarget

    for tile in tiles_of(name):
        kernel = compiled(GPUTarget("cuda", architecture, 32), name, tile)
        used = triton_compiled.cuda_resources(kernel.asm["cubin"])
        assert used["LOCAL"] == 0 and 0 < used["REG"] <= 255, used
        assert used["STACK"] <= most_stack(name, architecture, tile.columns), (tile, used)
        assert kernel.metadata.shared <= (32 if tile.columns == 32 else 64) * 1024, "64 KiB are what Turing has"
        assert name == "float64" or "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32" in kernel.asm["ptx"]
        assert not re.search(r"\b(atom|red)\.", kernel.asm["ptx"]), "sums would depend on who comes first"


AMD = {"gfx942": OPTIONS, "gfx90a": ["x"]}


@pytest.mark.slow
@pytest.mark.skipif(triton_backend.interpreted, reason="needs the compiler")
@pytest.mark.parametrize("architecture", AMD)
def test_compiles_for_amd_without_spills(architecture):
    import triton_compiled
    from triton.backends.compiler import GPUTarget

    for name in AMD[architecture]:
        kernel = compiled(GPUTarget("hip", architecture, 64), name, tiles.NARROW)
        used = triton_compiled.amd_resources(kernel.asm["amdgcn"])
        assert used["vgpr_spill_count"] == 0 and used["private_segment_fixed_size"] == 0, (name, used)
        assert kernel.metadata.shared <= 64 * 1024
        assert "mfma" in kernel.asm["amdgcn"]
        assert "atomic" not in kernel.asm["amdgcn"]


@pytest.mark.slow
@pytest.mark.skipif(triton_backend.interpreted, reason="needs the compiler")
def test_the_small_kernels_compile_without_spills_and_atomics():
    import triton_compiled
    from triton.backends.compiler import GPUTarget

    for architecture in (80, 90, 100):
        for name, kernel in triton_compiled.compile_small_kernels(GPUTarget("cuda", architecture, 32)).items():
            used = triton_compiled.cuda_resources(kernel.asm["cubin"])
            assert used["STACK"] == 0 and used["LOCAL"] == 0, (name, used)
            assert not re.search(r"\b(atom|red)\.", kernel.asm["ptx"]), name
    for name, kernel in triton_compiled.compile_small_kernels(GPUTarget("hip", "gfx942", 64)).items():
        used = triton_compiled.amd_resources(kernel.asm["amdgcn"])
        assert used["vgpr_spill_count"] == 0 and used["private_segment_fixed_size"] == 0, (name, used)


def launch_everything(shape, samples_first=False):
    """Every launch that float32 tensors of this shape take for a loss with ranges, a map and its backward pass."""
    from fused_ssim import ops, triton_launch

    definition = ops._definition(SSIMOptions())
    x, y = pair(shape)
    if samples_first:
        x, y = (t.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3) for t in (x, y))
    factor = 1 / x.numel()
    scalars = [0.5], [-0.5 * factor], [0.0], [1.0]
    triton_launch.ssim_sums([x], [y], [], *scalars, *definition, "channel", False, False, True, False)
    triton_launch.ssim_map(x, y, *definition)
    triton_launch.ssim_map_backward(x, x, y, *definition, True, True)
    triton_launch.scale_([x], torch.ones(1), [1.0])


@pytest.mark.skipif(triton_backend.interpreted, reason="needs the compiler")
def test_no_size_is_compiled_on_its_own():
    """Training meets a new size in many a step, and Triton compiles for seconds."""
    import triton_compiled
    from triton.backends.compiler import GPUTarget

    with triton_compiled.launches_for(GPUTarget("cuda", 90, 32), compiling=False) as compiled:
        for shape in [(2, 3, 13, 19), (1, 1, 1, 1), (4, 16, 16, 32), (3, 1, 1, 9), (2, 17, 32, 33), (2, 5, 9, 16)]:
            for samples_first in (False, True):
                launch_everything(shape, samples_first)
    once = ("extremes_kernel", "ranges_kernel", "values_kernel", "scale_kernel")
    assert collections.Counter(compiled) == {"ssim_kernel": 3, **dict.fromkeys(once, 1)}, "a loss, a map, its gradient"


@pytest.mark.slow
@pytest.mark.skipif(triton_backend.interpreted, reason="needs the compiler")
def test_what_a_launch_asks_for_compiles():
    """With the types that a launch makes of its arguments; here those that are 1 and 0."""
    import triton_compiled
    from triton.backends.compiler import GPUTarget

    with triton_compiled.launches_for(GPUTarget("cuda", 80, 32), compiling=True) as compiled:
        launch_everything((1, 1, 1, 1))
    assert len(set(compiled)) == 5


def _bits(value):
    return struct.unpack("q", struct.pack("d", value))[0]


def run_ptx(shape, name, tile, l1=0.0, weight=None):
    """Sums of the units (units, SUMS) and the gradients that the PTX of sm_80 computes for ``pair(shape)``.

    The memory it sees are these arrays alone: an access outside of them raises, what it does not write stays NaN.
    """
    import numpy as np
    from ptx import machine
    from ptx.memory import GlobalMemory
    from ptx.program import parse
    from triton.backends.compiler import GPUTarget

    from fused_ssim.triton_kernels import RADIUS, SUMS

    source = compiled(GPUTarget("cuda", 80, 32), name, tile)
    program = parse(source.asm["ptx"])
    n, c, h, w = shape
    strips = tiles.strips_of(w, tile.columns, 2 * RADIUS)
    units = n * c * strips
    memory = GlobalMemory()
    strides = [c * h * w, h * w, w, 1]
    arrays = [t.numpy().copy() for t in pair(shape)]
    arrays += [None if weight is None else weight.numpy().copy()]
    arrays += [np.full(shape, np.nan, np.float32) for _ in range(2)]
    views = [[0] * 5 if array is None else [memory.add(array), *strides] for array in arrays]
    sums = np.full((units, SUMS), np.nan, np.float32)
    words = [*(value for view in views for value in view), c, h, w, strips, 1, 0, 0, 1]
    options = SSIMOptions()
    tail = [_bits(1.0), _bits(l1), *map(_bits, kernel_taps(11, 1.5))]
    tail += [_bits(2 * options.k1**2), _bits(2 * options.k2**2), _bits(1.0), 0, memory.add(sums)]
    packed = struct.pack(f"<{len(words) + len(tail)}q", *words, *tail).ljust(program.parameter_bytes, b"\0")
    machine.run(program, memory, (units, 1, 1), (32 * tile.warps, 1, 1), packed, source.metadata.shared)
    return torch.from_numpy(sums).double(), *map(torch.from_numpy, arrays[3:])


@pytest.mark.slow
@pytest.mark.skipif(triton_backend.interpreted, reason="needs the compiler")
@pytest.mark.parametrize("tile", tiles.OFFERED, ids=str)
@pytest.mark.parametrize("shape", [(1, 2, 13, 19), (1, 1, 23, 61), (1, 1, 18, 109)], ids=str)
def test_the_compiled_ptx_computes_the_gradient(shape, tile):
    """Where the truth about tf32 shows: the interpreter of Triton multiplies in float32."""
    sums, of_x, _ = run_ptx(shape, "x", tile)
    want = judged(judge.ssim, *pair(shape), reduction="sum")
    assert_close(sums[:, 0].sum(), want[0], tolerance(torch.float32).value, "sum")
    # Far less than is accepted: there it would show only where the window is narrow or the images are bright.
    assert_close(of_x, want[1], 1.2e-6, "gradient by x")


@pytest.mark.slow
@pytest.mark.skipif(triton_backend.interpreted, reason="needs the compiler")
@pytest.mark.parametrize("tile", [tiles.NARROW, tiles.WIDE], ids=str)
def test_the_compiled_ptx_of_all_terms(tile):
    """Mirrored borders, both gradients, weights and L1: what the largest kernel makes of them."""
    shape = (1, 1, 18, 70)
    weight = torch.rand(shape, generator=torch.Generator().manual_seed(3))

    def loss(x, y):
        values = judge.reference.ssim_map(x, y, SSIMOptions(padding="reflect"))
        return (weight.double() * (values + 0.5 * (x - y).abs())).sum()

    want = judged(loss, *pair(shape))
    sums, of_x, of_y = run_ptx(shape, "reflect, x and y, weights, L1", tile, 0.5, weight)
    limit = tolerance(torch.float32)
    assert_close(sums[:, 0].sum() + 0.5 * sums[:, 2].sum(), want[0], limit.value, "sum")
    assert_close(sums[:, 1].sum(), weight.double().sum(), limit.value, "sum of weights")
    assert_close(of_x, want[1], limit.gradient, "gradient by x")
    assert_close(of_y, want[2], limit.gradient, "gradient by y")


@pytest.mark.skipif(triton_backend.interpreted, reason="pure")
def test_offsets_are_as_wide_as_a_plane_needs():
    import triton.language as tl

    from fused_ssim.triton_launch import _index

    def strided(*strides):
        return torch.empty(1, device="meta").as_strided((2, 2, 4, 5), strides)

    assert _index(strided(2**40, 2**33, 5, 1)) is tl.int32, "planes are found with 64 bits anyway"
    assert _index(strided(1, 1, 2**29, 1), None) is tl.int32
    assert _index(None, strided(1, 1, 5, 1), strided(1, 1, 2**30, 1)) is tl.int64
    assert _index(strided(1, 1, 1, 2**29)) is tl.int64
    assert _index(torch.empty(1, device="meta").expand(1, 1, 2**16, 2**15)) is tl.int64, "pixels are counted, too"
