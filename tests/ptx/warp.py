"""What threads of a warp or block do together: shuffles, votes, reductions, barriers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .operands import getter, setter
from .program import Instruction

if TYPE_CHECKING:
    from .machine import Machine


class AbsentLane(RuntimeError):
    """A lane takes part in an exchange with one that is somewhere else."""


def _indices(machine: Machine, active) -> np.ndarray:
    return np.arange(machine.threads)[active]


def _shuffle(machine: Machine, instruction: Instruction):
    mode = instruction.opcode[2]
    targets = instruction.operands[0].split("|")
    put = setter(machine, targets[0])
    put_valid = setter(machine, targets[1]) if len(targets) > 1 else None
    source = machine.register(instruction.operands[1])
    by = getter(machine, instruction.operands[2], "s32")
    control = getter(machine, instruction.operands[3], "s32")

    def shuffle(active):
        indices = _indices(machine, active)
        lane = machine.lane[active]
        segment, clamp = control(active) >> 8 & 31, control(active) & 31
        last = (lane & segment) | (clamp & ~segment)
        step = by(active)
        wanted = {
            "bfly": lane ^ step,
            "idx": (lane & segment) | (step & ~segment),
            "down": lane + step,
            "up": lane - step,
        }[mode]
        valid = wanted >= last if mode == "up" else wanted <= last
        taken = np.where(valid, wanted, lane) + machine.warp_start[active]
        present = np.zeros(machine.threads, bool)
        present[indices] = True
        if not present[taken].all():
            raise AbsentLane(instruction.text)
        put(active, source[taken])
        if put_valid:
            put_valid(active, valid)

    return shuffle


def _vote(machine: Machine, instruction: Instruction):
    mode = instruction.opcode[2]
    put = setter(machine, instruction.operands[0])
    read = getter(machine, instruction.operands[1], "pred")

    def vote(active):
        indices = _indices(machine, active)
        votes = np.zeros((machine.threads + 31) // 32 * 32, bool)
        votes[indices] = read(active)
        there = np.zeros_like(votes)
        there[indices] = True
        lane = np.arange(32, dtype=np.uint64)
        ballots = (votes.reshape(-1, 32).astype(np.uint64) << lane).sum(1)
        present = (there.reshape(-1, 32).astype(np.uint64) << lane).sum(1)
        warp = indices // 32
        if mode == "ballot":
            put(active, ballots[warp].astype(np.uint32))
        elif mode == "any":
            put(active, ballots[warp] != 0)
        else:
            every = ballots[warp] == present[warp]
            put(active, every | (ballots[warp] == 0) if mode == "uni" else every)

    return vote


def _reduce(machine: Machine, instruction: Instruction):
    operation = next(p for p in instruction.opcode if p in ("add", "min", "max", "and", "or", "xor"))
    type_name = instruction.opcode[-1]
    put, read = setter(machine, instruction.operands[0]), getter(machine, instruction.operands[1], type_name)
    function = {"add": np.add, "min": np.minimum, "max": np.maximum}.get(operation) or getattr(
        np, f"bitwise_{operation}"
    )

    def reduce(active):
        indices = _indices(machine, active)
        values = np.broadcast_to(read(active), len(indices))
        starts = np.concatenate([[0], np.nonzero(np.diff(indices // 32))[0] + 1])
        totals = function.reduceat(values, starts)
        put(active, np.repeat(totals, np.diff([*starts, len(indices)])))

    return reduce


def _active_mask(machine: Machine, instruction: Instruction):
    put = setter(machine, instruction.operands[0])

    def active_mask(active):
        indices = _indices(machine, active)
        there = np.zeros((machine.threads + 31) // 32 * 32, np.uint64)
        there[indices] = 1
        masks = (there.reshape(-1, 32) << np.arange(32, dtype=np.uint64)).sum(1)
        put(active, masks[indices // 32].astype(np.uint32))

    return active_mask


def _barrier(machine: Machine, instruction: Instruction):
    """Waiting is the machine's business; barriers that also vote are not known here."""
    if "red" in instruction.opcode:
        raise NotImplementedError
    return lambda active: None


def _elect(machine: Machine, instruction: Instruction):
    put = setter(machine, instruction.operands[0].split("|")[1])

    def elect(active):
        indices = _indices(machine, active)
        first = np.concatenate([[True], np.diff(indices // 32) != 0])
        put(active, first)

    return elect


COMPILERS = {
    "shfl": _shuffle,
    "vote": _vote,
    "redux": _reduce,
    "activemask": _active_mask,
    "bar": _barrier,
    "barrier": _barrier,
    "elect": _elect,
}
