"""benchmarks/gpu_check.sh goes through as far as it can without a device, so that no lent minute is lost to a typo."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_dry_run(tmp_path):
    command = ["bash", str(ROOT / "benchmarks" / "gpu_check.sh"), "--dry-run", sys.executable, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("ok  ") == 4 and "dry run: went through" in result.stdout
