"""Arithmetic, logic, comparison and conversion."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .memory import UNSIGNED
from .operands import FLOAT, SIGNED, dtype_of, getter, names_in, setter, typed
from .program import Instruction

if TYPE_CHECKING:
    from .machine import Machine


def _simple(machine: Machine, instruction: Instruction, function, types: list[str] | None = None):
    """``put(function(operands))`` with every operand of the instruction's type, unless told otherwise."""
    names = types or [instruction.opcode[-1]] * (len(instruction.operands) - 1)
    getters = [getter(machine, o, t) for o, t in zip(instruction.operands[1:], names, strict=True)]
    put = setter(machine, instruction.operands[0])
    return lambda active: put(active, function(*(get(active) for get in getters)))


def _move(machine: Machine, instruction: Instruction):
    to, source = instruction.operands
    type_name = instruction.opcode[-1]
    if not to.startswith("{") and not source.startswith("{"):
        return _simple(machine, instruction, lambda a: a)
    size = typed(type_name)[1]
    if to.startswith("{"):  # apart
        setters = [setter(machine, name) for name in names_in(to)]
        part = size // len(setters)
        read = getter(machine, source, type_name)

        def unpack(active):
            whole = np.asarray(read(active)).astype(UNSIGNED[size])
            for i, put in enumerate(setters):
                put(active, (whole >> UNSIGNED[size].type(8 * part * i)).astype(UNSIGNED[part]))

        return unpack
    names = names_in(source)
    part = size // len(names)
    getters = [getter(machine, name, f"u{8 * part}") for name in names]
    put_whole = setter(machine, to)

    def pack(active):
        whole = UNSIGNED[size].type(0)
        for i, get in enumerate(getters):
            whole = whole | (np.asarray(get(active)).astype(UNSIGNED[size]) << UNSIGNED[size].type(8 * part * i))
        put_whole(active, whole)

    return pack


def fused_multiply_add(a, b, c):
    """float32 through float64, which rounds twice; other widths as they are."""
    if np.asarray(a).dtype == np.float32:
        return (np.asarray(a, np.float64) * b + c).astype(np.float32)
    return a * b + c


def _binary_float(name: str, keeps_nan: bool):
    if name in ("min", "max") and not keeps_nan:
        return np.fmin if name == "min" else np.fmax
    return {
        "min": np.minimum,
        "max": np.maximum,
        "add": np.add,
        "sub": np.subtract,
        "mul": np.multiply,
        "div": np.divide,
    }[name]


def _multiply(a, b, opcode, kind, size):
    """The low, high or whole product of integers."""
    if "wide" in opcode or "hi" in opcode:
        wide = (SIGNED if kind == "s" else UNSIGNED)[2 * size] if size < 8 else np.dtype(object)
        product = np.asarray(a).astype(wide) * np.asarray(b).astype(wide)
        if "hi" in opcode:
            return (product >> (8 * size)).astype(dtype_of(kind, size))
        return product
    return a * b


def _arithmetic(machine: Machine, instruction: Instruction):
    opcode = instruction.opcode
    name, (kind, size) = opcode[0], typed(opcode[-1])
    if kind == "f":
        function = _binary_float(name, "NaN" in opcode)
        if "sat" in opcode:
            return _simple(machine, instruction, lambda a, b: np.clip(function(a, b), 0, 1).astype(FLOAT[size]))
        return _simple(machine, instruction, function)
    if opcode[-1] in ("f32x2", "bf16", "bf16x2", "f16x2") or "cc" in opcode:
        raise NotImplementedError
    if name == "mul":
        return _simple(machine, instruction, lambda a, b: _multiply(a, b, opcode, kind, size))
    if name in ("div", "rem"):
        return _simple(machine, instruction, lambda a, b: _divide(a, b, name))
    function = {"add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum}[name]
    return _simple(machine, instruction, function)


def _divide(a, b, name: str):
    """Towards zero, unlike numpy's."""
    a, b = np.asarray(a), np.asarray(b)
    quotient = np.floor_divide(np.abs(a), np.maximum(np.abs(b), 1)).astype(a.dtype)
    quotient = np.where((a < 0) != (b < 0), np.negative(quotient), quotient).astype(a.dtype)
    return quotient if name == "div" else a - quotient * b


def _multiply_add(machine: Machine, instruction: Instruction):
    opcode = instruction.opcode
    kind, size = typed(opcode[-1])
    if opcode[-1] in ("f32x2", "bf16", "bf16x2", "f16x2") or "cc" in opcode:
        raise NotImplementedError
    if kind == "f":
        return _simple(machine, instruction, fused_multiply_add)
    third = f"{kind}{16 * size}" if "wide" in opcode else opcode[-1]
    return _simple(
        machine,
        instruction,
        lambda a, b, c: _multiply(a, b, opcode, kind, size) + c,
        [opcode[-1], opcode[-1], third],
    )


def _unary(machine: Machine, instruction: Instruction):
    name = instruction.opcode[0]
    kind, size = typed(instruction.opcode[-1])
    if kind == "f":
        functions: dict[str, Callable] = {
            "neg": np.negative,
            "abs": np.abs,
            "sqrt": np.sqrt,
            "rcp": lambda a: a.dtype.type(1) / a,
            "rsqrt": lambda a: a.dtype.type(1) / np.sqrt(a),
            "ex2": np.exp2,
            "lg2": np.log2,
            "sin": np.sin,
            "cos": np.cos,
            "tanh": np.tanh,
        }
        return _simple(machine, instruction, functions[name])
    counts = {"popc": np.bitwise_count if hasattr(np, "bitwise_count") else None, "neg": np.negative, "abs": np.abs}
    if name == "clz":
        return _simple(machine, instruction, lambda a: _leading_zeros(a, size))
    if name == "brev":
        return _simple(machine, instruction, lambda a: _reversed_bits(a, size))
    if name == "popc":
        return _simple(machine, instruction, lambda a: np.asarray(counts["popc"](a)).astype(np.uint32))
    return _simple(machine, instruction, counts[name])


def _leading_zeros(a, size: int):
    value, zeros = np.asarray(a).astype(UNSIGNED[size]), np.uint32(8 * size)
    result = np.full(value.shape, zeros, np.uint32)
    for bit in range(8 * size):
        result = np.where(
            value >> UNSIGNED[size].type(bit) & UNSIGNED[size].type(1), np.uint32(8 * size - 1 - bit), result
        )
    return result


def _reversed_bits(a, size: int):
    value, result = np.asarray(a).astype(UNSIGNED[size]), UNSIGNED[size].type(0)
    for bit in range(8 * size):
        one = value >> UNSIGNED[size].type(bit) & UNSIGNED[size].type(1)
        result = result | one << UNSIGNED[size].type(8 * size - 1 - bit)
    return result


def _logic(machine: Machine, instruction: Instruction):
    name, type_name = instruction.opcode[0], instruction.opcode[-1]
    if name == "not":
        return _simple(machine, instruction, np.logical_not if type_name == "pred" else np.invert)
    if name == "cnot":
        return _simple(machine, instruction, lambda a: (a == 0).astype(a.dtype))
    return _simple(machine, instruction, getattr(np, f"bitwise_{name}"))


def _shift(machine: Machine, instruction: Instruction):
    name, type_name = instruction.opcode[0], instruction.opcode[-1]
    kind, size = typed(type_name)

    def shift(a, by):
        a, by = np.asarray(a), np.asarray(by)
        inside = np.minimum(by, 8 * size - 1).astype(a.dtype)
        result = a << inside if name == "shl" else a >> inside
        beyond = by >= 8 * size
        return np.where(beyond & (name == "shl" or kind != "s"), a.dtype.type(0), result)

    return _simple(machine, instruction, shift, [type_name, "u32"])


def _funnel_shift(machine: Machine, instruction: Instruction):
    left, wrap = "l" in instruction.opcode, "wrap" in instruction.opcode

    def shift(low, high, by):
        whole = np.asarray(high).astype(np.uint64) << np.uint64(32) | np.asarray(low).astype(np.uint64)
        by = (np.asarray(by) & 31 if wrap else np.minimum(by, 32)).astype(np.uint64)
        return (whole << by >> np.uint64(32) if left else whole >> by).astype(np.uint32)

    return _simple(machine, instruction, shift, ["b32", "b32", "u32"])


def _extract_bits(machine: Machine, instruction: Instruction):
    type_name = instruction.opcode[-1]
    size = typed(type_name)[1]

    def extract(a, position, length):
        a = np.asarray(a)
        position = np.minimum(position & 255, 8 * size).astype(np.int64)
        length = np.minimum(length & 255, 8 * size - position)
        # Up to the top, then down again: the latter extends the sign where there is one.
        up = np.asarray(8 * size - position - length).astype(a.dtype)
        result = a << up >> np.minimum(8 * size - length, 8 * size - 1).astype(a.dtype)
        return np.where(length == 0, a.dtype.type(0), result)

    return _simple(machine, instruction, extract, [type_name, "u32", "u32"])


def _insert_bits(machine: Machine, instruction: Instruction):
    type_name = instruction.opcode[-1]
    size = typed(type_name)[1]

    def insert(a, b, position, length):
        one = UNSIGNED[8].type(1)
        mask = ((one << np.asarray(length & 255).astype(np.uint64)) - one) << np.asarray(position & 255).astype(
            np.uint64
        )
        mask = mask.astype(UNSIGNED[size])
        return np.asarray(b) & ~mask | np.asarray(a) << np.asarray(position).astype(UNSIGNED[size]) & mask

    return _simple(machine, instruction, insert, [type_name, type_name, "u32", "u32"])


def _permute_bytes(machine: Machine, instruction: Instruction):
    if len(instruction.opcode) > 2:
        raise NotImplementedError

    def permute(a, b, selector):
        whole = np.asarray(b).astype(np.uint64) << np.uint64(32) | np.asarray(a).astype(np.uint64)
        result = np.uint32(0)
        for i in range(4):
            chosen = np.asarray(selector) >> np.uint32(4 * i) & np.uint32(15)
            byte = (whole >> ((chosen & np.uint32(7)).astype(np.uint64) * np.uint64(8)) & np.uint64(255)).astype(
                np.uint32
            )
            byte = np.where(chosen & np.uint32(8), np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0)), byte)
            result = result | byte << np.uint32(8 * i)
        return result

    return _simple(machine, instruction, permute, ["b32", "b32", "b32"])


def _three_input_logic(machine: Machine, instruction: Instruction):
    table = int(instruction.operands[4], 0)

    def logic(a, b, c, _):
        result = np.uint32(0)
        for row in range(8):
            if table >> row & 1:
                result = result | (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
        return result

    return _simple(machine, instruction, logic, ["b32"] * 4)


COMPARISONS = {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
OPPOSITE = {"ltu": "ge", "leu": "gt", "gtu": "le", "geu": "lt", "equ": "ne", "neu": "eq"}


def _comparison(name: str, kind: str):
    """Unordered ones are the opposites of ordered ones; for floats "ne" alone is false with a NaN."""
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if name in OPPOSITE:
        ordered = COMPARISONS[OPPOSITE[name]]
        return (lambda a, b: a != b) if name == "neu" else lambda a, b: ~_ordered(ordered, a, b)
    if name == "ne" and kind == "f":
        return lambda a, b: (a < b) | (a > b)
    return COMPARISONS[name]


def _ordered(function, a, b):
    return function(a, b) & (a == a) & (b == b)


def _set_predicate(machine: Machine, instruction: Instruction):
    opcode, operands = instruction.opcode, instruction.operands
    type_name = opcode[-1]
    compare = _comparison(opcode[1], typed(type_name)[0])
    first, second = getter(machine, operands[1], type_name), getter(machine, operands[2], type_name)
    targets = operands[0].split("|")
    put = setter(machine, targets[0])
    put_opposite = setter(machine, targets[1]) if len(targets) > 1 else None
    join = next((p for p in opcode if p in ("and", "or", "xor")), None)
    third = getter(machine, operands[3], "pred") if join else None

    def set_predicate(active):
        result = np.asarray(compare(first(active), second(active)))
        opposite = ~result
        if third is not None:
            combine = getattr(np, f"logical_{join}")
            result, opposite = combine(result, third(active)), combine(opposite, third(active))
        put(active, result)
        if put_opposite:
            put_opposite(active, opposite)

    return set_predicate


def _select(machine: Machine, instruction: Instruction):
    type_name = instruction.opcode[-1]
    return _simple(
        machine,
        instruction,
        lambda a, b, p: np.where(p, a, b).astype(np.asarray(a).dtype),
        [type_name, type_name, "pred"],
    )


def _test_number(machine: Machine, instruction: Instruction):
    functions = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda a: ~np.isnan(a),
        "notanumber": np.isnan,
        "subnormal": lambda a: (a != 0) & (np.abs(a) < np.finfo(a.dtype).tiny),
    }
    return _simple(machine, instruction, functions[instruction.opcode[1]])


def _copy_sign(machine: Machine, instruction: Instruction):
    return _simple(machine, instruction, lambda sign, size: np.copysign(size, sign))


def round_to_bfloat16(a):
    """float32 to the bits of bfloat16, to the nearest, ties to even."""
    bits = np.asarray(a, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(a), np.uint32(0x7FFF), rounded).astype(np.uint16)


def _convert(machine: Machine, instruction: Instruction):
    opcode, operands = instruction.opcode, instruction.operands
    source, to = opcode[-1], opcode[-2]
    put = setter(machine, operands[0])
    if to == "tf32":
        read = getter(machine, operands[1], "b32")
        return lambda active: put(active, (read(active) + np.uint32(0x1000)) & np.uint32(0xFFFFE000))
    if to in ("f16x2", "bf16x2") and len(operands) == 3:
        high, low = getter(machine, operands[1], "f32"), getter(machine, operands[2], "f32")
        half = round_to_bfloat16 if to == "bf16x2" else lambda a: np.asarray(a, np.float16).view(np.uint16)
        return lambda active: put(
            active, half(high(active)).astype(np.uint32) << np.uint32(16) | half(low(active)).astype(np.uint32)
        )
    read = getter(machine, operands[1], "u16" if source == "bf16" else source)

    def convert(active):
        values = np.asarray(read(active))
        if source == "bf16":
            values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
        put(active, _converted(values, to, opcode))

    return convert


def _converted(values, to: str, opcode):
    if to == "bf16":
        return round_to_bfloat16(values)
    kind, size = typed(to)
    target = dtype_of(kind, size)
    modes = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
    for mode, function in modes.items():
        if mode in opcode:
            values = function(values)
    if kind == "f":
        if "sat" in opcode:
            values = np.where(values != values, 0, np.clip(values, 0, 1))
        return values.astype(target)
    if values.dtype.kind == "f" or "sat" in opcode:
        limits = np.iinfo(target)
        if values.dtype.kind == "f":
            values = np.where(values != values, 0, values.astype(np.float64))
            top = values >= float(limits.max)
            inside = np.clip(values, float(limits.min), np.nextafter(float(limits.max) + 1, 0)).astype(target)
            return np.where(top, target.type(limits.max), inside)
        return np.clip(values.astype(object), limits.min, limits.max).astype(target)
    return values.astype(target)


COMPILERS = {
    "mov": _move,
    **dict.fromkeys(("add", "sub", "mul", "div", "rem", "min", "max"), _arithmetic),
    **dict.fromkeys(("fma", "mad"), _multiply_add),
    **dict.fromkeys(
        ("neg", "abs", "sqrt", "rcp", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh", "popc", "clz", "brev"), _unary
    ),
    **dict.fromkeys(("and", "or", "xor", "not", "cnot"), _logic),
    **dict.fromkeys(("shl", "shr"), _shift),
    "shf": _funnel_shift,
    "bfe": _extract_bits,
    "bfi": _insert_bits,
    "prmt": _permute_bytes,
    "lop3": _three_input_logic,
    "setp": _set_predicate,
    "selp": _select,
    "testp": _test_number,
    "copysign": _copy_sign,
    "cvt": _convert,
}
