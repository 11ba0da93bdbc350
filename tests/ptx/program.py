"""PTX text to a program: one kernel's instructions, labels, parameters, and the variables of its module."""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

BYTES = {"8": 1, "16": 2, "32": 4, "64": 8, "128": 16}


class Instruction(NamedTuple):
    """``@!%p1 ld.global.v2.f32 {%f1, %f2}, [%rd1+8]``"""

    guard: str | None  # predicate register
    negated: bool
    opcode: tuple[str, ...]  # ("ld", "global", "v2", "f32")
    operands: tuple[str, ...]  # ("{%f1, %f2}", "[%rd1+8]")
    text: str
    place: "Place" = ()


Place = tuple[tuple[str, int], ...]
"""File and line in the source, then those into which they were inlined; empty without line information."""


@dataclass
class Program:
    """One ``.entry`` of a module."""

    name: str
    parameters: list[tuple[str, int, int]] = field(default_factory=list)  # name, offset and size in bytes
    parameter_bytes: int = 0
    registers: dict[str, int] = field(default_factory=dict)  # prefix or name: bytes; 0 for predicates
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    targets: dict[str, list[str]] = field(default_factory=dict)  # tables of brx.idx
    shared: dict[str, int] = field(default_factory=dict)  # variable: offset
    shared_bytes: int = 0  # static
    local: dict[str, int] = field(default_factory=dict)
    local_bytes: int = 0
    globals: dict[str, np.ndarray] = field(default_factory=dict)  # of the module, with initial values


def entries(source: str) -> list[str]:
    """Names of the kernels in a module."""
    return re.findall(r"\.entry\s+([\w$]+)", source)


def parse(source: str, name: str | None = None) -> Program:
    """The kernel ``name`` of a module; without a name, its first."""
    source = re.sub(r"//[^\n]*|/\*.*?\*/", "", source, flags=re.S)
    files = {number: path.rpartition("/")[2] for number, path in re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', source)}
    names = entries(source)
    name = names[0] if name is None else name
    if name not in names:
        raise KeyError(f"no kernel {name!r} among {names}")
    header = re.search(r"\.entry\s+" + re.escape(name) + r"\s*\((.*?)\)([^{]*)\{", source, re.S)
    assert header is not None
    program = Program(name)
    _parse_parameters(program, header[1])
    body = source[header.end() : _closing_brace(source, header.end())]
    outside = source[: source.index(".entry")] if ".entry" in source else source
    _parse_globals(program, outside)
    _parse_variables(program, outside, "shared")
    _parse_variables(program, body, "shared")
    _parse_variables(program, body, "local")
    _parse_body(program, body, files)
    return program


def _closing_brace(source: str, begin: int) -> int:
    depth, at = 1, begin
    for match in re.finditer(r"[{}]", source[begin:]):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            at = begin + match.start()
            break
    return at


def _parse_parameters(program: Program, text: str) -> None:
    offset = 0
    for declaration in filter(None, (part.strip() for part in text.split(","))):
        match = re.match(r"\.param\s+(.*?)\.([bsuf])(\d+)\b(.*?)([\w$]+)\s*(?:\[(\d+)\])?$", declaration, re.S)
        if not match:
            raise ValueError(f"parameter {declaration!r} is not understood")
        size = BYTES[match[3]]
        alignment = re.search(r"\.align\s+(\d+)", match[1])
        align = int(alignment[1]) if alignment else size
        size *= int(match[6] or 1)
        offset = -(-offset // align) * align
        program.parameters.append((match[5], offset, size))
        offset += size
    program.parameter_bytes = offset


def _parse_globals(program: Program, text: str) -> None:
    space, kind = r"\.(?:global|const)\s+(?:\.align\s+\d+\s+)?", r"\.[busf](\d+)\s+"
    pattern = space + kind + r"([\w$]+)\s*(?:\[(\d+)\])?\s*(?:=\s*\{?([^;}]*)\}?)?;"
    for bits, variable, count, values in re.findall(pattern, text):
        kind = np.dtype(f"u{BYTES[bits]}")
        array = np.zeros(int(count or 1), kind)
        numbers = [int(v, 0) & (2 ** int(bits) - 1) for v in values.split(",") if v.strip()]
        array[: len(numbers)] = numbers
        program.globals[variable] = array


def _parse_variables(program: Program, text: str, space: str) -> None:
    offsets: dict[str, int] = getattr(program, space)
    end = getattr(program, f"{space}_bytes")
    pattern = rf"\.{space}\s+\.align\s+(\d+)\s+\.[busf](\d+)\s+([\w$]+)\s*(\[(\d*)\])?"
    for align, bits, variable, array, count in re.findall(pattern, text):
        end = -(-end // int(align)) * int(align)
        offsets[variable] = end
        # An array without a length is the dynamic shared memory: it begins where the rest ends.
        end += BYTES[bits] * (int(count or 0) if array else 1)
    setattr(program, f"{space}_bytes", end)


def _parse_body(program: Program, body: str, files: dict[str, str]) -> None:
    body = re.sub(r"^\s*\.(?:pragma|file|section)\b[^\n]*$", "", body, flags=re.M)
    body = re.sub(r"^\s*(\.loc\b[^\n]*)$", r"\1;", body, flags=re.M)
    places: dict[tuple[str, ...], Place] = {}
    place: Place = ()
    for raw in body.split(";"):
        statement = " ".join(raw.split())
        while True:
            statement = statement.lstrip("{} ")
            label = re.match(r"([\w$]+)\s*:(?!:)\s*", statement)
            if not label:
                break
            statement = statement[label.end() :]
            program.labels[label[1]] = len(program.instructions)
            if statement.startswith(".branchtargets"):
                program.targets[label[1]] = [t.strip() for t in statement.removeprefix(".branchtargets").split(",")]
        if statement.startswith(".reg"):
            _parse_registers(program, statement)
        elif statement.startswith(".loc"):
            at, *inlined = re.findall(r"(?:\.loc|inlined_at) (\d+) (\d+) (\d+)", statement)
            place = ((files[at[0]], int(at[1])), *(places.get(inlined[0], ()) if inlined else ()))
            places[at] = place
        elif statement and not statement.startswith("."):
            program.instructions.append(_instruction(statement)._replace(place=place))


def _parse_registers(program: Program, statement: str) -> None:
    match = re.match(r"\.reg\s+\.(pred|[busf]\d+)\s+(.*)", statement)
    assert match is not None, statement
    size = 0 if match[1] == "pred" else BYTES[match[1][1:]]
    for name in match[2].split(","):
        program.registers[re.sub(r"<\d+>", "", name).strip()] = size


def _instruction(statement: str) -> Instruction:
    match = re.match(r"(?:@(!?)\s*([%\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)$", statement)
    if not match:
        raise ValueError(f"statement {statement!r} is not understood")
    operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s{}\[\]][^,{}\[\]]*", match[4])
    opcode = tuple(match[3].replace("::cta", "").replace("::cluster", "").split("."))
    return Instruction(match[2], match[1] == "!", opcode, tuple(o.strip() for o in operands), statement)
