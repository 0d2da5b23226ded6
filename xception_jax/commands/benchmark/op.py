"""Times the grouped convolutions of a model, layer by layer and pass by pass, with each implementation."""

import argparse
import collections
import dataclasses
import functools
import re
import time
from collections.abc import Callable, Sequence

import jax
from jax import lax

from xception_jax import ops
from xception_jax.commands.benchmark import count, device, records, workload
from xception_jax.commands.benchmark.count import GroupedConv
from xception_jax.commands.benchmark.workload import Workload
from xception_jax.errors import UserError
from xception_jax.run import memory

Conv = Callable[[jax.Array, jax.Array], jax.Array]  # (x, kernel) -> y
REFERENCE = "xla"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    workload.add_arguments(parser, rounds=5)
    parser.add_argument(
        "--segments",
        type=workload.positive,
        nargs="+",
        metavar="G",
        help="instead of the layers: convolutions in G segments, at the shape that most layers have",
    )
    parser.add_argument(
        "--shapes",
        type=depthwise_layer,
        nargs="+",
        metavar="SIZExCHANNELS/STRIDE",
        help="instead of the layers: depthwise 3x3 convolutions of these shapes, such as 112x64/2 of MobileNet",
    )
    records.add_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prints, and adds to the file, ms and the share of XLA's time for layers, passes and implementations.

    Raises:
      UserError: for a mistake in the flags.
    """
    memory.keep_freed_memory()  # as in training
    records.check(arguments.csv)
    work = workload.from_arguments(arguments)
    layers = find_layers(arguments, work)
    print(f"{work}, on {device.describe()}")
    print("each implementation in turn; xla is XLA's own grouped convolution", flush=True)
    for layer, times in layers.items():
        print(f"{layer}" + (f": {times} of the model's layers" if times else ""))
        convs = layer_convs(layer)
        for name in PASSES:
            rows = make_rows(work, layer, name, time_in_turn(convs, layer, name, work, arguments.rounds))
            records.append(arguments.csv, rows)
            for row in rows:
                ms = records.milliseconds(row)
                share = "" if row["implementation"] == REFERENCE else f"{row['time_ratio']:.3g} of xla's time"
                print(f"  {name:<16} {row['implementation']:<16} {ms:<46} {share}".rstrip(), flush=True)
    print(f"added to {arguments.csv}")


def depthwise_layer(text: str) -> GroupedConv:
    """The layer that "112x64/2" describes: 112 x 112 x 64, stride 2; for argparse."""
    match = re.fullmatch(r"(\d+)x(\d+)/(\d+)", text)
    size, channels, strides = (int(n) for n in match.groups()) if match else (0, 0, 0)
    if not min(size, channels, strides):
        raise argparse.ArgumentTypeError(f"{text!r}: write SIZExCHANNELS/STRIDE, such as 112x64/2")
    pads = lax.padtype_to_pads((size, size), (3, 3), (strides, strides), "SAME")
    return GroupedConv((size, size), channels, channels, (3, 3), channels, (strides, strides), tuple(pads))


def find_layers(arguments: argparse.Namespace, work: Workload) -> collections.Counter[GroupedConv]:
    """The layers to time and how many of them the model has."""
    if arguments.shapes:
        return collections.Counter(dict.fromkeys(arguments.shapes, 0))
    layers = count.grouped_convs(workload.forward_jaxpr(work))
    if not layers:
        raise UserError(f"--model={work.model}: with these settings it has no grouped convolution")
    return segmented_layers(layers, arguments.segments) if arguments.segments else layers


def segmented_layers(
    layers: collections.Counter[GroupedConv], segments: Sequence[int]
) -> collections.Counter[GroupedConv]:
    """The shape that most depthwise layers of stride 1 have (of Xception: the middle flow's), cut into `segments`.

    Raises:
      UserError: if they do not divide its channels, which XLA's grouped convolution needs.
    """
    plain = {layer: times for layer, times in layers.items() if layer.depthwise and max(layer.strides) == 1}
    if not plain:
        raise UserError("--segments: the model has no depthwise convolution of stride 1 to take the shape from")
    layer = max(plain, key=plain.get)
    for groups in segments:
        if layer.channels % groups:
            raise UserError(f"--segments {groups}: must divide the {layer.channels} channels")
    return collections.Counter({dataclasses.replace(layer, groups=groups): 0 for groups in segments})


def layer_convs(layer: GroupedConv) -> dict[str, Conv]:
    """Each implementation of the layer, by name; XLA's is the reference."""
    if layer.depthwise:
        function = functools.partial(ops.depthwise_conv, padding=layer.padding)
    else:
        function = functools.partial(ops.conv, padding=layer.padding, groups=layer.groups)
    return {
        name: functools.partial(function, strides=layer.strides, implementation=name)
        for name in ops.IMPLEMENTATIONS
    }


# What is computed of (convolution, x, kernel, gradient of the output).
PASSES = {
    "forward": lambda conv, x, kernel, dy: conv(x, kernel),
    "input gradient": lambda conv, x, kernel, dy: jax.vjp(conv, x, kernel)[1](dy)[0],
    "kernel gradient": lambda conv, x, kernel, dy: jax.vjp(conv, x, kernel)[1](dy)[1],
}


def time_in_turn(
    convs: dict[str, Conv], layer: GroupedConv, name: str, work: Workload, rounds: int
) -> dict[str, list[float]]:
    """Seconds of a pass for each implementation, one after the other in each round, after one call to warm up.

    So what else the machine does meets all of them. An implementation that refuses the shape is left out.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (work.batch, *layer.size, layer.channels), work.dtype)
    kernel_shape = (*layer.kernel, layer.channels // layer.groups, layer.features)
    kernel = jax.random.normal(keys[1], kernel_shape, work.dtype)
    dy = jax.random.normal(keys[2], jax.eval_shape(convs[REFERENCE], x, kernel).shape, work.dtype)
    calls = {}
    for implementation, conv in convs.items():
        try:
            calls[implementation] = jax.jit(functools.partial(PASSES[name], conv)).lower(x, kernel, dy).compile()
        except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
            print(f"  {name:<16} {implementation:<16} not for this shape: {str(error).splitlines()[0]}")
    seconds = {implementation: [] for implementation in calls}
    for _ in range(1 + rounds):
        for implementation, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call(x, kernel, dy))
            seconds[implementation].append(time.perf_counter() - start)
    return {implementation: values[1:] for implementation, values in seconds.items()}


def make_rows(work: Workload, layer: GroupedConv, name: str, seconds: dict[str, list[float]]) -> list[records.Row]:
    """A row for each implementation."""
    shared = work.columns | {"benchmark": "op", "mode": name, "layer": str(layer)} | device.environment()
    return [
        shared
        | {"implementation": implementation}
        | records.seconds_columns(values)
        | records.ratio_columns(values, seconds[REFERENCE], REFERENCE)
        for implementation, values in seconds.items()
    ]
