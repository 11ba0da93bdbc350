"""What can be said of the CUDA kernel's cost without a GPU, beside a straightforward kernel of 16 x 16 tiles.

python benchmarks/static_cost.py [--archs 80 90 100] [--out benchmarks/results/static_cost]

Needs nvcc and a C++ compiler. Registers, stack, spills and static counts are ptxas's; instructions per pixel are exact
counts of the sm_80 PTX, interpreted on maps that are cut as an H100 with as much to do would have them. PTX is not what
is issued: floating-point, memory and barrier instructions go over one to one, the integer rest does not. Each integer
instruction of the machine code counts as often as PTX of its line of the source (and of the lines into which that was
inlined) was executed on average.
"""

import argparse
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import emulated  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from ptx import compiled, machine  # noqa: E402
from ptx.memory import GlobalMemory  # noqa: E402
from ptx.program import Place, Program, parse  # noqa: E402

import fused_ssim  # noqa: E402
from benchmarks.gpu_cases import FPN  # noqa: E402

CACHE = ROOT / "build" / "static_cost"
TILE_KERNEL = ROOT / "benchmarks" / "tile_kernel.cu"
MAPS, HEIGHT, WIDTH = 2, 100, 152
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Chip(NamedTuple):
    """Figures of the makers' data sheets; clocks are boost clocks."""

    name: str
    multiprocessors: int
    clock_ghz: float
    gb_per_s: float
    warps: int  # a multiprocessor holds
    shared_bytes: int  # of a multiprocessor


CHIPS = {
    80: Chip("A100 SXM", 108, 1.41, 2039, 64, 167936),
    90: Chip("H100 SXM", 132, 1.98, 3350, 64, 233472),
    100: Chip("B200", 148, 1.96, 8000, 64, 233472),
}

FLOAT = re.compile(r"(?:fma|add|sub|mul|mad|div|rcp|sqrt|ex2|lg2|min|max|neg|abs|setp|selp)\.f(?:32|64)")
SASS_FLOAT = re.compile(r"[FD](?:FMA|ADD|MUL|SETP|SEL|MNMX|CHK)|MUFU|HFMA2|HADD2|HMUL2|F2FP?|FRND")
MEMORY = ("ld", "st", "atom", "red", "LD", "ST", "ATOM", "RED", "shfl", "SHFL")
BARRIERS = ("bar", "barrier", "membar", "fence", "BAR", "MEMBAR", "WARPSYNC", "BSYNC", "BSSY", "ERRBAR")


def kind(name: str) -> str:
    """ "float", "memory", "barrier" or "integer" (addresses, counters, predicates, branches, conversions, moves)."""
    if FLOAT.fullmatch(name) or SASS_FLOAT.fullmatch(name):
        return "float"
    if name.split(".")[0].startswith(BARRIERS):
        return "barrier"
    # Parameters and constants are operands in SASS, no loads.
    if name.startswith(MEMORY) and not name.startswith(("ld.param", "ld.const", "LDC", "LDCU", "setp", "STL.")):
        return "memory"
    return "integer"


@cache
def tool(name: str) -> str | None:
    """A tool of the CUDA toolkit, or the copy inside triton's wheel."""
    beside = Path(compiled.nvcc() or "").resolve().parent / name
    if beside.exists():
        return str(beside)
    try:
        import triton
    except ImportError:
        return shutil.which(name)
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return str(bundled) if bundled.exists() else shutil.which(name)


class Resources(NamedTuple):
    """What ptxas gave a kernel, and its SASS instructions as they stand: how many of a kind come from where."""

    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int  # static
    sass: Counter[tuple[str, Place]]


@cache
def resources(source: Path, arch: int) -> dict[str, Resources]:
    """Each kernel of a source, compiled for sm_<arch>."""
    from torch.utils.cpp_extension import include_paths

    CACHE.mkdir(parents=True, exist_ok=True)
    cubin = CACHE / f"{source.stem}_{arch}_{os.getpid()}.cubin"
    includes = [part for path in include_paths() for part in ("-isystem", path)]
    flags = ["-std=c++20", "-O3", "-lineinfo", f"-arch=sm_{arch}", "-Xptxas", "-v"]
    command = [str(compiled.nvcc()), *flags, "-DTORCH_TARGET_VERSION=0x020b000000000000", *includes]
    command += ["-cubin", str(source), "-o", str(cubin)]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    usage = subprocess.run([str(tool("cuobjdump")), "-res-usage", str(cubin)], capture_output=True, text=True)
    listing = subprocess.run(
        [str(tool("nvdisasm")), "-gi", "-c", str(cubin)], capture_output=True, text=True, check=True
    )
    cubin.unlink()
    spills = {
        name: int(stores) + int(loads)
        for name, stores, loads in re.findall(
            r"Function properties for (\S+)\s+\d+ bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
            log,
        )
    }
    sass = {name: Counter(_sass_of(text)) for name, text in _functions(listing.stdout)}
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage.stdout + usage.stderr)
    return {n: Resources(int(r), int(k), spills.get(n, 0), int(s), sass[n]) for n, r, k, s in found}


def _functions(listing: str) -> list[tuple[str, str]]:
    parts = re.split(r"^\.text\.(\S+):$", listing, flags=re.M)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def _sass_of(listing: str) -> Iterator[tuple[str, Place]]:
    """Kind and place of each instruction in nvdisasm's listing of a function."""
    chain: list[tuple[str, int]] = []
    complete = True
    for line in listing.splitlines():
        place = re.match(r'\s*//## File "(?:[^"]*/)?([^"/]*)", line (\d+)( inlined at)?', line)
        if place:
            chain = ([] if complete else chain) + [(place[1], int(place[2]))]
            complete = not place[3]
            continue
        name = re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)", line)
        if name and name[1] != "NOP":
            yield kind(name[1]), tuple(chain)


def blocks_per_multiprocessor(chip: Chip, threads: int, registers: int, shared_bytes: int) -> int:
    """How many blocks fit: by warps, registers (given to warps in units of 256 by each of four parts of the
    multiprocessor) and shared memory (and 1 KiB each)."""
    warps = -(-threads // 32)
    of_registers = 4 * (16384 // (-(-registers * 32 // 256) * 256)) // warps
    return min(32, chip.warps // warps, of_registers, chip.shared_bytes // (shared_bytes + 1024))


class Cost(NamedTuple):
    """One kernel, or several that belong together, on one chip."""

    name: str
    resources: list[Resources]
    threads: int
    shared_bytes: int
    ptx_per_pixel: Counter[str]  # by kind, executed by threads
    sass_per_pixel: float  # estimated, executed by threads
    slots_per_pixel: float  # estimated, of 32 in each warp that executes, whether its threads do or not
    integer_share: float  # of sass_per_pixel
    bytes_per_pixel: float


def _executed(resource: Resources, program: Program, counts: np.ndarray) -> Counter[str]:
    """SASS instructions by kind, from how often each PTX instruction was executed."""
    by_place: dict[Place, list[int]] = defaultdict(list)
    result: Counter[str] = Counter()
    for instruction, count in zip(program.instructions, counts.tolist(), strict=True):
        for depth in range(len(instruction.place)):  # a place that PTX lacks takes the mean of where it was inlined
            by_place[instruction.place[depth:]].append(count)
        name = kind(machine.counted_as(instruction.opcode))
        if name != "integer":
            result[name] += count
    for (name, place), static in resource.sass.items():
        if name == "integer":
            while place and place not in by_place:
                place = place[1:]
            executed = by_place.get(place) or counts.tolist()
            result["integer"] += static * sum(executed) / len(executed)
    return result


def _cost(name, arch_resources, programs, executed, threads, shared_bytes, pixels, bytes_per_pixel) -> Cost:
    ptx, sass, slots = Counter(), Counter(), 0.0
    for resource, program, counts in zip(arch_resources, programs, executed, strict=True):
        for instruction, count in machine.by_kind(program, counts.by_threads).items():
            ptx[kind(instruction)] += count / pixels
        sass += _executed(resource, program, counts.by_threads)
        slots += 32 * _executed(resource, program, counts.by_warps).total()
    share = sass["integer"] / sass.total()
    sizes = sass.total() / pixels, slots / pixels
    return Cost(name, arch_resources, threads, shared_bytes, ptx, *sizes, share, bytes_per_pixel)


SOURCES = ("march_lean_same.cu", "march_lean_reflect.cu", "march_general_float.cu", "ssim_cuda.cu")


class Case(NamedTuple):
    """A call, on a device that is an H100 but for the number of its multiprocessors: as many as its work is worth."""

    name: str
    levels: tuple[tuple[int, int, int], ...] = ((MAPS, HEIGHT, WIDTH),)
    multiprocessors: int = 1
    dtype: torch.dtype = torch.float32
    padding: str = "same"
    rescaled: bool = False  # as in distillation: min-max by channel, with its gradient
    grads: int = 1  # of x, of y too, or none; the last two take the general kernel
    weighted: bool = False  # so does this, of one level
    blocks: int = 0  # that the plan must make, so that the row is what it is called; 0: of any number


MIRRORED = {"same": "", "reflect": ", mirrored"}
WHOLE = {
    padding: {
        dtype: Case(f"fused, {str(dtype).removeprefix('torch.')}{by}", dtype=dtype, padding=padding) for dtype in DTYPES
    }
    for padding, by in MIRRORED.items()
}
RESCALED = {
    padding: Case(f"fused, float32{by}, min-max by channel", padding=padding, rescaled=True)
    for padding, by in MIRRORED.items()
}
PLANS = {
    # One plane of three has a third of the multiprocessors; of two images each one has four maps of every level.
    "pyramid": Case("five levels in one launch", tuple((32, *size) for size in FPN), 8, blocks=85),
    "strips and bands": Case("1080 x 1920, 11 strips, 8 bands", ((1, 1080, 1920),), 44, blocks=88),
    "short bands": Case("256 x 256, 2 strips, 22 bands", ((1, 256, 256),), 44, blocks=44),
    "valid": Case("1080 x 1920, valid", ((1, 1080, 1920),), 44, padding="valid", blocks=88),
    "packed, three": Case("25 x 38, several beside each other", ((60, 25, 38),), 2),
    "packed, six": Case("13 x 19, several beside each other", ((60, 13, 19),), 2),
    "general": Case("general kernel, gradients of x and y", grads=2),
    "weighted": Case("general kernel, a weight", weighted=True),
    "value": Case("general kernel, the value alone", grads=0),
}


@cache
def _run(case: Case) -> dict[str, compiled.Executed]:
    xs, ys = ([torch.rand(1, *level).to(case.dtype) for level in case.levels] for _ in range(2))
    for t in [*xs, *ys][: case.grads * len(xs)]:
        t.requires_grad_()
    options = {"normalize": "channel", "detach_range": False} if case.rescaled else {"normalize": None}
    weights = [torch.rand(1, *case.levels[0])] if case.weighted else []
    with compiled.interpreted(SOURCES, [*xs, *ys, *weights], case.multiprocessors, resident_blocks=32) as kernels_run:
        if weights:
            fused_ssim.ssim_loss(*xs, *ys, weight=weights[0], padding=case.padding, backend=emulated.NAME)
        else:
            fused_ssim.pyramid_ssim_loss(xs, ys, padding=case.padding, backend=emulated.NAME, **options)
    return kernels_run


def ours(arch: int, case: Case) -> Cost:
    """The loss and its gradients."""
    kernels_run = _run(case)
    known = {}
    for source in SOURCES:
        if not set(kernels_run) <= set(known):
            known |= resources(ROOT / "csrc" / "cuda" / source, arch)
    found = [known[kernel] for kernel in kernels_run]
    main = max(kernels_run.values(), key=lambda executed: executed.shared_bytes)
    if case.blocks and main.blocks != case.blocks:
        raise RuntimeError(f"{case.name}: {main.blocks} blocks, expected {case.blocks}")
    shared = main.shared_bytes + max(f.shared_bytes for f in found)
    programs, counts = [e.program for e in kernels_run.values()], [e.counts for e in kernels_run.values()]
    # Rescaling reads x and y once more before, and x once more behind, for the gradient of minimum and maximum.
    elements = 6.0 if case.rescaled else 2.0 + case.grads + case.weighted
    size = elements * torch.empty(0, dtype=case.dtype).element_size()
    pixels = sum(math.prod(level) for level in case.levels)
    return _cost(case.name, found, programs, counts, main.block, shared, pixels, size)


@cache
def _run_tiles() -> tuple[tuple[Program, ...], tuple[machine.Counts, ...]]:
    text = compiled.ptx_of(TILE_KERNEL)
    memory = GlobalMemory()
    shape = (MAPS, HEIGHT, WIDTH)
    maps = [np.random.default_rng(i).random(shape, np.float32) for i in range(8)]
    addresses = [memory.add(array) for array in maps]
    programs, executed = [], []
    for name, count in (("tile_forward", 6), ("tile_backward", 7)):
        program = parse(text, name)
        parameters = struct.pack(f"<{count}Q2i", *addresses[:count], HEIGHT, WIDTH)
        grid = (-(-WIDTH // 16), -(-HEIGHT // 16), MAPS)
        counts = machine.run(program, memory, grid, (16, 16, 1), parameters)
        programs.append(program)
        executed.append(counts)
    return tuple(programs), tuple(executed)


def tiles(arch: int) -> Cost:
    """The straightforward kernels, forward and backward together."""
    programs, executed = _run_tiles()
    found = resources(TILE_KERNEL, arch)
    both = [found["tile_forward"], found["tile_backward"]]
    # Forward reads 2 maps and writes 4, backward reads 6 and writes 1; halos are taken to come from the cache.
    pixels, shared_bytes = MAPS * HEIGHT * WIDTH, both[0].shared_bytes
    return _cost("16 x 16 tiles, float32", both, programs, executed, 256, shared_bytes, pixels, 13 * 4.0)


def rows(archs: list[int]) -> list[dict[str, object]]:
    """The table, one row for each kernel and architecture."""
    table = []
    for arch in archs:
        chip = CHIPS[arch]
        mirrored = WHOLE["reflect"][torch.float32]
        cases = (*WHOLE["same"].values(), RESCALED["same"], mirrored, RESCALED["reflect"], *PLANS.values())
        for cost in (*(ours(arch, case) for case in cases), tiles(arch)):
            registers = max(r.registers for r in cost.resources)
            blocks = blocks_per_multiprocessor(chip, cost.threads, registers, cost.shared_bytes)
            issue_ps = 1e3 * cost.slots_per_pixel / (chip.multiprocessors * 4 * 32 * chip.clock_ghz)
            dram_ps = 1e3 * cost.bytes_per_pixel / chip.gb_per_s
            table.append(
                {
                    "arch": f"sm_{arch}",
                    "kernel": cost.name,
                    "registers": registers,
                    "stack": max(r.stack_bytes for r in cost.resources),
                    "spills": sum(r.spill_bytes for r in cost.resources),
                    "shared": cost.shared_bytes,
                    "threads": cost.threads,
                    "warps/SM": blocks * -(-cost.threads // 32),
                    "PTX/px": round(sum(cost.ptx_per_pixel.values()), 1),
                    **{f"{k}/px": round(cost.ptx_per_pixel[k], 1) for k in ("float", "memory", "integer")},
                    "SASS/px (est.)": round(cost.sass_per_pixel, 1),
                    "slots/px (est.)": round(cost.slots_per_pixel, 1),
                    "integer share (est.)": round(cost.integer_share, 3),
                    "issue ps/px": round(issue_ps, 2),
                    "DRAM ps/px": round(dram_ps, 2),
                    "bound": "issue" if issue_ps > dram_ps else "DRAM",
                }
            )
    return table


LIMITS = """
What these figures cannot show: latencies and how well they are hidden, conflicts of shared-memory banks, caches, clocks
under load, launch times, and the last blocks of a grid. The bounds are floors of a time, not times. Nothing here ran on
a GPU. SASS/px is what threads execute; slots/px counts a warp's 32 lanes where only some of them take part.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", type=int, nargs="+", default=list(CHIPS), choices=list(CHIPS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    table = rows(args.archs)
    lines = ["| " + " | ".join(table[0]) + " |", "|" + "-|" * len(table[0])]
    lines += ["| " + " | ".join(str(value) for value in row.values()) + " |" for row in table]
    chips = "; ".join(
        f"sm_{a}: {CHIPS[a].name}, {CHIPS[a].gb_per_s} GB/s, {CHIPS[a].clock_ghz} GHz" for a in args.archs
    )
    text = "\n".join(lines) + f"\n\nBounds for {chips}.\n" + LIMITS
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.with_suffix(".md").write_text(text)
        args.out.with_suffix(".json").write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
