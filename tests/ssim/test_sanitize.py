"""sanitize.sh where there are no sanitizers; where there are, it runs for minutes and is its own test."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "sanitize.sh"
COMPILERS = {
    "refuses the option": 'case "$*" in *-fsanitize*) echo "no such option" >&2; exit 1;; *) c++ "$@";; esac',
    # As clang does, whose runtimes have other names.
    "knows no runtime": 'case "$*" in -print-file-name=*) echo "${1#*=}";; *) c++ "$@";; esac',
}


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_compiler_without_sanitizers_is_named_and_no_failure(compiler, tmp_path):
    cxx = tmp_path / "cxx"
    cxx.write_text(f"#!/bin/sh\n{COMPILERS[compiler]}\n")
    cxx.chmod(0o755)
    environment = dict(os.environ, CXX=str(cxx), TMPDIR=str(tmp_path))
    result = subprocess.run(["bash", SCRIPT, sys.executable], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert f"SKIPPED, nothing was checked: {cxx}" in result.stdout.splitlines()[-1]
    assert result.stderr  # the compiler's own words
    assert list(tmp_path.iterdir()) == [cxx]  # nothing is left behind
