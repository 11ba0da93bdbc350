"""Runs a PTX kernel on numpy arrays: each register is an array with one element for each thread.

Every access is checked against the buffers that were given, shared memory starts as NaN, and instructions are counted.
Threads go in lockstep wherever they are at the same instruction, those at the lowest first, so races do not show here:
they are the emulator's business. float32 ``fma`` is rounded twice (to float64, then float32), ``approx`` functions are
exact to rounding, ``ftz`` is ignored, and asynchronous copies are done at once.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .instructions import compile_instruction
from .memory import UNSIGNED, GlobalMemory, PrivateMemory
from .program import Program

EVERYBODY = slice(None)


class KernelError(RuntimeError):
    """What the kernel did is an error on a device too: a divergent barrier, a shuffle from an absent lane."""


class Counts(NamedTuple):
    """How often each instruction of a program was executed."""

    by_threads: np.ndarray
    by_warps: np.ndarray  # with at least one of its threads

    @classmethod
    def of(cls, program: Program) -> "Counts":
        return cls(*np.zeros((2, len(program.instructions)), np.int64))

    def add(self, other: "Counts") -> None:
        for mine, theirs in zip(self, other, strict=True):
            mine += theirs


class Machine:
    """Some blocks of a launch, all at once."""

    def __init__(
        self,
        program: Program,
        memory: GlobalMemory,
        blocks: np.ndarray,
        grid: Sequence[int],
        block: Sequence[int],
        parameters: bytes,
        shared_bytes: int,
    ) -> None:
        if len(parameters) != program.parameter_bytes:
            raise ValueError(f"{program.name} takes {program.parameter_bytes} bytes, got {len(parameters)}")
        self.program, self.memory = program, memory
        self.block_threads = int(np.prod(block))
        self.block_count = len(blocks)
        self.threads = self.block_count * self.block_threads
        thread = np.arange(self.threads)
        in_block = thread % self.block_threads
        self.block = thread // self.block_threads
        self.lane = in_block % 32
        self.warp_start = thread - self.lane
        self.shared = PrivateMemory("shared", self.block_count, program.shared_bytes + shared_bytes)
        self.local = PrivateMemory("local", self.threads, program.local_bytes)
        self.parameter = PrivateMemory("parameter", 1, len(parameters))
        self.parameter.data[: len(parameters)] = np.frombuffer(parameters, np.uint8)
        self.symbols: dict[str, int] = {name: offset for name, offset, _ in program.parameters}
        self.symbols |= program.shared | program.local
        self.symbols |= {name: memory.add(array) for name, array in program.globals.items()}
        self.special = self._special_registers(blocks, grid, block, in_block)
        self.registers: dict[str, np.ndarray] = {}
        self.counts = Counts.of(program)
        self._steps = [compile_instruction(self, instruction) for instruction in program.instructions]
        self.waiting = np.zeros(self.threads, bool)
        self.votes: np.ndarray | None = None

    def _special_registers(self, blocks, grid, block, in_block) -> dict[str, np.ndarray | int]:
        special: dict[str, np.ndarray | int] = {"%laneid": self.lane, "%warpid": in_block // 32, "WARP_SZ": 32}
        of_block = np.asarray(blocks)[self.block]
        for i, axis in enumerate("xyz"):
            special[f"%tid.{axis}"] = in_block // int(np.prod(block[:i])) % block[i]
            special[f"%ctaid.{axis}"] = of_block // int(np.prod(grid[:i])) % grid[i]
            special[f"%ntid.{axis}"] = block[i]
            special[f"%nctaid.{axis}"] = grid[i]
        return special

    def register(self, name: str) -> np.ndarray:
        """The array behind a register: of booleans for a predicate, else of unsigned integers of its width."""
        if name not in self.registers:
            prefix = name.rstrip("0123456789")
            sizes = self.program.registers
            size = sizes[name] if name in sizes else sizes[prefix]
            self.registers[name] = np.zeros(self.threads, bool if size == 0 else UNSIGNED[size])
        return self.registers[name]

    def run(self) -> None:
        """To the end of every thread."""
        done = 1 << 40
        position = np.zeros(self.threads, np.int64)
        with np.errstate(all="ignore"):
            while True:
                runnable = np.where(self.waiting, done, position)
                at = int(runnable.min())
                if at >= done:
                    if not self.waiting.any():
                        return
                    self._open_barriers(position, done)
                    continue
                here = runnable == at
                everybody = bool(here.all())
                active = EVERYBODY if everybody else np.nonzero(here)[0]
                others = runnable[~here]
                stop = done if everybody else int(others.min())
                self._straight(at, stop, active, position, done)

    def _straight(self, at: int, stop: int, active, position: np.ndarray, done: int) -> None:
        """Run the active threads from ``at`` until they part, wait, end, or meet those at ``stop``."""
        instructions, steps = self.program.instructions, self._steps
        indices = np.arange(self.threads) if isinstance(active, slice) else active
        warps = _warps(indices)
        while at < stop:
            if at >= len(instructions):
                position[indices] = done
                return
            instruction = instructions[at]
            opcode = instruction.opcode[0]
            doing, count, of_warps = active, len(indices), warps
            if instruction.guard is not None:
                guard = self.register(instruction.guard)[active] != instruction.negated
                count = int(np.count_nonzero(guard))
                if count < len(indices):
                    doing = indices[guard]
                    of_warps = _warps(doing)
            self.counts.by_threads[at] += count
            self.counts.by_warps[at] += of_warps
            at += 1
            if opcode in ("ret", "exit", "trap"):
                if opcode == "trap" and count:
                    raise KernelError("the kernel executed trap")
                position[indices] = at
                position[doing] = done
                return
            if opcode in ("bra", "brx"):
                position[indices] = at
                if count:
                    position[doing] = steps[at - 1](doing)
                return
            if opcode in ("bar", "barrier") and instruction.opcode[1] != "warp":
                if count:
                    steps[at - 1](doing)
                position[indices] = at
                self.waiting[doing] = True
                return
            if count:
                steps[at - 1](doing)
        position[indices] = at

    def _open_barriers(self, position: np.ndarray, done: int) -> None:
        ended = np.bincount(self.block[position >= done], minlength=self.block_count)
        held = np.bincount(self.block[self.waiting], minlength=self.block_count)
        if ((held > 0) & (ended > 0)).any():
            raise KernelError("bar.sync after some threads of the block have returned")
        self.waiting[:] = False


def by_kind(program: Program, counts: np.ndarray) -> Counter[str]:
    """One of Counts, summed over the instructions of each name."""
    kinds: Counter[str] = Counter()
    for instruction, count in zip(program.instructions, counts.tolist(), strict=True):
        kinds[counted_as(instruction.opcode)] += count
    return kinds


def counted_as(opcode: tuple[str, ...]) -> str:
    """The name under which an instruction is counted: with its memory space, or f32 and f64 where it computes so."""
    if opcode[0] in ("ld", "st", "atom", "red"):
        spaces = [part for part in opcode if part in ("global", "shared", "local", "param", "const")]
        return ".".join([opcode[0], *spaces[:1]])
    return f"{opcode[0]}.{opcode[-1]}" if opcode[-1] in ("f32", "f64", "f32x2") else opcode[0]


def _warps(indices: np.ndarray) -> int:
    """How many warps hold these threads, which are in order; blocks are whole warps or the count is a little high."""
    return 0 if len(indices) == 0 else 1 + int(np.count_nonzero(np.diff(indices >> 5)))


def run(
    program: Program,
    memory: GlobalMemory,
    grid: Sequence[int],
    block: Sequence[int],
    parameters: bytes,
    shared_bytes: int = 0,
    threads_at_a_time: int = 8192,
) -> Counts:
    """Run a whole launch."""
    blocks = int(np.prod(grid))
    together = max(1, threads_at_a_time // int(np.prod(block)))
    counts = Counts.of(program)
    for first in range(0, blocks, together):
        some = np.arange(first, min(blocks, first + together))
        machine = Machine(program, memory, some, grid, block, parameters, shared_bytes)
        machine.run()
        counts.add(machine.counts)
    return counts
