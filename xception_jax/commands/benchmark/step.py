"""Times a whole training step and inference, and says how near they come to what the device can do."""

import argparse
import os
import statistics

from xception_jax.commands.benchmark import count, device, profiler, records, versus, workload
from xception_jax.errors import UserError
from xception_jax.run import memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    workload.add_arguments(parser, rounds=10)
    parser.add_argument(
        "--mode", choices=(*workload.MODES, "both"), default="both", help="train, inference or both (default)"
    )
    parser.add_argument(
        "--profile", action="store_true", help="show where the time goes, by kind of op and by layer"
    )
    versus.add_arguments(parser)
    records.add_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measures each mode, prints it, and adds its row to the file."""
    if arguments.against:
        if arguments.profile:
            raise UserError("--profile: shows this package only; leave --against away")
        # JAX takes most of a GPU's memory otherwise: here, and in each of the processes that share it.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    memory.keep_freed_memory()  # as in training
    records.check(arguments.csv)
    work = workload.from_arguments(arguments)
    modes = workload.MODES if arguments.mode == "both" else (arguments.mode,)
    print(f"{work}, on {device.describe()}", flush=True)
    if arguments.against:
        versus.run(arguments, work, modes)
    else:
        _run_alone(arguments, work, modes)
    print(f"added to {arguments.csv}")


def _run_alone(arguments: argparse.Namespace, work: workload.Workload, modes: tuple[str, ...]) -> None:
    peak = device.measure_peak(work.dtype)
    print(f"the most this device did: {_rate(peak.flops, 'FLOP')} in a large matrix product, ", end="")
    print(f"{_rate(peak.bytes, 'B')} in a large copy", flush=True)
    macs = work.batch * count.macs(workload.forward_jaxpr(work))
    for mode in modes:
        step = workload.Step(work, mode)
        row = measure(work, step, mode, macs=macs, peak=peak, rounds=arguments.rounds)
        records.append(arguments.csv, [row | device.environment()])
        print(describe(row), flush=True)
        if arguments.profile:
            print(profiler.report(profiler.profile(step, step.compiled.as_text())), flush=True)


def measure(
    work: workload.Workload, step: workload.Step, mode: str, *, macs: int, peak: device.Peak, rounds: int
) -> records.Row:
    """Runs the step and fills its row.

    Args:
      macs: multiply-accumulates of the batch's forward pass. A FLOP is a multiplication or an addition of a
        matrix product or convolution, so inference has 2 macs of them. Training counts as three times that:
        the gradients of a product's two factors are two products of the same size. Only these count as model
        FLOPs, whatever an implementation really computes.
      peak: what the roofline is drawn from. Its bytes are those XLA says the compiled step reads and writes
        (a loop's body counts once). Caches can be faster than the copy, which is larger than they are.
    """
    for _ in range(workload.WARM_UP):
        step()
    handed_over, seconds = zip(*(step() for _ in range(rounds)), strict=True)
    median = statistics.median(seconds)
    dispatch = statistics.median(handed_over)
    flops = 2 * macs * (3 if mode == "train" else 1)
    moved = (step.compiled.cost_analysis() or {}).get("bytes accessed", 0.0)
    limits = {"arithmetic": flops / peak.flops, "memory traffic": moved / peak.bytes}  # seconds at the peak
    bound = max(limits, key=limits.get)
    memory = step.compiled.memory_analysis()
    return {
        **work.columns,
        "benchmark": "step",
        "mode": mode,
        **records.seconds_columns(seconds),
        "setup_seconds": step.compile_seconds,
        # A call that takes as long as the step itself does not hand it over but computes it.
        "dispatch_seconds": dispatch if dispatch < median / 2 else "",
        "images_per_second": work.batch / median,
        "flops_per_second": flops / median,
        "bytes_per_second": moved / median,
        "peak_flops": peak.flops,
        "peak_bytes": peak.bytes,
        "roofline_share": limits[bound] / median,
        "bound": bound,
        "temporary_bytes": memory.temp_size_in_bytes if memory else "",
    }


def describe(row: records.Row) -> str:
    """A row for people."""
    arithmetic = f"{_rate(row['flops_per_second'], 'FLOP')}, {row['flops_per_second'] / row['peak_flops']:.0%}"
    traffic = f"{_rate(row['bytes_per_second'], 'B')}, {row['bytes_per_second'] / row['peak_bytes']:.0%}"
    lines = [
        f"{row['mode']}: {records.milliseconds(row)} a step, {row['images_per_second']:.3g} images/s; "
        f"compiled in {row['setup_seconds']:.1f} s",
        f"arithmetic of the model: {arithmetic} of the large matrix product's",
        f"memory traffic: {traffic} of the large copy's",
        f"roofline: {row['roofline_share']:.0%} of the speed that {row['bound']} allows",
    ]
    if row["temporary_bytes"] != "":
        lines.append(f"temporary memory: {row['temporary_bytes'] / 1e6:,.0f} MB")
    if row["dispatch_seconds"] != "":
        lines.append(f"the call returns after {1000 * row['dispatch_seconds']:.1f} ms, before the step is done")
    return "\n  ".join(lines)


def _rate(value: float, unit: str) -> str:
    return f"{value / 1e12:.3g} T{unit}/s" if value > 1e12 else f"{value / 1e9:.3g} G{unit}/s"
