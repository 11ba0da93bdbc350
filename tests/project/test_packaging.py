"""What is published: the source archive, its metadata, and facts that stand in more than one file."""

import ast
import email
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

import fused_ssim

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# setup.py, where torch and pybind11 can't be imported.
SDIST = """
import runpy, sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "pybind11"):
            raise ImportError(f"{name} is hidden for this test")
sys.meta_path.insert(0, Hide())
sys.argv = ["setup.py", "-q", "sdist"]
runpy.run_path("setup.py", run_name="__main__")
"""

SOURCES = ("benchmarks", "configs", "csrc", "docs", "examples", "fused_ssim", "kd", "tests")
BUILT = shutil.ignore_patterns("*.so", "__pycache__", "*.pyc")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The members of the source archive, path -> bytes, without the leading folder."""
    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path_factory.mktemp("sdist")
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=BUILT)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, copy)
    # Here, so that the archive's rules are seen to leave them out.
    for folder in ("fused_ssim", "csrc", "tests"):
        (copy / folder / "built.cpython-311-x86_64-linux-gnu.so").write_bytes(b"built")
        (copy / folder / "built.cpython-311.pyc").write_bytes(b"built")
    result = subprocess.run([sys.executable, "-c", SDIST], cwd=copy, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (archive,) = (copy / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        files = [member for member in tar.getmembers() if member.isfile()]
        return {member.name.split("/", 1)[1]: tar.extractfile(member).read() for member in files}


def test_the_archive_holds_all_sources(sdist):
    wanted = {
        str(path.relative_to(ROOT))
        for name in SOURCES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and path.suffix not in (".so", ".pyc") and "__pycache__" not in path.parts
    }
    wanted |= {"setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md"}
    wanted |= {"Makefile", "mkdocs.yml"}
    assert wanted <= set(sdist)


def test_the_archive_holds_nothing_built(sdist):
    assert not [name for name in sdist if name.endswith((".so", ".pyc")) or "__pycache__" in name]


def test_metadata_need_no_torch(sdist):
    metadata = email.message_from_bytes(sdist["PKG-INFO"])
    assert metadata["Name"] == "fused-ssim-distill" and metadata["Version"] == fused_ssim.__version__
    assert metadata["License-Expression"] == "MIT"
    assert set(metadata.get_all("Provides-Extra")) == {"kd", "demo", "test", "bench", "docs"}
    assert [r for r in metadata.get_all("Requires-Dist") if "extra" not in r] == ["torch>=2.11"]


def test_every_source_of_the_extension_is_named():
    """setup.py lists sources one by one: each must exist, and no source of csrc may be forgotten."""
    text = (ROOT / "setup.py").read_text()
    named = {node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}
    named = {value for value in named if isinstance(value, str) and value.startswith("csrc/")}
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".cu")}
    assert {name for name in named if name.endswith((".cpp", ".cu"))} == there


def test_one_version():
    assert PROJECT["version"] == fused_ssim.__version__
    assert f"version: {fused_ssim.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {fused_ssim.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_workflows_try_every_python_and_the_oldest_torch():
    workflow = ROOT / ".github" / "workflows" / "test.yml"
    if not workflow.exists():
        pytest.skip("the source archive holds no workflows")
    pythons = re.search(r"python: \[(.*)\]", workflow.read_text()).group(1).replace('"', "").split(", ")
    declared = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", c)]
    assert pythons == declared and PROJECT["requires-python"] == f">={pythons[0]}"
    oldest = re.search(r"torch>=([\d.]+)", PROJECT["dependencies"][0]).group(1)
    assert f"torch=={oldest}.*" in workflow.read_text()
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]["build"]
    assert built == [f"cp{version.replace('.', '')}-*" for version in declared]


def test_every_public_name_is_on_the_api_page():
    page = (ROOT / "docs" / "api.md").read_text()
    for name in set(fused_ssim.__all__) - {"compat", "reference"}:
        assert f"::: fused_ssim.{name}\n" in page, name
    assert "::: fused_ssim.compat.pytorch_msssim" in page and "::: fused_ssim.reference" in page


def test_links_of_the_readme_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "benchmarks" / "README.md"):
        targets = re.findall(r"\]\(([^)#]+)", page.read_text())
        local = [target for target in targets if not target.startswith("http")]
        assert local
        for target in local:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    api = (tmp_path / "api" / "index.html").read_text()
    assert "pyramid_ssim_loss" in api and ":func:" not in api
