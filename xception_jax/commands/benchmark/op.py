"""Times the grouped convolutions of a model, layer by layer and pass by pass, with each implementation."""

import argparse
import collections
import functools
import re
import time
from collections.abc import Callable

import jax
from jax import lax

from xception_jax import ops
from xception_jax.commands import device, steps, summary
from xception_jax.commands.benchmark import rows
from xception_jax.commands.steps import Workload
from xception_jax.commands.summary import GroupedConv
from xception_jax.errors import UserError
from xception_jax.run import memory

Conv = Callable[[jax.Array, jax.Array], jax.Array]  # (x, kernel) -> y
REFERENCE = "xla"  # the first of `ops.IMPLEMENTATIONS`

# What is computed of (convolution, x, kernel, gradient of the output).
PASSES = {
    "forward": lambda conv, x, kernel, dy: conv(x, kernel),
    "input gradient": lambda conv, x, kernel, dy: jax.vjp(conv, x, kernel)[1](dy)[0],
    "kernel gradient": lambda conv, x, kernel, dy: jax.vjp(conv, x, kernel)[1](dy)[1],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    steps.add_arguments(parser, rounds=5)
    about = "instead of the layers: 3x3 convolutions, such as 112x64/2 (depthwise) or 19x728/1:4 (4 groups)"
    metavar = "SIZExCHANNELS/STRIDE[:GROUPS]"
    parser.add_argument("--shapes", type=parse_layer, nargs="+", metavar=metavar, help=about)
    rows.add_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prints and records the time, and the ratio to XLA's time, for each layer, pass and implementation."""
    memory.keep_freed_memory()  # as in training
    rows.check(arguments.csv)
    work = steps.from_arguments(arguments)
    layers = find_layers(arguments, work)
    print(f"{work.name}, {work.batch} x {work.inputs}, on {device.describe()}")
    print(f"each implementation in turn; {REFERENCE} is XLA's own grouped convolution", flush=True)
    for layer, times in layers.items():
        print(f"{layer}" + (f": {times} of the model's layers" if times else ""))
        for name in PASSES:
            seconds = time_in_turn(layer, name, work, arguments.rounds)
            inputs = f"{layer}, {work.dtype}"
            measured = rows.compare("by", seconds, what=name, inputs=inputs, images=work.batch)
            rows.append(arguments.csv, measured)
            for row in measured:
                line = f"  {name:<16} {row['by']:<8} {rows.milliseconds(row):<28} {rows.ratio(row)}"
                print(line.rstrip(), flush=True)
    print(f"added to {arguments.csv}")


def parse_layer(text: str) -> GroupedConv:
    """The layer that "112x64/2" or "19x728/1:4" describes, with SAME padding; for argparse."""
    match = re.fullmatch(r"(\d+)x(\d+)/(\d+)(?::(\d+))?", text)
    size, channels, strides, groups = (int(n or 0) for n in match.groups()) if match else (0, 0, 0, 0)
    groups = groups or channels
    if not min(size, channels, strides):
        raise argparse.ArgumentTypeError(f"{text!r}: write SIZExCHANNELS/STRIDE[:GROUPS], such as 112x64/2")
    if channels % groups:
        raise argparse.ArgumentTypeError(f"{text!r}: the groups must divide the {channels} channels")
    pads = lax.padtype_to_pads((size, size), (3, 3), (strides, strides), "SAME")
    return GroupedConv((size, size), channels, channels, (3, 3), groups, (strides, strides), tuple(pads))


def find_layers(arguments: argparse.Namespace, work: Workload) -> collections.Counter[GroupedConv]:
    """The layers to time, and how many of them the model has; 0 for those that the flags name."""
    if arguments.shapes:
        return collections.Counter(dict.fromkeys(arguments.shapes, 0))
    layers = summary.grouped_convs(work.forward_jaxpr())
    if not layers:
        raise UserError(f"--model={work.model}: with these settings it has no grouped convolution")
    return layers


def layer_convs(layer: GroupedConv) -> dict[str, Conv]:
    """Each implementation of the layer, by name."""
    function = ops.depthwise_conv if layer.depthwise else functools.partial(ops.conv, groups=layer.groups)
    conv = functools.partial(function, strides=layer.strides, padding=layer.padding)
    return {name: functools.partial(conv, implementation=name) for name in ops.IMPLEMENTATIONS}


def time_in_turn(layer: GroupedConv, name: str, work: Workload, rounds: int) -> dict[str, list[float]]:
    """Seconds of a pass for each implementation that takes the shape: all in turn, after one call to warm up."""
    convs, keys = layer_convs(layer), jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (work.batch, *layer.size, layer.channels), work.dtype)  # [N, H, W, C]
    kernel_shape = (*layer.kernel, layer.channels // layer.groups, layer.features)
    kernel = jax.random.normal(keys[1], kernel_shape, work.dtype)
    dy = jax.random.normal(keys[2], jax.eval_shape(convs[REFERENCE], x, kernel).shape, work.dtype)
    calls = {}
    for implementation, conv in convs.items():
        try:
            calls[implementation] = jax.jit(functools.partial(PASSES[name], conv)).lower(x, kernel, dy).compile()
        except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
            print(f"  {name:<16} {implementation:<8} not for this shape: {str(error).splitlines()[0]}")
    seconds = {implementation: [] for implementation in calls}
    for _ in range(1 + rounds):
        for implementation, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call(x, kernel, dy))
            seconds[implementation].append(time.perf_counter() - start)
    return {implementation: values[1:] for implementation, values in seconds.items()}
