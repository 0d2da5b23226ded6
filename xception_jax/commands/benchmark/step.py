"""Times a whole training step and inference, and counts what they compute and move."""

import argparse
import pathlib

import jax

from xception_jax.commands import device, steps, summary, traffic
from xception_jax.commands.benchmark import rows
from xception_jax.run import memory

MODES = {mode: (mode,) for mode in steps.MODES} | {"both": steps.MODES}
TRACED_STEPS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    steps.add_arguments(parser, rounds=10)
    add_mode_argument(parser)
    about = f"write a trace of {TRACED_STEPS} steps to this folder, which XProf and Perfetto open"
    parser.add_argument("--profile", type=pathlib.Path, metavar="DIR", help=about)
    rows.add_argument(parser)


def add_mode_argument(parser: argparse.ArgumentParser) -> None:
    """Declares --mode, a key of `MODES`."""
    parser.add_argument("--mode", choices=MODES, default="both", help="what to measure (default: both)")


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints and records each mode."""
    memory.keep_freed_memory()  # as in training
    rows.check(arguments.csv)
    work = steps.from_arguments(arguments)
    print(f"{work.name}, {work.batch} x {work.inputs}, on {device.describe()}", flush=True)
    for mode in MODES[arguments.mode]:
        step = steps.Step(work, mode)
        seconds = [step() for _ in range(arguments.rounds)]
        row = rows.make(mode, work.name, work.inputs, images=work.batch, seconds=seconds)
        rows.append(arguments.csv, [row])
        speed = f"{rows.milliseconds(row)} a step, {row['images'] / row['seconds']:.3g} images/s"
        line = f"{mode}: {speed}; compiled in {step.compile_seconds:.1f} s"
        print("\n  ".join([line, *counts(work, mode, step)]), flush=True)
        if arguments.profile is not None:
            trace(step, arguments.profile / mode)
    print(f"added to {arguments.csv}")


def counts(work: steps.Workload, mode: str, step: steps.Step) -> list[str]:
    """What the model needs, and what XLA says of the compiled step, a line each.

    The model's FLOP are 2 for each multiply-add of its forward pass, and in training three times as many: the
    gradients of the two factors of a product are two products of the same size.
    """
    macs = work.batch * summary.macs(work.forward_jaxpr())
    costs = step.compiled.cost_analysis() or {}
    lines = [
        f"arithmetic: {2 * macs * (3 if mode == 'train' else 1) / 1e9:,.4g} GFLOP of the model;"
        f" XLA counts {costs.get('flops', 0) / 1e9:,.4g} GFLOP in the compiled step (loops once)",
        f"memory traffic: {traffic.count(step.compiled.as_text()) / 1e9:,.4g} GB read and written;"
        f" XLA counts {costs.get('bytes accessed', 0) / 1e9:,.4g} GB (loops once)",
    ]
    if memory_use := step.compiled.memory_analysis():
        lines.append(f"temporary memory: {memory_use.temp_size_in_bytes / 1e6:,.0f} MB")
    return lines


def trace(step: steps.Step, folder: pathlib.Path) -> None:
    """Writes a trace of a few steps."""
    with jax.profiler.trace(str(folder)):
        for _ in range(TRACED_STEPS):
            step()
    print(f"  trace of {TRACED_STEPS} steps in {folder}: open it with XProf, or *.trace.json.gz in Perfetto")
