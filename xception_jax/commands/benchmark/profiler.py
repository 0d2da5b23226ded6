"""Where the time of a compiled step goes: by kind of operation, and by layer."""

import collections
import dataclasses
import glob
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable

import jax

STEPS = 3
SMALL = 0.001  # of a step: shorter layers are not shown
# Kinds by the HLO instructions that an operation is made of; the first that fits counts.
KINDS = {
    "convolution": {"convolution"},
    "matmul": {"dot"},
    "pool": {"reduce-window", "select-and-scatter"},
    "reduce": {"reduce"},
}
MOVES = {
    "copy", "transpose", "reshape", "bitcast", "slice", "pad", "concatenate", "broadcast", "reverse", "gather",
    "dynamic-slice", "dynamic-update-slice", "parameter", "constant", "tuple", "get-tuple-element", "iota",
}  # fmt: skip
CONTROL = {"while", "conditional", "call", "custom-call", "async-start", "async-done", "infeed", "outfeed"}
# What JAX itself puts into names, apart from the functions in jit(...).
STRUCTURE = re.compile(
    r"while|body|cond|closed_call|eval_jaxpr|checkpoint|rematted_computation|core_call|custom_[jv]vp_call\w*|branch_\d+_fun"
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An HLO instruction.

    Attributes:
      opcode: such as "fusion".
      path: JAX's name for it, such as "jit(f)/transpose(jvp(entry_0))/separable_1/dot_general"; may be empty.
      parts: the opcodes within, of a fusion or a call; else its own.
    """

    opcode: str
    path: str
    parts: frozenset[str]

    @property
    def primitive(self) -> str:
        """JAX's primitive, the last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def backward(self) -> bool:
        """Whether it belongs to a gradient."""
        return "transpose(" in self.path

    @property
    def layer(self) -> str:
        """The named scopes of the model around it, such as "entry_0/separable_1"; empty outside of all.

        >>> Instruction("dot", "jit(f)/transpose(jvp(entry_0))/separable_1/jit(relu)/max", frozenset()).layer
        'entry_0/separable_1'
        """
        scopes = []
        for part in self.path.split("/")[:-1]:
            if part.startswith(("jit(", "pjit(")):
                continue
            scope = re.sub(r"^(\w+\()+|\)+$", "", part)  # jvp, transpose, vmap
            if scope and not STRUCTURE.fullmatch(scope):
                scopes.append(scope)
        return "/".join(scopes)

    @property
    def kind(self) -> str:
        """matmul, convolution, pool, reduce, copy/transpose, elementwise/fusion or other."""
        for kind, opcodes in KINDS.items():
            if self.parts & opcodes:
                return kind
        if self.opcode == "custom-call":  # a library's
            known = {"dot_general": "matmul", "conv_general_dilated": "convolution"}
            return known.get(self.primitive, "other")
        if self.parts <= MOVES:
            return "copy/transpose"
        return "other" if self.parts <= CONTROL else "elementwise/fusion"


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds a step that an instruction took."""

    instruction: Instruction
    seconds: float


def parse_hlo(text: str) -> dict[str, Instruction]:
    """The instructions of a compiled program by name, from `compiled.as_text()`."""
    computations, lines = collections.defaultdict(set), {}
    computation = ""
    for line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            computation = header[1]
        elif found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = .*? ([\w\-]+)\((.*)", line):
            name, opcode, rest = found.groups()
            computations[computation].add(opcode)
            lines[name] = opcode, rest
    instructions = {}
    for name, (opcode, rest) in lines.items():
        called = re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", rest) if opcode in ("fusion", "call") else None
        path = re.search(r'op_name="([^"]*)"', rest)
        parts = computations[called[1]] if called else {opcode}
        instructions[name] = Instruction(opcode, path[1] if path else "", frozenset(parts))
    return instructions


def profile(step: Callable[[], object], hlo: str) -> list[Cost]:
    """Runs a compiled step a few times under jax's profiler: what its instructions took, in the order they ran.

    Instructions may run at the same time on several threads or streams, so all together they may take longer
    than the step.

    Args:
      step: runs the step once and waits for it.
      hlo: `compiled.as_text()`.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory, profiler_options=options):
            for _ in range(STEPS):
                step()
        (path,) = glob.glob(f"{directory}/**/*.xplane.pb", recursive=True)
        data = jax.profiler.ProfileData.from_file(path)
    instructions, nanoseconds, first = parse_hlo(hlo), collections.Counter(), {}
    for plane in data.planes:
        lines = list(plane.lines)
        # Where the profiler has sorted the operations out already, its other lines repeat them.
        for line in [line for line in lines if line.name == "XLA Ops"] or lines:
            spans = _spans(line.events, instructions)
            nanoseconds.update(_own_time(spans))
            for start, _, name in spans:
                first[name] = min(start, first.get(name, start))
    return [Cost(instructions[name], nanoseconds[name] / 1e9 / STEPS) for name in sorted(first, key=first.get)]


def _spans(events: Iterable, instructions: dict[str, Instruction]) -> list[tuple[float, float, str]]:
    """(start, end, name) in nanoseconds of the events that are instructions, the outer ones first."""
    spans = []
    with warnings.catch_warnings():  # jax 0.12 warns of its own type; as an error that would end the process
        warnings.simplefilter("ignore", DeprecationWarning)
        for event in events:
            name = dict(event.stats).get("hlo_op", event.name)
            if name in instructions:
                spans.append((event.start_ns, event.start_ns + event.duration_ns, name))
    return sorted(spans, key=lambda span: (span[0], -span[1]))


def _own_time(spans: Iterable[tuple[float, float, str]]) -> collections.Counter[str]:
    """Nanoseconds of each instruction on one thread, without those of instructions inside it (a loop's body)."""
    own, around = collections.Counter(), []
    for start, end, name in spans:
        while around and around[-1][1] <= start:
            around.pop()
        if around:
            own[around[-1][2]] -= end - start
        own[name] += end - start
        around.append((start, end, name))
    return own


def totals(costs: Iterable[Cost], key: Callable[[Instruction], str]) -> collections.Counter[str]:
    """Seconds a step by what `key` says of an instruction."""
    found = collections.Counter()
    for cost in costs:
        found[key(cost.instruction)] += cost.seconds
    return found


def layers_in_order(costs: Iterable[Cost]) -> list[str]:
    """The layers by when the longest operation of each ran: of its forward pass, if it has one.

    (The first one would not tell: weights are brought into another layout long before they are used.)
    """
    longest = {}
    for position, cost in enumerate(costs):
        layer, rank = cost.instruction.layer, (not cost.instruction.backward, cost.seconds)
        if layer not in longest or rank > longest[layer][0]:
            longest[layer] = rank, position
    return sorted(longest, key=lambda layer: longest[layer][1])


def report(costs: list[Cost]) -> str:
    """Two tables for people: by kind, the slowest first, and by layer, in the order they ran."""
    if not costs:
        return "  the profiler saw no operation of the step on this kind of device"
    total = sum(cost.seconds for cost in costs)
    lines = ["where a step spends its time (operations may run side by side)"]
    lines.append(f"{'kind of operation':<40} {'ms':>9} {'share':>6}")
    for kind, seconds in totals(costs, lambda instruction: instruction.kind).most_common():
        lines.append(f"{kind:<40} {1000 * seconds:9.2f} {seconds / total:6.1%}")
    everything = totals(costs, lambda instruction: instruction.layer)
    backward = totals([cost for cost in costs if cost.instruction.backward], lambda instruction: instruction.layer)
    lines.append(f"{'layer':<40} {'ms':>9} {'share':>6}   of these ms backward")
    for layer in layers_in_order(costs):
        seconds = everything[layer]
        if seconds > SMALL * total:
            name = layer or "(outside the layers)"
            lines.append(f"{name:<40} {1000 * seconds:9.2f} {seconds / total:6.1%} {1000 * backward[layer]:9.2f}")
    return "\n".join("  " + line for line in lines)
