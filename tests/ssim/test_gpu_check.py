"""benchmarks/gpu_check.sh goes through as far as it can without a device, so that no lent minute is lost to a typo."""

import subprocess
import sys
from pathlib import Path

import pytest

from fused_ssim import triton_backend

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_dry_run(tmp_path):
    command = ["bash", str(ROOT / "benchmarks" / "gpu_check.sh"), "--dry-run", sys.executable, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("ok  ") == 4 and "dry run: went through" in result.stdout
    assert "not timed" not in result.stdout
    assert ("| fused_ssim triton ms |" in result.stdout) == (triton_backend.interpreter_fails() is None)


def test_the_targets_of_triton(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.gpu_speed import targets

    times = {"mse_loss": 0.5, "fused_ssim cuda": 2.0, "fused_ssim triton": 3.0, "slow": 9.0, "fussim": 6.0}
    said = targets(times)
    assert "Triton / CUDA 1.50" in said and "fussim / Triton 2.00" in said
    assert targets({"mse_loss": 0.5, "fused_ssim cuda": 2.0}) == "no Triton kernel to compare"
