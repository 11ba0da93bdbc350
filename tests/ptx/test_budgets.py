"""Budgets of the main CUDA kernel, from benchmarks/static_cost.py: what ptxas gave it and what it executes a pixel."""

import importlib.util

import pytest
import torch
from cuda_emulator import building
from ptx import compiled

SPECIFICATION = importlib.util.spec_from_file_location("static_cost", building.ROOT / "benchmarks" / "static_cost.py")
static_cost = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(static_cost)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(compiled.nvcc() is None, reason="no nvcc"),
    pytest.mark.skipif(static_cost.tool("cuobjdump") is None, reason="no cuobjdump"),
    pytest.mark.skipif(building.compiler() is None, reason="no C++ compiler"),
]

# Fifteen warps of 136 registers fit on a multiprocessor: three blocks of the five that a map of 152 columns takes.
REGISTERS = 136
INTEGER_SHARE = 0.2
# Instructions and slots a pixel. With a mirror there are 10 rows more of moments, and columns are copied.
BUDGETS = {"same": (240.0, 258.0), "reflect": (264.0, 288.0)}


@pytest.mark.parametrize("padding", BUDGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("arch", [75, 80, 86, 89, 90, 100, 120])
def test_main_kernel(arch, dtype, padding):
    cost = static_cost.ours(arch, dtype, padding=padding)
    (resources,) = cost.resources
    assert resources.registers <= REGISTERS
    assert resources.stack_bytes == resources.spill_bytes == 0
    assert cost.shared_bytes <= 73 << 10
    assert cost.ptx_per_pixel["float"] >= 154, "fewer operations than seven separable filters take"
    conversions = 0.0 if dtype == torch.float32 else 3.0
    instructions, slots = BUDGETS[padding]
    assert cost.sass_per_pixel <= instructions + conversions
    assert cost.slots_per_pixel <= slots + conversions
    assert cost.integer_share <= INTEGER_SHARE


@pytest.mark.parametrize("padding, instructions", [("same", 308), ("reflect", 332)])
def test_distillation_is_one_launch(padding, instructions):
    """Min-max by channel with its gradient: one kernel, in which each block finds and settles its maps' extremes."""
    cost = static_cost.ours(90, torch.float32, rescaled=True, padding=padding)
    (resources,) = cost.resources
    assert resources.registers <= REGISTERS and resources.stack_bytes == resources.spill_bytes == 0
    assert cost.sass_per_pixel <= instructions


def test_a_quarter_of_the_work_of_the_straightforward_kernel():
    ours, tiles = static_cost.ours(90, torch.float32), static_cost.tiles(90)
    assert ours.sass_per_pixel < tiles.sass_per_pixel / 4
    assert ours.bytes_per_pixel < tiles.bytes_per_pixel / 4


@pytest.mark.parametrize(
    "threads, registers, shared_bytes, blocks",
    [(256, 32, 0, 8), (256, 128, 0, 2), (160, 128, 67488, 3), (32, 16, 0, 32), (256, 64, 110000, 2)],
)
def test_occupancy_of_an_h100(threads, registers, shared_bytes, blocks):
    chip = static_cost.CHIPS[90]
    assert static_cost.blocks_per_multiprocessor(chip, threads, registers, shared_bytes) == blocks
