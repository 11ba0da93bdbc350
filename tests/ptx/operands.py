"""Reading and writing the operands of an instruction: registers, immediates, names, addresses."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .memory import LOCAL, PARAMETER, SHARED, UNSIGNED

if TYPE_CHECKING:
    from .machine import Machine

SIGNED = {1: np.dtype(np.int8), 2: np.dtype(np.int16), 4: np.dtype(np.int32), 8: np.dtype(np.int64)}
FLOAT = {2: np.dtype(np.float16), 4: np.dtype(np.float32), 8: np.dtype(np.float64)}

Get = Callable[..., np.ndarray]
Set = Callable[..., None]


def typed(name: str) -> tuple[str, int]:
    """``"f32"`` to ("f", 4); "pred" to ("p", 1)."""
    if name == "pred":
        return "p", 1
    return name[0], int(re.sub(r"\D.*", "", name[1:])) // 8


def dtype_of(kind: str, size: int) -> np.dtype:
    return FLOAT[size] if kind == "f" else SIGNED[size] if kind == "s" else UNSIGNED[size]


def getter(machine: Machine, operand: str, type_name: str) -> Get:
    """A function from the active threads to the operand's values, an array or a scalar, of the type."""
    kind, size = typed(type_name)
    if kind == "p":
        if not operand.lstrip("!").startswith("%"):
            constant = np.bool_(int(operand, 0) != 0)
            return lambda active: constant
        negated = operand.startswith("!")
        flags = machine.register(operand.lstrip("!"))
        return (lambda active: ~flags[active]) if negated else (lambda active: flags[active])
    dtype = dtype_of(kind, size)
    if operand in machine.special:
        return _constant_or_array(machine.special[operand], size, dtype)
    prefix = operand.rstrip("0123456789")
    if operand in machine.program.registers or prefix in machine.program.registers:
        register = machine.register(operand)
        if register.dtype.itemsize == size:
            view = register.view(dtype)
            return lambda active: view[active]
        return lambda active: register[active].astype(UNSIGNED[size]).view(dtype)
    if operand in machine.symbols:
        return _constant_or_array(machine.symbols[operand], size, dtype)
    return _constant_or_array(_immediate(operand), size, dtype)


def _constant_or_array(value, size: int, dtype: np.dtype) -> Get:
    if isinstance(value, np.ndarray):
        array = value.astype(UNSIGNED[size]).view(dtype)
        return lambda active: array[active]
    if isinstance(value, float):
        scalar = dtype.type(value)
    else:
        scalar = np.array(value & (2 ** (8 * size) - 1), UNSIGNED[size]).view(dtype)[()]
    return lambda active: scalar


def _immediate(text: str) -> int | float:
    """An integer, or the bits of 0f and 0d constants."""
    if text[:2] in ("0f", "0F", "0d", "0D"):
        return int(text[2:], 16)
    if re.fullmatch(r"-?\d+\.\d*(?:[eE][-+]?\d+)?", text):
        return float(text)
    return int(text.rstrip("U"), 0)


def setter(machine: Machine, operand: str) -> Set:
    """A function that puts values into the register for the active threads, widening them if it is wider."""
    if operand == "_":
        return lambda active, values: None
    register = machine.register(operand)
    if register.dtype == bool:

        def set_flags(active, values):
            register[active] = values

        return set_flags

    def set_values(active, values):
        values = np.asarray(values)
        if values.dtype.itemsize != register.dtype.itemsize:
            wide = SIGNED if values.dtype.kind == "i" else UNSIGNED
            values = values.astype(wide[register.dtype.itemsize])
        register.view(values.dtype)[active] = values

    return set_values


def names_in(operand: str) -> list[str]:
    """The registers of ``{%f1, %f2}``, or the operand itself."""
    return [name.strip() for name in operand.strip("{} ").split(",")]


def address_getter(machine: Machine, operand: str) -> Get:
    """A function to the byte addresses, signed, of ``[%rd1+8]`` for the active threads."""
    match = re.fullmatch(r"\[\s*([%\w$.]+)\s*(?:\+\s*(-?\w+))?\s*\]", operand)
    if not match:
        raise NotImplementedError(f"address {operand}")
    base, offset = match[1], int(match[2] or "0", 0)
    if base in machine.symbols:
        constant = machine.symbols[base] + offset
        return lambda active: np.int64(constant)
    size = machine.register(base).dtype.itemsize if base.startswith("%") else 8
    read = getter(machine, base, f"u{8 * size}")
    return lambda active: read(active).astype(np.int64) + offset


def accesses(machine: Machine, space: str, addresses, active, size: int, text: str):
    """For each memory touched: (which of the active threads, its elements, their indices)."""
    count = machine.threads if isinstance(active, slice) else len(active)
    addresses = np.broadcast_to(np.asarray(addresses, np.int64), count)
    owners = {"shared": machine.block, "local": np.arange(machine.threads)}
    memories = {"shared": machine.shared, "local": machine.local, "param": machine.parameter}
    windows = {"shared": SHARED, "local": LOCAL, "param": PARAMETER}
    if space == "generic":
        window = addresses >> 56
        for name, number in (("global", 0), ("shared", 1), ("local", 2), ("param", 3)):
            inside = np.nonzero(window == number)[0]
            if len(inside) == 0:
                continue
            who = inside if isinstance(active, slice) else active[inside]
            for selected, data, index in accesses(
                machine, name, addresses[inside] - windows.get(name, 0), who, size, text
            ):
                yield inside[selected], data, index
    elif space in memories:
        owner = owners[space][active] if space in owners else 0
        yield slice(None), *memories[space].locate(owner, addresses, size, text)
    else:
        yield from machine.memory.pieces(addresses, size, text)
