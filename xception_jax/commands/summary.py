"""Lists a network's layers: shapes, weights, multiply-adds and activations of each, and of all."""

import argparse
import collections
import dataclasses
import math
from collections.abc import Sequence

import jax
from flax import nnx
from jax.extend import core

from xception_jax import state
from xception_jax.commands import steps

HEADER = ("layer", "operation", "output", "weights", "MACs", "activations")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    steps.add_model_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prints the table and the totals, each with the convention of its count."""
    arguments.batch, arguments.dtype = 1, "float32"
    work = steps.from_arguments(arguments)
    layers = products(work.forward_jaxpr())
    print(f"{work.model}, one image of {work.image_size} x {work.image_size} pixels\n\n{table(layers)}\n")
    print("\n".join(totals(layers, work.abstract_model())))


@dataclasses.dataclass(frozen=True)
class Product:
    """A convolution or matrix product of a network that was traced for one image.

    Attributes:
      layer: the named scopes of the model around it, such as "entry_0/separable_1".
      operation: such as "3x3 / 2" or "3x3 depthwise".
      output: (height, width, channels); (channels,) after the pooling.
      weights: number of elements of its kernel.
      macs: multiply-adds, as in `macs`.
    """

    layer: str
    operation: str
    output: tuple[int, ...]
    weights: int
    macs: int

    @property
    def activations(self) -> int:
        """Number of values it computes."""
        return math.prod(self.output)


@dataclasses.dataclass(frozen=True)
class GroupedConv:
    """The shapes of a convolution within groups of channels: pairs of height and width, and numbers of channels.

    >>> print(GroupedConv((19, 19), 728, 728, (3, 3), 728, (1, 1), ((1, 1), (1, 1))))
    19x19x728 depthwise 3x3

    Attributes:
      size, channels: of the input; `features` are the channels of the output.
      padding: ((top, bottom), (left, right)) in pixels.
    """

    size: tuple[int, int]
    channels: int
    features: int
    kernel: tuple[int, int]
    groups: int
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]

    def __str__(self) -> str:
        (height, width), (rows, columns) = self.size, self.kernel
        kind = "depthwise" if self.depthwise else f"to {self.features} in {self.groups} groups"
        strides = f" stride {self.strides[0]}" if max(self.strides) > 1 else ""
        return f"{height}x{width}x{self.channels} {kind} {rows}x{columns}{strides}"

    @property
    def depthwise(self) -> bool:
        """One kernel for each channel, one channel out for each in."""
        return self.groups == self.channels == self.features


def macs(jaxpr: core.Jaxpr) -> int:
    """Multiply-adds of all matrix products and convolutions of a traced program; a FLOP count is twice this.

    A convolution counts every tap at every output pixel, on the padding too, as papers do. A `scan` counts as
    often as it runs; of the branches of a `cond` the most expensive counts.

    Raises:
      ValueError: if a `while` loop contains a product, since the length of the loop is unknown.
    """
    return sum(_macs(equation) for equation, _ in _walk(jaxpr))


def products(jaxpr: core.Jaxpr) -> list[Product]:
    """The convolutions and matrix products of a forward pass for one image, in the order they run; see `macs`."""
    found: list[Product] = []
    for equation, layer in _walk(jaxpr):
        found.append(_product(equation, layer, found[-1].output if found else ()))
    return found


def grouped_convs(jaxpr: core.Jaxpr) -> collections.Counter[GroupedConv]:
    """How often each convolution in groups occurs, in the order of their first use; see `macs`."""
    convs = (equation for equation, _ in _walk(jaxpr) if equation.params.get("feature_group_count", 1) > 1)
    return collections.Counter(map(_grouped_conv, convs))


def _walk(jaxpr: core.Jaxpr, scope: str = "") -> list[tuple[core.JaxprEqn, str]]:
    """(equation, named scopes around it) of all convolutions and matrix products, each as often as it runs."""
    found = []
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        layer = "/".join(filter(None, (scope, str(equation.source_info.name_stack))))
        if name in ("conv_general_dilated", "dot_general"):
            found.append((equation, layer))
            continue
        inner = [_walk(sub, layer) for sub in _subjaxprs(equation)]
        if name == "while" and any(inner):
            raise ValueError("a while loop contains a product: its multiply-adds cannot be counted")
        if name == "cond":
            inner = [max(inner, key=lambda branch: sum(_macs(equation) for equation, _ in branch))]
        times = equation.params["length"] if name == "scan" else 1
        found += times * [item for part in inner for item in part]
    return found


def _subjaxprs(equation: core.JaxprEqn) -> list[core.Jaxpr]:
    """The programs that an equation contains: that of a call, a loop, the branches of a condition."""
    leaves = jax.tree.leaves(list(equation.params.values()))
    programs = (getattr(leaf, "jaxpr", leaf) for leaf in leaves)  # of a ClosedJaxpr
    return [program for program in programs if isinstance(program, core.Jaxpr)]


def _macs(equation: core.JaxprEqn) -> int:
    params, output = equation.params, math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        contracted, lhs = params["dimension_numbers"][0][0], equation.invars[0].aval.shape
        return output * math.prod(lhs[axis] for axis in contracted)
    kernel = equation.invars[1].aval.shape
    return output * math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]


def _product(equation: core.JaxprEqn, layer: str, before: tuple[int, ...]) -> Product:
    """`before` is the output of the product before: a matrix product over as many pixels is a 1x1 convolution."""
    kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    if equation.primitive.name == "conv_general_dilated":
        conv = _grouped_conv(equation)
        operation, output = f"{conv.kernel[0]}x{conv.kernel[1]}", out[1:]
        if conv.groups > 1:
            operation += " depthwise" if conv.depthwise else f" in {conv.groups} groups"
        if max(conv.strides) > 1:
            operation += f" / {conv.strides[0]}"
    elif len(before) == 3 and out[0] == math.prod(before[:2]) > 1:
        operation, output = "1x1", (*before[:2], out[-1])
    else:
        operation, output = "dense", out[1:]
    return Product(layer, operation, tuple(output), math.prod(kernel), _macs(equation))


def _grouped_conv(equation: core.JaxprEqn) -> GroupedConv:
    params, spec = equation.params, equation.params["dimension_numbers"]
    image, kernel = (invar.aval.shape for invar in equation.invars)
    return GroupedConv(
        size=tuple(image[axis] for axis in spec.lhs_spec[2:]),
        channels=image[spec.lhs_spec[1]],
        features=kernel[spec.rhs_spec[0]],
        kernel=tuple(kernel[axis] for axis in spec.rhs_spec[2:]),
        groups=params["feature_group_count"],
        strides=tuple(params["window_strides"]),
        padding=tuple(tuple(pair) for pair in params["padding"]),
    )


def table(layers: Sequence[Product]) -> str:
    """A line for each convolution and matrix product, in columns."""
    rows = [HEADER]
    for product in layers:
        counts = (f"{n:,}" for n in (product.weights, product.macs, product.activations))
        rows.append((product.layer, product.operation, " x ".join(map(str, product.output)), *counts))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[*map(str.ljust, row[:3], widths[:3]), *map(str.rjust, row[3:], widths[3:])] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def totals(layers: Sequence[Product], model: nnx.Module) -> list[str]:
    """The sums, a line each."""
    _, params, model_state = state.split(model)
    trained, moving = state.count(params), state.count(model_state)
    return [
        f"parameters: {trained:,} trained, as the paper's table 3 counts; with the {moving:,} moving statistics of"
        f" batch normalization {trained + moving:,}, as Keras does today",
        f"multiply-adds: {sum(p.macs for p in layers):,}, taps on the padding included; FLOP are twice that",
        f"activations: {sum(p.activations for p in layers):,} outputs of convolutions and matrix products",
    ]
