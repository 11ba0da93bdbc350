"""The real CUDA kernels under the emulator: right in every order, under sanitizers; planted bugs that must be found."""

import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from cuda_emulator import building, kernels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(building.compiler() is None, reason="no C++ compiler"),
]

# Quick to compile; what the plain build of the test-suite runs is optimised.
PLAIN = ("-O1", "-march=native")
CSRC = building.ROOT / "csrc"


CASES = {"lean": 19, "general": 4, "more": 4}


@cache
def check(flags: Sequence[str], lean_only: bool) -> Path:
    return kernels.build_check(flags=flags, lean_only=lean_only)


def run(program: Path, cases: str, order: int, seed: int = 3, os_threads: int = 1) -> tuple[int, str]:
    command = ["setarch", "-R", str(program), cases, str(order), str(seed), str(os_threads)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize("cases", CASES)
def test_the_order_of_threads_changes_no_bit(cases):
    program = check(PLAIN, False)
    code, expected = run(program, cases, kernels.ASCENDING)
    assert code == 0 and expected.count("outputs") == CASES[cases], expected
    for order, seed in ((kernels.DESCENDING, 0), (kernels.RANDOM, 1), (kernels.RANDOM, 2)):
        assert run(program, cases, order, seed) == (0, expected)
    assert run(program, cases, kernels.RANDOM, 5, os_threads=2) == (0, expected)


@pytest.mark.parametrize("cases", CASES)
def test_address_and_undefined_behaviour_sanitizers(cases):
    code, text = run(check(building.ADDRESS, False), cases, kernels.RANDOM)
    assert code == 0 and text.count("outputs") == CASES[cases], text[-4000:]


@pytest.mark.parametrize("cases", CASES)
def test_thread_sanitizer(cases):
    code, text = run(check(building.THREAD, False), cases, kernels.ASCENDING, os_threads=2)
    assert code == 0 and text.count("outputs") == CASES[cases], text[:6000]


# ---- Planted bugs ----

PLANTED = {
    # the file, what stands there (once), what is put in its place
    "barrier": ("cuda/march.cuh", "mirror_cells();\n      __syncthreads();", "mirror_cells();"),
    "row": ("cuda/march.cuh", "column.column < block.level.w);", "column.column <= block.level.w);"),
    "slot": ("cuda/march.cuh", "b_.args.slots[unit]", "b_.args.slots[0]"),
    "level's factor": ("cuda/scale.cuh", "index * args.factor_stride", "0 * args.factor_stride"),
    "level's gradient": ("cuda/ssim_cuda.cu", "level.slope * level.grad_scale *", "level.slope *"),
}


def planted(tmp_path: Path, name: str, flags: Sequence[str]) -> Path:
    """The check with a bug, compiled from a patched copy of the sources."""
    copy = tmp_path / "csrc"
    shutil.copytree(CSRC, copy)
    file, before, after = PLANTED[name]
    source = (copy / file).read_text()
    assert source.count(before) == 1, f"{before!r} no longer stands in {file} once"
    (copy / file).write_text(source.replace(before, after))
    return kernels.build_check(copy, flags, lean_only=True)


def test_a_missing_barrier_changes_results(tmp_path):
    expected = run(check(PLAIN, True), "lean", kernels.ASCENDING)
    assert expected[0] == 0
    program = planted(tmp_path, "barrier", PLAIN)
    assert any(run(program, "lean", kernels.RANDOM, seed) != expected for seed in range(3))


def test_a_missing_barrier_is_a_race(tmp_path):
    code, text = run(planted(tmp_path, "barrier", building.THREAD), "lean", kernels.ASCENDING)
    assert code != 0 and "data race" in text and "march.cuh" in text


def test_an_index_past_a_row_is_out_of_bounds(tmp_path):
    code, text = run(planted(tmp_path, "row", building.ADDRESS), "lean", kernels.RANDOM)
    assert code != 0 and ("AddressSanitizer" in text or "runtime error" in text) and "march.cuh" in text


def test_two_blocks_that_write_one_slot_are_a_race(tmp_path):
    code, text = run(planted(tmp_path, "slot", building.THREAD), "lean", kernels.ASCENDING, os_threads=2)
    assert code != 0 and "data race" in text and "finish" in text


@pytest.mark.parametrize("name", ["level's factor", "level's gradient"])
def test_what_is_wrong_in_every_order_is_seen(tmp_path, name):
    code, text = run(planted(tmp_path, name, PLAIN), "lean", kernels.ASCENDING)
    assert code == 1 and "levels" in text and "WRONG" in text
