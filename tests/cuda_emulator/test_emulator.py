"""The emulator itself: small kernels give the right result, and each of them, with a mistake planted, is found out."""

import subprocess
from functools import cache
from pathlib import Path

import pytest
from cuda_emulator import building

ASCENDING, RANDOM, DESCENDING = "012"
TOYS = [
    "neighbours",
    "reused_buffer",
    "warp_exchange",
    "past_shared",
    "past_global",
    "divergent_barrier",
    "absent_lane",
    "slots",
    "last_block_sums",
    "warps",
]

pytestmark = pytest.mark.skipif(building.compiler() is None, reason="no C++ compiler")


@cache
def toys(flags: tuple[str, ...]) -> Path:
    return building.link("toys", [building.HERE / "toys.cpp"], flags)


def run(flags, name, planted, order=RANDOM, seed=7, os_threads=1) -> tuple[int, str]:
    command = [str(toys(flags)), name, str(int(planted)), order, str(seed), str(os_threads)]
    if flags == building.THREAD:
        # Its shadow memory does not fit every random layout of the address space.
        command = ["setarch", "-R", *command]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize("order", [ASCENDING, RANDOM, DESCENDING])
@pytest.mark.parametrize("name", TOYS)
def test_right_kernels(name, order):
    assert run(building.PLAIN, name, False, order) == (0, "right\n")


@pytest.mark.parametrize("name", ["warps", "reused_buffer"])
def test_ucontext_where_there_is_no_switch_of_our_own(name):
    assert run((*building.PLAIN, "-DEMULATOR_UCONTEXT"), name, False) == (0, "right\n")


@pytest.mark.parametrize(
    "flags", [building.ADDRESS, pytest.param(building.THREAD, marks=pytest.mark.slow)], ids=["address", "thread"]
)
@pytest.mark.parametrize("name", TOYS)
def test_sanitizers_accept_right_kernels(name, flags):
    assert run(flags, name, False, os_threads=2) == (0, "right\n")


@pytest.mark.parametrize(
    "name, complaint",
    [
        ("neighbours", "wrong: "),
        ("reused_buffer", "wrong: "),
        ("warp_exchange", "wrong: "),
        ("past_shared", "a write beside the dynamic shared memory that the launch gave [block 0,0,0]"),
        ("divergent_barrier", "__syncthreads() after some threads of the block have returned [block 0,0,0]"),
        ("absent_lane", "the calling lane is not in the mask"),
    ],
)
def test_planted_bugs_show_in_random_order(name, complaint):
    code, text = run(building.PLAIN, name, True)
    assert code == 0 and complaint in text


def test_ascending_order_hides_the_missing_barrier():
    """Why a single order is not enough."""
    assert run(building.PLAIN, "neighbours", True, ASCENDING) == (0, "right\n")


@pytest.mark.parametrize("name", ["past_shared", "past_global"])
def test_address_sanitizer_finds_accesses_out_of_bounds(name):
    code, text = run(building.ADDRESS, name, True)
    assert code != 0 and "AddressSanitizer" in text and f"{name} " in text and "toys.cpp" in text


@pytest.mark.slow
@pytest.mark.parametrize("os_threads", [1, 2])
@pytest.mark.parametrize("name", ["neighbours", "reused_buffer", "warp_exchange", "slots", "last_block_sums"])
def test_thread_sanitizer_finds_races(name, os_threads):
    """In ascending order, where results are right: threads of a block, blocks that share a slot, a missing fence."""
    code, text = run(building.THREAD, name, True, ASCENDING, os_threads=os_threads)
    assert code != 0 and "data race" in text and name in text
