"""Tensor cores: ``ldmatrix`` and ``mma`` of tf32, float16 and bfloat16 with float32 sums, by whole warps."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from .operands import address_getter, getter, names_in, setter
from .program import Instruction

if TYPE_CHECKING:
    from .machine import Machine

LANE = np.arange(32)
GROUP, MEMBER = LANE >> 2, LANE & 3


def _warps(machine: Machine, active) -> int:
    count = machine.threads if isinstance(active, slice) else len(active)
    if count % 32 or (machine.lane[active].reshape(-1, 32) != LANE).any():
        raise RuntimeError("a matrix instruction without all lanes of the warp")
    return count // 32


def _load_matrix(machine: Machine, instruction: Instruction):
    """8 x 8 matrices of 16-bit elements: lanes 8 i ... 8 i + 7 give the addresses of the rows of matrix i."""
    transposed = "trans" in instruction.opcode
    setters = [setter(machine, name) for name in names_in(instruction.operands[0])]
    address = address_getter(machine, instruction.operands[1])

    def load(active):
        warps = _warps(machine, active)
        rows = np.asarray(address(active)).reshape(warps, 32)
        block = machine.block[active].reshape(warps, 32)[:, :1, None]
        for i, put in enumerate(setters):
            start = rows[:, 8 * i : 8 * i + 8, None]
            if (start % 16).any():
                raise IndexError(f"a row that is not aligned to 16 bytes: {instruction.text}")
            where = start + 2 * np.arange(8)
            data, index = machine.shared.locate(block, where, 2, instruction.text)
            tile = data[index]  # (warps, row, column)
            if transposed:
                tile = tile.transpose(0, 2, 1)
            low, high = tile[:, GROUP, 2 * MEMBER], tile[:, GROUP, 2 * MEMBER + 1]
            put(active, (high.astype(np.uint32) << np.uint32(16) | low.astype(np.uint32)).reshape(-1))

    return load


def _halves(words: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    low, high = (words & np.uint32(0xFFFF)).astype(np.uint16), (words >> np.uint32(16)).astype(np.uint16)
    if kind == "f16":
        return low.view(np.float16).astype(np.float32), high.view(np.float16).astype(np.float32)
    return tuple((half.astype(np.uint32) << np.uint32(16)).view(np.float32) for half in (low, high))  # type: ignore[return-value]


def _towards_zero(sums: np.ndarray) -> np.ndarray:
    """The units cut off what float32 does not hold (Fasi et al. 2021, "Numerical behavior of NVIDIA tensor cores")."""
    nearest = sums.astype(np.float32)
    return np.where(np.abs(nearest) > np.abs(sums), np.nextafter(nearest, np.float32(0)), nearest)


def _multiply(machine: Machine, instruction: Instruction):
    shape = re.search(r"m16n8k(8|16)\b", instruction.text)
    kind = instruction.opcode[-2]
    if shape is None or kind not in ("tf32", "f16", "bf16") or instruction.opcode[-1] != "f32":
        raise NotImplementedError
    depth = int(shape[1])
    a, b, c = ([getter(machine, n, "b32") for n in names_in(o)] for o in instruction.operands[1:4])
    setters = [setter(machine, name) for name in names_in(instruction.operands[0])]

    def multiply(active):
        warps = _warps(machine, active)

        def words(get):
            return np.broadcast_to(get(active), 32 * warps).reshape(warps, 32)

        left = np.zeros((warps, 16, depth), np.float32)
        right = np.zeros((warps, depth, 8), np.float32)
        total = np.zeros((warps, 16, 8), np.float32)
        for i, get in enumerate(c):
            total[:, GROUP + 8 * (i >> 1), 2 * MEMBER + (i & 1)] = words(get).view(np.float32)
        if kind == "tf32":  # the unit sees 10 bits of the fraction
            cut = np.uint32(0xFFFFE000)
            for i, get in enumerate(a):
                left[:, GROUP + 8 * (i & 1), MEMBER + 4 * (i >> 1)] = (words(get) & cut).view(np.float32)
            for i, get in enumerate(b):
                right[:, MEMBER + 4 * i, GROUP] = (words(get) & cut).view(np.float32)
        else:
            for i, get in enumerate(a):
                row, column = GROUP + 8 * (i & 1), 2 * MEMBER + 8 * (i >> 1)
                left[:, row, column], left[:, row, column + 1] = _halves(words(get), kind)
            for i, get in enumerate(b):
                row = 2 * MEMBER + 8 * i
                right[:, row, GROUP], right[:, row + 1, GROUP] = _halves(words(get), kind)
        result = _towards_zero(left.astype(np.float64) @ right + total)
        for i, put in enumerate(setters):
            put(active, result[:, GROUP + 8 * (i >> 1), 2 * MEMBER + (i & 1)].reshape(-1))

    return multiply


COMPILERS = {"ldmatrix": _load_matrix, "mma": _multiply}
