"""Memory beside inputs and outputs: at most 1 MB for each thread, however many maps there are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fused_ssim

CALL = """
import sys
import torch
import fused_ssim
from benchmarks.measure import _high_water_mark

torch.set_num_threads(1)
normalize = sys.argv[1] or None

def gradient(x, y):
    value = fused_ssim.pyramid_ssim_loss([x], [y], normalize=normalize, backend="cpu")
    return torch.autograd.grad(value, x)

x, y = torch.rand(2, 128, 1024, 2, 2).unbind()
gradient(x[:1].clone().requires_grad_(), y[:1])
x.requires_grad_()
peak = _high_water_mark(lambda: gradient(x, y))
print("unknown" if peak is None else peak - x.numel() * x.element_size())
"""


@pytest.mark.parametrize("normalize", ["", "channel"])
def test_many_small_maps(normalize):
    if fused_ssim.dispatch.unavailable("cpu", "cpu") is not None:
        pytest.skip(fused_ssim.native.error)
    environment = dict(os.environ, PYTHONPATH=str(Path(fused_ssim.__file__).parents[1]))
    command = [sys.executable, "-c", CALL, normalize]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    if result.stdout.strip() == "unknown":
        pytest.skip("this system does not tell the most memory that a process had")
    assert int(result.stdout) <= 1 << 20
