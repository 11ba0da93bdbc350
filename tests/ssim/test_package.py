"""The package as a whole: facts, `python -m`, and life without the compiled part."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fused_ssim
from fused_ssim import __main__ as main
from fused_ssim import native

ROOT = Path(fused_ssim.__file__).parents[1]

HIDDEN = """
import sys, warnings
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == "fused_ssim._C":
            raise ImportError("hidden for this test")
sys.meta_path.insert(0, Hide())
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import fused_ssim, fused_ssim.native, fused_ssim.dispatch
    import importlib, torch
    x = torch.rand(1, 1, 16, 16, requires_grad=True)
    y = torch.rand(1, 1, 16, 16)
    value = fused_ssim.ssim(x, y)
    value.backward()
ours = [w for w in caught if "fused_ssim" in str(w.message)]
assert len(ours) == 1 and "reference" in str(ours[0].message), [str(w.message) for w in caught]
assert torch.equal(value, fused_ssim.ssim(x, y, backend="reference")) and x.grad.abs().sum() > 0
assert "hidden for this test" in str(fused_ssim.info()["native"])
assert fused_ssim.info()["backends"]["cpu"]["chosen"] == "reference"
try:
    fused_ssim.ssim(x, y, backend="cpu")
except RuntimeError as error:
    assert "hidden for this test" in str(error) and "pip install" in str(error), error
else:
    raise SystemExit("backend='cpu' went through")
print("served")
"""


def run(*arguments):
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=300)


def test_without_the_compiled_part():
    result = run("-c", HIDDEN)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "served"


def test_report_names_everything_in_info():
    text = main.report()
    facts = fused_ssim.info()
    assert facts["version"] in text and facts["torch"] in text
    for device, choice in facts["backends"].items():
        assert f"tensors on {device} take the backend {choice['chosen']!r}" in text
        for name, reason in choice["unavailable"].items():
            assert name in text and reason in text


def test_python_m():
    result = run("-m", "fused_ssim")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == main.report()


def test_info_of_the_build():
    if native._C is None:
        pytest.skip(native.error)
    facts = fused_ssim.info()["native"]
    assert facts["cpu_instruction_sets"][-1] == "baseline"
    assert not native._C.set_cpu_instruction_set("AVX-1024")


def test_everything_public_is_there():
    for name in fused_ssim.__all__:
        assert getattr(fused_ssim, name) is not None
