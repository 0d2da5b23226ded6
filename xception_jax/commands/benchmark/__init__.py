"""Measures speed: whole steps, single layers, and preparing images."""

import argparse

from xception_jax.commands.benchmark import data, op, step, table

BENCHMARKS = {"step": step, "op": op, "data": data, "table": table}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the benchmarks and their flags."""
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    for name, module in BENCHMARKS.items():
        module.add_arguments(benchmarks.add_parser(name, help=module.__doc__, description=module.__doc__))


def run(arguments: argparse.Namespace) -> None:
    """Runs the benchmark that was asked for."""
    BENCHMARKS[arguments.benchmark].run(arguments)
