"""Bytes that a compiled program reads and writes, counted from the text of its HLO, loops as often as they run."""

import math
import re
from typing import NamedTuple

NAME = r"%?([\w.\-]+)"
FREE = r"parameter|constant|tuple|get-tuple-element|bitcast|after-all|\w+-id|.*-done"  # they move nothing
SLICES = {"dynamic-slice", "slice", "gather"}


class Instruction(NamedTuple):
    """An HLO instruction; `bytes` are those of its result, `called` are the computations that it runs."""

    name: str
    bytes: int
    opcode: str
    operands: list[str]
    called: list[str]
    trips: int


Computation = dict[str, Instruction]  # by name, the result last


def count(hlo: str) -> int:
    """Bytes read and written by a program, given the text of `compiled.as_text()`.

    Each instruction reads its operands and writes its result once; values inside a fusion stay in registers. Where
    a program slices an operand, or updates a part of one in place, only that part counts. A loop counts as often
    as it runs, or once where XLA does not know; of the branches of a conditional the most expensive counts.
    """
    computations: dict[str, Computation] = {}
    for line in hlo.splitlines():
        if header := re.match(rf"(ENTRY )?{NAME} .*\{{$", line):
            current = computations["ENTRY" if header[1] else header[2]] = {}
        elif found := re.match(rf"\s+(?:ROOT )?{NAME} = (\(.*?\)|\S+) ([\w\-]+)\((.*)", line):
            current[found[1]] = _parse(*found.groups())
    return _count(computations, "ENTRY")


def _parse(name: str, shape: str, opcode: str, rest: str) -> Instruction:
    operands, _, attributes = rest.partition("), ")
    called = re.findall(r"\b(?:body|condition|calls|to_apply|\w+_computations?)=(\{.*?\}|%\S+)", attributes)
    trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', attributes)
    names = (re.findall(r"%([\w.\-]+)", text) for text in (operands, " ".join(called)))
    return Instruction(name, _size(shape), opcode, *names, int(trips[1]) if trips else 1)


def _size(shape: str) -> int:
    """Bytes of a shape such as "f32[8,16]{1,0}", or of all in a tuple; the digits of a type are its bits."""
    arrays = re.findall(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]", shape)
    return sum(math.prod(map(int, filter(None, dims.split(",")))) * int(bits or 8) for bits, dims in arrays) // 8


def _count(computations: dict[str, Computation], name: str) -> int:
    body = computations[name]
    return sum(_moved(computations, body, instruction) for instruction in body.values())


def _moved(computations: dict[str, Computation], body: Computation, instruction: Instruction) -> int:
    """Bytes that one instruction of a computation reads and writes."""
    if re.fullmatch(FREE, instruction.opcode):
        return 0
    if instruction.opcode == "fusion":
        inner = computations[instruction.called[0]]
        *_, result = inner.values()
        inputs = [part for part in inner.values() if part.opcode == "parameter"]
        return sum(_read(inner, value) for value in inputs) + _written(inner, result)
    if instruction.opcode in ("while", "call", "conditional", "async-start"):
        parts = [_count(computations, name) for name in instruction.called]
        return max(parts) if instruction.opcode == "conditional" else instruction.trips * sum(parts)
    inputs = [body[operand] for operand in dict.fromkeys(instruction.operands)]
    alone = {instruction.name: instruction}
    return sum(_read(alone, value) for value in inputs) + _written(body, instruction)


def _read(body: Computation, value: Instruction) -> int:
    """Bytes of a value that a computation reads: the parts that it slices, nothing of what it updates in place."""
    users = [user for user in body.values() if value.name in user.operands]
    if all(user.operands[0] == value.name and user.opcode in SLICES for user in users):
        return sum(user.bytes for user in users)
    in_place = all(user.operands[0] == value.name and user.opcode == "dynamic-update-slice" for user in users)
    return 0 if in_place else value.bytes


def _written(body: Computation, result: Instruction) -> int:
    """Bytes of the result of a computation that it writes: the part, where it updates one in place."""
    match result.opcode:
        case "dynamic-update-slice":
            return body[result.operands[1]].bytes
        case "bitcast":
            return _written(body, body[result.operands[0]])
        case "tuple":
            return sum(_written(body, body[part]) for part in result.operands)
    return result.bytes
