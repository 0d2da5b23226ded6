"""Times the implementations of the depthwise convolution against XLA's, at the shapes of Xception."""

import argparse
import csv
import itertools
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from xception_jax import ops

# Height = width and channels of the depthwise convolutions at 299 px.
SHAPES = ((147, 64), (147, 128), (74, 256), (37, 728), (19, 728), (10, 1024), (10, 1536))
COLUMNS = (
    "device",
    "jax",
    "dtype",
    "batch",
    "size",
    "channels",
    "pass",
    "implementation",
    "ms",
    "xla_ms",
    "ratio",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    parser.add_argument("--batch_size", type=int, default=4, help="images (default: 4)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--rounds", type=int, default=5, help="calls of each, in turn; the median counts (default: 5)"
    )
    parser.add_argument("--csv", type=pathlib.Path, help="file to write the table to")


def run(arguments: argparse.Namespace) -> None:
    """Prints milliseconds and the ratio XLA / implementation (above 1: faster than XLA) for shapes and passes."""
    rows = [
        row
        for (size, channels), with_gradient in itertools.product(SHAPES, (False, True))
        for row in _compare(arguments, size, channels, with_gradient)
    ]
    if arguments.csv is not None:
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        with arguments.csv.open("w", newline="") as file:
            print(f"# python -m xception_jax {' '.join(sys.argv[1:])}", file=file)
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


def _compare(arguments: argparse.Namespace, size: int, channels: int, with_gradient: bool) -> list[dict]:
    """Rows for one shape, printed as they come."""
    dtype = jnp.dtype(arguments.dtype)
    x = jax.random.normal(jax.random.key(0), (arguments.batch_size, size, size, channels), dtype)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 1, channels), dtype)
    calls = {name: _compiled(name, with_gradient, x, kernel) for name in ops.IMPLEMENTATIONS}
    times = {name: [] for name in calls}
    for _ in range(arguments.rounds):  # in turn, so that what else the machine does meets all of them
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call(x, kernel))
            times[name].append(1000 * (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in times.items()}
    rows = []
    for name, ms in medians.items():
        shown = (
            "forward + backward" if with_gradient else "forward",
            name,
            ms,
            medians["xla"],
            medians["xla"] / ms,
        )
        fixed = (
            jax.devices()[0].device_kind,
            jax.__version__,
            arguments.dtype,
            arguments.batch_size,
            size,
            channels,
        )
        rows.append(dict(zip(COLUMNS, fixed + shown, strict=True)))
        print(
            f"{size:4} x {size:<4} x {channels:<5} {shown[0]:<19} {name:<6} {ms:9.2f} ms {shown[4]:7.2f}",
            flush=True,
        )
    return rows


def _compiled(name: str, with_gradient: bool, x: jax.Array, kernel: jax.Array) -> Callable:
    def forward(x, kernel):
        return ops.depthwise_conv(x, kernel, implementation=name)

    def both(x, kernel):
        y, pullback = jax.vjp(forward, x, kernel)
        return pullback(y)

    return jax.jit(both if with_gradient else forward).lower(x, kernel).compile()
