"""The CPU kernel, cross-compiled for 64-bit ARM (NEON) and run by an emulator, against the judge.

Needs a cross compiler and QEMU's user mode (Debian, Ubuntu: ``g++-aarch64-linux-gnu qemu-user``).
"""

import shutil
import subprocess
from pathlib import Path

import judge
import pytest
import torch
from judge import assert_close, pair, tolerance
from torch.utils.cpp_extension import include_paths

from fused_ssim.window import kernel_taps

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
CPU = HERE.parents[1] / "csrc" / "cpu"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # in the order of DType
PADDINGS = ("same", "reflect", "valid")
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


@pytest.fixture(scope="module")
def kernel(tmp_path_factory) -> list[str]:
    """The command that runs the program."""
    missing = [program for program in (COMPILER, EMULATOR) if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not found")
    program = tmp_path_factory.mktemp("arm") / "kernel"
    sources = [HERE / "kernel_main.cpp", CPU / "ssim_cpu.cpp", CPU / "kernels_baseline.cpp"]
    options = ["-static", "-std=c++20", "-O2", f"-I{CPU.parent}", *(f"-I{path}" for path in include_paths())]
    subprocess.run([COMPILER, *options, *map(str, sources), "-o", str(program)], check=True)
    return [EMULATOR, str(program)]


def run(kernel, x, y, padding, exponents):
    """The sum of the map, and its gradients by x and by y."""
    n, c, h, w = x.shape
    numbers = [DTYPES.index(x.dtype), n, c, h, w, PADDINGS.index(padding), *exponents]
    parts = [torch.tensor(kernel_taps(11, 1.5), dtype=torch.float64), x, y]
    data = b"".join(part.contiguous().view(torch.uint8).numpy().tobytes() for part in parts)
    result = subprocess.run([*kernel, *map(str, numbers)], input=data, stdout=subprocess.PIPE, check=True).stdout
    value = torch.frombuffer(bytearray(result[:8]), dtype=torch.float64)
    gradients = torch.frombuffer(bytearray(result[8:]), dtype=x.dtype).reshape(2, n, c, h, w)
    return value.squeeze(0), *gradients


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", [(1, 1, 11, 12), (2, 3, 13, 19), (1, 5, 40, 130)], ids=str)
@pytest.mark.parametrize("exponents", [(1.0, 1.0, 1.0), (1.0, 0.5, 0.25)], ids=str)
def test_against_the_judge(kernel, dtype, padding, shape, exponents):
    x, y = pair(shape, dtype)
    value, grad_x, grad_y = run(kernel, x, y, padding, exponents)
    wide = x.double().requires_grad_(), y.double().requires_grad_()
    want = judge.ssim(*wide, padding=padding, exponents=exponents, reduction="sum")
    want_x, want_y = torch.autograd.grad(want, wide)
    limit = tolerance(dtype, exponents)
    assert_close(value, want, limit.value, "sum")
    assert_close(grad_x, want_x, limit.gradient, "gradient by x")
    assert_close(grad_y, want_y, limit.gradient, "gradient by y")
