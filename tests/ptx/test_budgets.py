"""Budgets of the CUDA kernels, from benchmarks/static_cost.py: what ptxas gave it and what it executes a pixel."""

import importlib.util
import re

import pytest
import torch
from cuda_emulator import building
from ptx import compiled
from ptx.program import entries, parse

SPECIFICATION = importlib.util.spec_from_file_location("static_cost", building.ROOT / "benchmarks" / "static_cost.py")
static_cost = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(static_cost)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(compiled.nvcc() is None, reason="no nvcc"),
    pytest.mark.skipif(static_cost.tool("cuobjdump") is None, reason="no cuobjdump"),
    pytest.mark.skipif(building.compiler() is None, reason="no C++ compiler"),
]

# Sixteen warps of 128 registers fit on a multiprocessor: three blocks of the five that a map of 152 columns takes.
REGISTERS = 128
INTEGER_SHARE = 0.2
# Instructions and slots a pixel. With a mirror there are 10 rows more of moments, and columns are copied.
BUDGETS = {"same": (240.0, 258.0), "reflect": (264.0, 288.0)}
ARCHS = [75, 80, 86, 89, 90, 100, 120]


@pytest.mark.parametrize("padding", BUDGETS)
@pytest.mark.parametrize("dtype", static_cost.DTYPES, ids=str)
@pytest.mark.parametrize("arch", ARCHS)
def test_main_kernel(arch, dtype, padding):
    cost = static_cost.ours(arch, static_cost.WHOLE[padding][dtype])
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


# What each plan was measured to execute a pixel on sm_90, rounded up: a ratchet, to be lowered with the kernel.
PLANS = {
    # Small levels cost more a pixel: ten rows more fill and empty the filters, and lanes beside the maps are idle.
    "pyramid": 256,
    # 20 of 155 rows are computed for the neighbouring bands, and 8 to 16 of 192 columns for the neighbouring strips.
    "strips and bands": 267,
    "valid": 267,
    # 20 of 32 rows: a single small image has too few pixels for 132 multiprocessors, and all but waiting is free.
    "short bands": 594,
    "packed, three": 362,
    "packed, six": 444,
    # Decides type, padding, weight and form while it runs.
    "general": 349,
    "weighted": 377,
    "value": 177,
}


@pytest.mark.parametrize("plan", static_cost.PLANS)
def test_plans(plan):
    cost = static_cost.ours(90, static_cost.PLANS[plan])
    (resources,) = cost.resources
    assert resources.stack_bytes == resources.spill_bytes == 0
    assert resources.registers <= (168 if plan in ("general", "weighted") else REGISTERS)
    assert cost.sass_per_pixel <= PLANS[plan]


def general_kernels(arch, source):
    found = static_cost.resources(building.ROOT / "csrc" / "cuda" / source, arch)
    return [resources for name, resources in found.items() if "march" in name]


@pytest.mark.parametrize("arch", ARCHS)
def test_no_general_kernel_of_32_bits_spills(arch):
    kernels = general_kernels(arch, "march_general_float.cu")
    assert len(kernels) == 4
    assert all(resources.stack_bytes == resources.spill_bytes == 0 for resources in kernels)
    # What the plan counts on: KernelShape::registers.
    registers = sorted(resources.registers for resources in kernels)
    assert all(taken <= limit for taken, limit in zip(registers, [128, 168, 168, 255], strict=True)), registers


def test_spills_of_float64_do_not_grow():
    """Filters of eight or ten quantities alone take 160 or 200 registers of 255 there."""
    kernels = sorted(general_kernels(90, "march_general_double.cu"), key=lambda resources: resources.stack_bytes)
    assert [resources.stack_bytes for resources in kernels[:2]] == [0, 0], "those without a gradient"
    assert kernels[2].stack_bytes <= 48 and kernels[3].stack_bytes <= 296
    assert kernels[2].spill_bytes <= 272 and kernels[3].spill_bytes <= 1320  # a stack may grow by slots seldom used


def test_rows_that_are_on_their_way_are_not_waited_for():
    """In the general kernel nothing takes, where it is loaded, what a chunk fetches of x, y or the weight: only that
    zeros stand above 16 bits is said, which a load sees to."""
    text = compiled.ptx_of(building.ROOT / "csrc" / "cuda" / "march_general_float.cu")
    fetched, waits, one_by_one = 0, [], []
    for kernel in entries(text):
        on_their_way: dict[str, str] = {}
        program = parse(text, kernel)
        ends = set(program.labels.values())
        for i, instruction in enumerate(program.instructions):
            if i in ends:
                on_their_way = {}
            opcode, operands = instruction.opcode, instruction.operands
            if opcode[0] != "cvt" or opcode[1:] != ("u32", "u16"):
                read = re.findall(r"%\w+", " ".join(operands[1:]))
                waits += [f"{on_their_way[r]} {instruction.text}" for r in read if r in on_their_way]
            place = next((place for place in instruction.place if place[0].endswith(".cuh")), ("", 0))
            if opcode[:2] == ("ld", "global") and place[0] == "elements.cuh":  # load_any, which converts
                one_by_one += [p for p in instruction.place[:-1] if p[0] in ("loads.cuh", "march.cuh")][:1]
            narrow = opcode[:2] == ("ld", "global") and opcode[-1] != "f64"  # as a weight of float32 pixels may be
            if narrow and place[0] in ("loads.cuh", "march.cuh"):
                fetched += 1
                on_their_way[operands[0]] = f"{place}: {instruction.text}"
    assert fetched > 8 * (2 + 1) * 3
    assert not one_by_one, f"each is waited for before the next one: {set(one_by_one)}"
    assert not waits, f"{len(waits)}, the first of them: {waits[:3]}"


@pytest.mark.parametrize("source", ["march_lean_same.cu", "march_lean_reflect.cu", "march_general_float.cu"])
def test_pixels_are_known_to_be_in_global_memory(source):
    """Of an access to no memory by name, a device finds out each time which it is, and ptxas moves nothing past it."""
    text = compiled.ptx_of(building.ROOT / "csrc" / "cuda" / source)
    accesses = set(re.findall(r"^\s*(?:@!?%p\d+\s+)?((?:ld|st)\.\S+)", text, flags=re.M))
    named = re.compile(r"(ld|st)\.(volatile\.)?(global|shared|param|const)\b")
    assert any("global" in access for access in accesses)
    assert not [access for access in accesses if not named.match(access)]


@pytest.mark.parametrize("padding, instructions", [("same", 308), ("reflect", 332)])
def test_distillation_is_one_launch(padding, instructions):
    """Min-max by channel with its gradient: one kernel, in which each block finds and settles its maps' extremes."""
    cost = static_cost.ours(90, static_cost.RESCALED[padding])
    (resources,) = cost.resources
    assert resources.registers <= REGISTERS and resources.stack_bytes == resources.spill_bytes == 0
    assert cost.sass_per_pixel <= instructions


def test_a_quarter_of_the_work_of_the_straightforward_kernel():
    ours, tiles = static_cost.ours(90, static_cost.WHOLE["same"][torch.float32]), static_cost.tiles(90)
    assert ours.sass_per_pixel < tiles.sass_per_pixel / 4
    assert ours.bytes_per_pixel < tiles.bytes_per_pixel / 4


@pytest.mark.parametrize(
    "threads, registers, shared_bytes, blocks",
    [
        (256, 32, 0, 8),
        (256, 128, 0, 2),
        (160, 128, 67488, 3),
        (160, 136, 67488, 2),
        (32, 16, 0, 32),
        (256, 64, 110000, 2),
    ],
)
def test_occupancy_of_an_h100(threads, registers, shared_bytes, blocks):
    chip = static_cost.CHIPS[90]
    assert static_cost.blocks_per_multiprocessor(chip, threads, registers, shared_bytes) == blocks
