"""The package as a whole: facts, `python -m`, and life without the compiled part."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

import fused_ssim
from fused_ssim import __main__ as main
from fused_ssim import dispatch, native
from fused_ssim.options import SSIMOptions

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


def pretend(monkeypatch, archs, capabilities):
    """A build for ``archs`` on a machine with devices of these capabilities, by index; None is the current one."""
    monkeypatch.setattr(native, "error", None)
    monkeypatch.setattr(native, "cuda_archs", archs)
    monkeypatch.setattr(native, "cuda_devices", tuple(native.devices_of(arch) for arch in archs))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capabilities[device and device.index])


DEFAULT_ARCHS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "compute_100", "sm_120", "compute_120")


@pytest.mark.parametrize(
    "archs, capability, served",
    [
        (DEFAULT_ARCHS, (7, 0), False),
        (DEFAULT_ARCHS, (7, 5), True),
        (DEFAULT_ARCHS, (8, 7), True),  # by the code for 8.6
        (DEFAULT_ARCHS, (10, 3), True),
        (DEFAULT_ARCHS, (11, 0), True),  # by the PTX for 10.0
        (DEFAULT_ARCHS, (12, 1), True),
        (DEFAULT_ARCHS, (13, 0), True),
        (("sm_90", "sm_120", "compute_120"), (11, 0), False),  # newer than one, older than the other
        (("sm_90", "sm_120", "compute_120"), (10, 0), False),
        (("sm_86",), (8, 0), False),
        (("sm_90a", "compute_90a"), (9, 0), True),
        (("sm_90a", "compute_90a"), (10, 0), False),
        (("sm_100f",), (10, 3), True),
        (("sm_100f",), (11, 0), False),
    ],
)
def test_a_device_that_no_code_serves_is_refused(monkeypatch, archs, capability, served):
    """Else the launch would fail: "no kernel image is available for execution on the device"."""
    pretend(monkeypatch, archs, {None: capability})
    reason = dispatch.unavailable("cuda", "cuda")
    if served:
        assert reason is None
    else:
        assert f"capability {capability[0]}.{capability[1]}" in reason and archs[0] in reason


def test_the_device_of_the_tensor_decides_and_not_the_current_one(monkeypatch):
    """Two GPUs of different makes, of which the kernels were built for one."""
    pretend(monkeypatch, ("sm_90",), {None: (8, 0), 0: (8, 0), 1: (9, 0)})
    with FakeTensorMode():
        on_first, on_second = (torch.empty(1, 1, 16, 16, device=f"cuda:{i}") for i in range(2))
    for forced in (None, "cuda"):
        assert dispatch.choose(forced, on_second, SSIMOptions()) == "cuda"
    assert dispatch.choose(None, on_first, SSIMOptions()) != "cuda"
    with pytest.raises(RuntimeError, match=r"capability 8\.0"):
        dispatch.choose("cuda", on_first, SSIMOptions())


def test_each_of_several_devices_is_described(monkeypatch):
    pretend(monkeypatch, ("sm_90",), {None: (8, 0), 0: (8, 0), 1: (9, 0)})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    table = fused_ssim.info()["backends"]
    assert list(table) == ["cpu", "cuda", "cuda:0", "cuda:1"]
    assert table["cuda:1"]["chosen"] == "cuda" != table["cuda:0"]["chosen"]
    assert table["cuda"] == table["cuda:0"] and "capability 8.0" in table["cuda"]["unavailable"]["cuda"]
    assert "tensors on cuda:1 take the backend 'cuda'" in main.report()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert list(fused_ssim.info()["backends"]) == ["cpu", "cuda"]


def test_an_architecture_must_have_a_known_name():
    with pytest.raises(ValueError, match="got 'gfx942'"):
        native.devices_of("gfx942")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_what_is_built_by_default_serves_every_device_from_75_on(monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(sys, "argv", ["setup.py", "-q", "--version"])
    monkeypatch.chdir(ROOT)
    names = runpy.run_path("setup.py")["gencodes"](Path(shutil.which("nvcc")))[1]
    served = [native.devices_of(name) for name in names]
    for capability in (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121, 130):
        assert any(least <= capability <= most for least, most in served), (capability, names)
