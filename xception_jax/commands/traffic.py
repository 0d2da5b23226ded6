"""Bytes that a compiled program reads and writes, counted from the text of its HLO, loops as often as they run."""

import math
import re
from typing import NamedTuple

# These move nothing: they name values, or group them.
FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
}
SLICES = {"dynamic-slice", "slice", "gather"}


class Instruction(NamedTuple):
    """An HLO instruction: `name = shape opcode(operands), attributes`; `bytes` are those of its shape."""

    name: str
    bytes: int
    opcode: str
    operands: list[str]
    attributes: str

    def called(self, *attributes: str) -> list[str]:
        """Names of the computations in attributes such as "calls"."""
        found = re.findall(rf"\b(?:{'|'.join(attributes)})=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes)
        return re.findall(r"%([\w.\-]+)", " ".join(found))


Computation = dict[str, Instruction]  # by name, the result last


def count(hlo: str) -> int:
    """Bytes read and written by a program, given the text of `compiled.as_text()`.

    Each instruction reads its operands and writes its result once; values inside a fusion stay in registers. Where
    a program slices an operand, or updates a part of one in place, only that part counts. A loop counts as often
    as it runs, or once where XLA does not know; of the branches of a conditional the most expensive counts.
    """
    computations: dict[str, Computation] = {}
    for line in hlo.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            current = computations["ENTRY" if header[1] else header[2]] = {}
        elif found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)", line):
            name, shape, opcode, rest = found.groups()
            operands, _, attributes = rest.partition("), ")
            operands = re.findall(r"%([\w.\-]+)", operands)
            current[name] = Instruction(name, _size(shape), opcode, operands, attributes)
    return _count(computations, "ENTRY")


def _size(shape: str) -> int:
    """Bytes of a shape such as "f32[8,16]{1,0}", or of all in a tuple; the digits of a type are its bits."""
    arrays = re.findall(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]", shape)
    return sum(math.prod(map(int, filter(None, dims.split(",")))) * int(bits or 8) for bits, dims in arrays) // 8


def _count(computations: dict[str, Computation], name: str) -> int:
    body = computations[name]
    return sum(_moved(computations, body, instruction) for instruction in body.values())


def _moved(computations: dict[str, Computation], body: Computation, instruction: Instruction) -> int:
    """Bytes that one instruction of a computation reads and writes."""
    match instruction.opcode:
        case "while":
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.attributes)
            parts = instruction.called("body", "condition")
            return int(trips[1] if trips else 1) * sum(_count(computations, part) for part in parts)
        case "conditional":
            branches = instruction.called("branch_computations", "true_computation", "false_computation")
            return max(_count(computations, branch) for branch in branches)
        case "call" | "async-start":
            return _count(computations, instruction.called("to_apply", "calls")[0])
        case "fusion":
            inner = computations[instruction.called("calls")[0]]
            parameters = [part for part in inner.values() if part.opcode == "parameter"]
            return sum(_read(inner, part) for part in parameters) + _written(inner, list(inner.values())[-1])
        case opcode if opcode in FREE or opcode.endswith("-done"):  # of what runs in the background
            return 0
    operands = [body[operand] for operand in dict.fromkeys(instruction.operands)]
    alone = {instruction.name: instruction}
    return sum(_read(alone, operand) for operand in operands) + _written(body, instruction)


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
