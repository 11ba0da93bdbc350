"""benchmarks/gpu_check.sh: no false "ok", an end before its deadline, and a dry run as far as that goes here."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_built
from benchmarks.gpu_built import serving
from fused_ssim import triton_backend

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "benchmarks" / "gpu_check.sh")
STEPS = ["build", "info", "streams", "suite", "speed", "triton", "memcheck", "racecheck", "initcheck"]


@pytest.mark.slow
def test_dry_run(tmp_path):
    """With the build of the CPU kernels alone: that of the CUDA kernels is what the rest of the suite runs."""
    command = ["bash", SCRIPT, "--dry-run", "--deadline", "1500", sys.executable, str(tmp_path)]
    environment = dict(os.environ, FUSED_SSIM_CUDA="0")
    result = subprocess.run(command, capture_output=True, text=True, timeout=1600, env=environment)
    assert result.returncode == 0, result.stdout + (tmp_path / "log.txt").read_text()[-6000:]
    table = statuses(tmp_path)
    assert list(table) == ["build", "info", "emulated", "streams", "subset", "speed"] and set(table.values()) == {"ok"}
    text = (tmp_path / "log.txt").read_text()
    assert "dry run: went through" in text and "not timed" not in text
    assert ("| fused_ssim triton ms |" in text) == (triton_backend.interpreter_fails() is None)


# ---- The script itself, with a stand-in for python and compute-sanitizer ----

STAND_IN = """#!/usr/bin/env bash
case "$*" in
  *get_device_capability*) echo 9.0 ;;
  --tool*) [[ ${{PYTORCH_NO_CUDA_MEMORY_CACHING:-}} ]] || exit 4 ;;& # or it sees no access beside a tensor
  *{broken}*) exit 3 ;;
  *{slow}*) sleep 60 ;;
esac
"""


def test_peers_that_were_brought_along_are_installed_before_the_timing(tmp_path):
    peers = tmp_path / "peers"
    (peers / "rahul-goel-fused-ssim").mkdir(parents=True)
    (peers / "fussim-0-py3-none-any.whl").touch()
    process = start(tmp_path, "--peers", str(peers))
    text, _ = process.communicate(timeout=60)
    table = statuses(tmp_path / "out")
    assert process.returncode == 0 and set(table.values()) == {"ok"}, text
    assert list(table) == [*STEPS[:4], "peers", "rahul-goel", *STEPS[4:]]
    # No time for a compiler where the timing needs it.
    process = start(tmp_path, "--peers", str(peers), "--deadline", "300")
    process.communicate(timeout=60)
    table = statuses(tmp_path / "out")
    assert process.returncode != 0 and table["rahul-goel"] == "not reached" and table["speed"] == "ok"


def start(tmp_path, *options, broken="nothing-broken", slow="nothing-slow") -> subprocess.Popen:
    stand_in = tmp_path / "compute-sanitizer"
    stand_in.write_text(STAND_IN.format(broken=broken, slow=slow))
    stand_in.chmod(0o755)
    environment = dict(os.environ, PATH=f"{tmp_path}:{os.environ['PATH']}")
    if "--peers" not in options:
        options = (*options, "--peers", str(tmp_path / "nobody"))
    command = ["bash", SCRIPT, *options, str(stand_in), str(tmp_path / "out")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def statuses(out: Path) -> dict[str, str]:
    """What the table at the end says of each step."""
    rows = [line.split(maxsplit=1) for line in (out / "steps.txt").read_text().splitlines()]
    return {name: said.split("  ")[0] for name, said in rows}


def test_every_step_is_named(tmp_path):
    process = start(tmp_path)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text
    assert statuses(tmp_path / "out") == dict.fromkeys(STEPS, "ok")


def test_a_step_that_fails_is_no_success_and_stops_no_other(tmp_path):
    process = start(tmp_path, broken="test_cuda_streams.py")
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert statuses(tmp_path / "out") == {**dict.fromkeys(STEPS, "ok"), "streams": "failed"}


def test_without_kernels_for_the_device_nothing_is_said_to_be_ok(tmp_path):
    process = start(tmp_path, broken="gpu_built")
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert statuses(tmp_path / "out") == {**dict.fromkeys(STEPS, "not reached"), "build": "ok", "info": "failed"}


def test_the_deadline_holds_and_speed_comes_before_the_sanitizers(tmp_path):
    begin = time.monotonic()
    process = start(tmp_path, "--deadline", "12", slow="memcheck")
    text, _ = process.communicate(timeout=60)
    assert time.monotonic() - begin < 12 and process.returncode != 0
    table = statuses(tmp_path / "out")
    assert table["speed"] == "ok" and table["memcheck"] == "cut short"
    assert table["racecheck"] == table["initcheck"] == "not reached" and "not reached" in text


def test_an_interruption_leaves_the_table(tmp_path):
    process = start(tmp_path, slow="gpu_speed")
    while "suite" not in process.stdout.readline():
        pass
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    text = process.stdout.read()
    assert process.wait(timeout=20) != 0
    assert statuses(tmp_path / "out")["speed"] == "interrupted" and "initcheck  not reached" in text


# ---- Peers ----

PEER_SETUP = """
from setuptools import setup
setup(name="fused-ssim", version="0", packages=["fused_ssim"])
"""


def peers(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    command = ["bash", str(ROOT / "benchmarks" / "gpu_peers.sh"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, **environment))


@pytest.fixture
def no_network(tmp_path) -> str:
    """A python whose pip reaches nothing but makes a wheel of pytorch-msssim."""
    stand_in = tmp_path / "python"
    stand_in.write_text(
        """#!/usr/bin/env bash
        while (($# > 1)); do if [[ $1 == --dest ]]; then dest=$2; fi; shift; done
        if [[ $1 == pytorch-msssim ]]; then touch "$dest/pytorch_msssim-1-py3-none-any.whl"; else exit 1; fi
        """
    )
    stand_in.chmod(0o755)
    return str(stand_in)


def test_peers_from_a_folder(tmp_path, no_network):
    source, dest = tmp_path / "theirs", tmp_path / "peers"
    (source / "fused_ssim").mkdir(parents=True)
    (source / "fused_ssim" / "__init__.py").write_text("mark = 'theirs'\n")
    (source / "setup.py").write_text(PEER_SETUP)
    (source / ".git").mkdir()
    result = peers("fetch", "--dest", dest, source, PYTHON=no_network)
    assert result.returncode == 1 and "missing: fussim" in result.stderr and result.stderr.count("missing") == 1
    kept = dest / "rahul-goel-fused-ssim"
    assert (kept / "setup.py").exists() and not (kept / ".git").exists()
    assert [file.name for file in dest.glob("*.whl")] == ["pytorch_msssim-1-py3-none-any.whl"]
    result = peers("build", sys.executable, dest, tmp_path / "built")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "built" / "fused_ssim" / "__init__.py").read_text() == "mark = 'theirs'\n"


def test_peers_that_are_missing_are_named(tmp_path, no_network):
    result = peers("fetch", "--dest", tmp_path / "peers", tmp_path / "nowhere", PYTHON=no_network)
    assert result.returncode == 1 and "missing: rahul-goel/fused-ssim" in result.stderr
    (tmp_path / "peers" / "broken-1-py3-none-any.whl").write_text("no wheel")
    result = peers("install", sys.executable, tmp_path / "peers", tmp_path / "to")
    assert result.returncode == 1 and "missing" in result.stderr and "broken" in result.stderr


def test_peers_are_not_committed():
    command = ["git", "check-ignore", "-q", "benchmarks/gpu_peers/fussim.whl"]
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    assert subprocess.run(command, cwd=ROOT).returncode == 0


# ---- What the steps ask ----


def run_tests(tmp_path, body: str) -> subprocess.CompletedProcess:
    file = tmp_path / "test_these.py"
    file.write_text(f"import pytest\n{body}\n")
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu_tests",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        str(file),
    ]
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)


SKIPPED_FIXTURE = """
@pytest.fixture
def backend():
    pytest.skip("cuda: it was built without CUDA kernels; install again where nvcc is in CUDA_HOME or PATH")
def test_on(backend): pass
def test_of_the_plan(): pass
"""


@pytest.mark.parametrize(
    "body, passes",
    [
        ("def test_one(): pass", True),
        ("def test_one(): pass\ndef test_two(): pytest.skip('this shape has no map')", True),
        ("def test_one(): pytest.skip('this shape has no map')", False),
        (
            "pytestmark = pytest.mark.skipif(True, reason='this machine has no CUDA device')\ndef test_one(): pass",
            False,
        ),
        (SKIPPED_FIXTURE, False),
        ("def test_one(): assert False", False),
    ],
    ids=["passed", "passed and skipped", "only skipped", "module without device", "built without", "failed"],
)
def test_tests_that_were_skipped_are_no_success(tmp_path, body, passes):
    result = run_tests(tmp_path, body)
    assert (result.returncode == 0) == passes, result.stdout + result.stderr


@pytest.mark.parametrize("archs", [(), ("sm_80", "sm_100")], ids=["nvcc failed", "others"])
def test_a_build_without_kernels_for_the_device_is_no_ok(monkeypatch, archs):
    """Where nvcc fails, setup.py builds the CPU kernels alone, and says that it went well."""
    monkeypatch.setattr(gpu_built.native, "cuda_archs", archs)
    monkeypatch.setattr(sys, "argv", ["gpu_built", "--capability", "9.0"])
    with pytest.raises(SystemExit, match=r"no kernels for a device of capability 9\.0"):
        gpu_built.main()


def test_kernels_that_fit_a_device():
    archs = ("sm_75", "sm_80", "sm_86", "sm_90a", "compute_80")
    assert serving(archs, (8, 9)) == ["sm_80", "sm_86", "compute_80"]
    assert serving(archs, (9, 0)) == ["sm_90a", "compute_80"]
    assert serving(archs, (7, 0)) == [] and serving((), (9, 0)) == []
    assert serving(("sm_90", "sm_100"), (12, 0)) == [] and serving(("sm_120",), (12, 1)) == ["sm_120"]
