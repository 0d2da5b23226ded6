"""Lists a network's layers: shapes, weights, multiply-accumulates and activations of each, and of all."""

import argparse

from flax import nnx

from xception_jax import state
from xception_jax.commands.benchmark import count, workload

HEADER = ("layer", "operation", "output", "weights", "MACs", "activations")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    workload.add_model_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prints the table and the totals, each with the convention it is counted by."""
    arguments.batch, arguments.dtype = 1, "float32"
    work = workload.from_arguments(arguments)
    products = count.products(workload.forward_jaxpr(work))
    size = work.image_size
    print(f"{work.model}, one image of {size} x {size} pixels\n\n{table(products)}\n")
    print("\n".join(totals(products, work.abstract_model())))


def table(products: list[count.Product]) -> str:
    """A line for each convolution and matrix product, in columns."""
    rows = [
        (
            product.layer,
            product.operation,
            " x ".join(map(str, product.output)),
            f"{product.weights:,}",
            f"{product.macs:,}",
            f"{product.activations:,}",
        )
        for product in products
    ]
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
    lines = [
        [*map(str.ljust, row[:3], widths[:3]), *map(str.rjust, row[3:], widths[3:])] for row in (HEADER, *rows)
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def totals(products: list[count.Product], model: nnx.Module) -> list[str]:
    """The sums, a line each."""
    _, params, batch_stats = state.split(model)
    trained, moving = state.count(params), state.count(batch_stats)
    return [
        f"parameters: {trained:,} trained, as the paper's table 3 counts; with the {moving:,} moving statistics of"
        f" batch normalization {trained + moving:,}, as Keras does today",
        f"multiply-accumulates: {sum(p.macs for p in products):,}, taps on the padding included; a FLOP count is"
        " twice that",
        f"activations: {sum(p.activations for p in products):,} outputs of convolutions and matrix products",
    ]
