"""Instructions to functions of the active threads: dispatch, memory, control. The rest is in its own files."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from . import arithmetic, matrix, warp
from .memory import LOCAL, PARAMETER, SHARED, UNSIGNED
from .operands import accesses, address_getter, dtype_of, getter, names_in, setter, typed
from .program import Instruction

if TYPE_CHECKING:
    from .machine import Machine

Step = Callable[..., object]
SPACES = ("global", "shared", "local", "param", "const")
WINDOWS = {"shared": SHARED, "local": LOCAL, "param": PARAMETER}
NOTHING = ("membar", "fence", "nanosleep", "prefetch", "prefetchu", "applypriority", "discard", "cp_commit")


def compile_instruction(machine: Machine, instruction: Instruction) -> Step:
    """What an instruction does, as a function. NotImplementedError, when it is run, where nobody has told."""
    name = instruction.opcode[0]
    compiler = _COMPILERS.get(name)
    try:
        if compiler is None:
            raise NotImplementedError(name)
        return compiler(machine, instruction)
    except NotImplementedError:

        def unknown(active):
            raise NotImplementedError(f"PTX {instruction.text!r}")

        return unknown


def _space(instruction: Instruction) -> str:
    return next((part for part in instruction.opcode[1:] if part in SPACES), "generic")


def _load(machine: Machine, instruction: Instruction) -> Step:
    kind, size = typed(instruction.opcode[-1])
    space, dtype, text = _space(instruction), dtype_of(kind, size), instruction.text
    setters = [setter(machine, name) for name in names_in(instruction.operands[0])]
    address = address_getter(machine, instruction.operands[1])
    unsigned = UNSIGNED[size]

    def load(active):
        base = address(active)
        count = machine.threads if isinstance(active, slice) else len(active)
        _check_vector(base, size * len(setters), text)
        for i, put in enumerate(setters):
            values = np.empty(count, unsigned)
            for selected, data, index in accesses(machine, space, base + i * size, active, size, text):
                values[selected] = data[index]
            put(active, values.view(dtype))

    return load


def _check_vector(addresses, size: int, text: str) -> None:
    if (np.asarray(addresses) % size).any():
        raise IndexError(f"misaligned access of {size} bytes: {text}")


def _store(machine: Machine, instruction: Instruction) -> Step:
    _, size = typed(instruction.opcode[-1])
    space, text = _space(instruction), instruction.text
    address = address_getter(machine, instruction.operands[0])
    getters = [getter(machine, name, f"b{8 * size}") for name in names_in(instruction.operands[1])]

    def store(active):
        base = address(active)
        count = machine.threads if isinstance(active, slice) else len(active)
        _check_vector(base, size * len(getters), text)
        for i, get in enumerate(getters):
            values = np.broadcast_to(get(active), count)
            for selected, data, index in accesses(machine, space, base + i * size, active, size, text):
                data[index] = values[selected]

    return store


def _atomic(machine: Machine, instruction: Instruction) -> Step:
    """One thread after the other, in their order."""
    opcode = instruction.opcode
    returns = opcode[0] == "atom"
    kind, size = typed(opcode[-1])
    operation = next(p for p in opcode if p in ("add", "inc", "dec", "exch", "cas", "min", "max", "and", "or", "xor"))
    space, text, dtype = _space(instruction), instruction.text, dtype_of(kind, size)
    put = setter(machine, instruction.operands[0]) if returns else None
    operands = instruction.operands[1:] if returns else instruction.operands
    address = address_getter(machine, operands[0])
    getters = [getter(machine, operand, opcode[-1]) for operand in operands[1:]]

    def change(old, values):
        new = values[0]
        if operation in ("add", "and", "or", "xor"):
            function = np.add if operation == "add" else getattr(np, f"bitwise_{operation}")
            return function(old, new)
        if operation in ("min", "max"):
            return min(old, new) if operation == "min" else max(old, new)
        if operation == "inc":
            return dtype.type(0) if old >= new else old + dtype.type(1)
        if operation == "dec":
            return new if old == 0 or old > new else old - dtype.type(1)
        if operation == "cas":
            return values[1] if old == new else old
        return new  # exch

    def atomic(active):
        base = address(active)
        count = machine.threads if isinstance(active, slice) else len(active)
        values = [np.broadcast_to(get(active), count) for get in getters]
        before = np.empty(count, dtype)
        for selected, data, index in accesses(machine, space, base, active, size, text):
            elements = data.view(dtype)
            places = np.broadcast_to(index, count if isinstance(selected, slice) else len(np.arange(count)[selected]))
            for thread, place in zip(np.arange(count)[selected], places, strict=True):
                before[thread] = elements[place]
                elements[place] = change(elements[place], [v[thread] for v in values])
        if put is not None:
            put(active, before)

    return atomic


def _convert_address(machine: Machine, instruction: Instruction) -> Step:
    opcode = instruction.opcode
    offset = WINDOWS.get(_space(instruction), 0) * (-1 if "to" in opcode else 1)
    read = getter(machine, instruction.operands[1], "s64")
    put = setter(machine, instruction.operands[0])
    return lambda active: put(active, np.asarray(read(active) + np.int64(offset), np.int64))


def _copy_async(machine: Machine, instruction: Instruction) -> Step:
    """cp.async at once, and with bytes beyond the source size as zeros."""
    if len(instruction.operands) < 3:  # commit_group, wait_group, wait_all
        return lambda active: None
    text, size = instruction.text, int(instruction.operands[2], 0)
    to = address_getter(machine, instruction.operands[0])
    source = address_getter(machine, instruction.operands[1])
    wanted = getter(machine, instruction.operands[3], "u32") if len(instruction.operands) > 3 else None

    def copy(active):
        indices = np.arange(machine.threads)[active]
        from_address = np.broadcast_to(source(active), len(indices))
        to_address = np.broadcast_to(to(active), len(indices))
        _check_vector(to_address, size, text)
        take = np.full(len(indices), size) if wanted is None else np.broadcast_to(wanted(active), len(indices))
        for i in range(0, size, 4):
            values = np.zeros(len(indices), np.uint32)
            there = np.nonzero(take > i)[0]
            for selected, data, index in accesses(machine, "global", from_address[there] + i, indices[there], 4, text):
                values[there[selected]] = data[index]
            for selected, data, index in accesses(machine, "shared", to_address + i, indices, 4, text):
                data[index] = values[selected]

    return copy


def _branch(machine: Machine, instruction: Instruction) -> Step:
    if instruction.opcode[0] == "brx":
        labels = machine.program.targets[instruction.operands[1]]
        table = np.array([machine.program.labels[label] for label in labels])
        which = getter(machine, instruction.operands[0], "u32")
        return lambda active: table[which(active)]
    target = machine.program.labels[instruction.operands[-1]]
    return lambda active: target


def _nothing(machine: Machine, instruction: Instruction) -> Step:
    return lambda active: None


_COMPILERS: dict[str, Callable[[Machine, Instruction], Step]] = {
    "ld": _load,
    "ldu": _load,
    "st": _store,
    "atom": _atomic,
    "red": _atomic,
    "cvta": _convert_address,
    "cp": _copy_async,
    "bra": _branch,
    "brx": _branch,
    **dict.fromkeys((*NOTHING, "ret", "exit", "trap"), _nothing),
    **arithmetic.COMPILERS,
    **warp.COMPILERS,
    **matrix.COMPILERS,
}
