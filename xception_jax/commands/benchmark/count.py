"""Counts read from a traced program: multiply-accumulates, in all and by layer, and the grouped convolutions."""

import collections
import dataclasses
import math
from collections.abc import Iterator

from jax.extend import core


def macs(jaxpr: core.Jaxpr) -> int:
    """Multiply-accumulates of all matrix products and convolutions; a FLOP count is twice this.

    A convolution counts every tap at every output pixel, on the padding too, as papers do. Of the branches
    of a `cond` the most expensive counts; a `scan` counts as often as it is long.

    Raises:
      ValueError: if a `while` loop, whose length nobody knows, holds a product.
    """
    return sum(_equation_macs(equation) for equation in jaxpr.eqns)


def _equation_macs(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        contracted = params["dimension_numbers"][0][0]
        lhs = equation.invars[0].aval.shape
        return math.prod(equation.outvars[0].aval.shape) * math.prod(lhs[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // features
    inner = [macs(sub) for sub in _subjaxprs(equation)]
    if name == "while" and any(inner):
        raise ValueError("a while loop holds a product: its multiply-accumulates cannot be counted")
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


@dataclasses.dataclass(frozen=True)
class Product:
    """A convolution or matrix product of a network that was traced for one image.

    Attributes:
      layer: the named scopes of the model around it, such as "entry_0/separable_1".
      operation: such as "3x3 / 2" or "3x3 depthwise".
      output: (height, width, channels); (channels,) after the pooling.
      weights: of its kernel.
      macs: multiply-accumulates, as in `macs`.
    """

    layer: str
    operation: str
    output: tuple[int, ...]
    weights: int
    macs: int

    @property
    def activations(self) -> int:
        """Values it computes."""
        return math.prod(self.output)


def products(jaxpr: core.Jaxpr, scope: str = "") -> list[Product]:
    """All of them, in their order; those within a `scan` as often as it is long.

    Args:
      jaxpr: the forward pass for one image.
      scope: of the equation that holds the program.
    """
    found: list[Product] = []
    for equation in jaxpr.eqns:
        layer = "/".join(filter(None, (scope, str(equation.source_info.name_stack))))
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            found.append(_product(equation, layer, found[-1].output if found else ()))
        inner = [product for sub in _subjaxprs(equation) for product in products(sub, layer)]
        found += inner * (equation.params["length"] if equation.primitive.name == "scan" else 1)
    return found


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
    return Product(layer, operation, tuple(output), math.prod(kernel), _equation_macs(equation))


def _subjaxprs(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """The programs that an equation holds: of a call, a loop, the branches of a condition."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


@dataclasses.dataclass(frozen=True)
class GroupedConv:
    """The shapes of a convolution within groups of channels.

    >>> print(GroupedConv((19, 19), 728, 728, (3, 3), 728, (1, 1), ((1, 1), (1, 1))))
    19x19x728 depthwise 3x3

    Attributes:
      size: height and width of the input.
      channels, features: in and out.
      kernel: height and width.
      groups: as many as channels = depthwise.
      strides: rows and columns.
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


def grouped_convs(jaxpr: core.Jaxpr) -> collections.Counter[GroupedConv]:
    """How often each grouped convolution occurs, in the order of their first use."""
    found = collections.Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated" and equation.params["feature_group_count"] > 1:
            found[_grouped_conv(equation)] += 1
        for sub in _subjaxprs(equation):
            found.update(grouped_convs(sub))
    return found


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
