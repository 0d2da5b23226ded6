"""Table 3: sizes and training steps per second of both networks, whose steps alternate on this device."""

import statistics
from collections.abc import Mapping

from xception_jax import state
from xception_jax.commands import device
from xception_jax.commands.reproduce.rows import Row
from xception_jax.commands.steps import Step, Workload

COLUMNS = ("run", "round", "seconds", "batch", "image_size", "dtype", "device", "cpu", "cores", "busy", "commit")
PAPER = {"inception_v3": (23_626_728, 31), "xception": (22_855_952, 28)}  # parameters, steps a second on 60 K80
SETTINGS = {"inception_v3": {"reading": "paper"}, "xception": {}}  # the readings that table 3 counts
SMOKE = {"inception_v3": {"modules": (1, 1, 1), "width": 0.1}, "xception": {"middle_blocks": 1}}
# Scale -> batch, pixels, type, rounds.
WORK = {"full": (32, 299, "bfloat16", 20), "small": (8, 299, "float32", 8), "smoke": (2, 96, "float32", 2)}


def workload(run: str, scale: str) -> Workload:
    """A training step of the network with 1,000 classes."""
    batch, size, dtype, _ = WORK[scale]
    settings = SETTINGS[run] | (SMOKE[run] if scale == "smoke" else {})
    return Workload(model=run, batch=batch, image_size=size, dtype=dtype, settings=settings)


def size(run: str) -> tuple[int, int]:
    """The parameters of the paper's network, whatever the scale: trained ones, which the paper and Keras in 2016
    count, and with the moving statistics of batch normalization, as Keras counts today.
    """
    _, params, model_state = state.split(workload(run, "full").abstract_model())
    return state.count(params), state.count(params) + state.count(model_state)


def measure(scale: str) -> list[Row]:
    """Rows of COLUMNS with the seconds of training steps: one step of each network in turn."""
    steps = {run: Step(workload(run, scale), "train") for run in PAPER}
    batch, image_size, dtype, rounds = WORK[scale]
    measured = [(run, number, step()) for number in range(rounds) for run, step in steps.items()]
    busy = device.busy_share()
    fixed = {"batch": batch, "image_size": image_size, "dtype": dtype, **device.facts()}
    fixed |= {"busy": "" if busy is None else f"{busy:.2f}", "commit": device.commit()}
    return [{"run": run, "round": number, "seconds": seconds, **fixed} for run, number, seconds in measured]


def ratios(rows: list[Row]) -> list[float]:
    """Xception's steps per second divided by those of Inception V3, for each round."""
    seconds = {run: [row["seconds"] for row in rows if row["run"] == run] for run in PAPER}
    return [theirs / ours for ours, theirs in zip(seconds["xception"], seconds["inception_v3"], strict=True)]


def table(rows: list[Row], labels: Mapping[str, str]) -> list[str]:
    """The paragraphs and the table of the page in Markdown; `labels` maps runs to their names."""
    lines = [
        "| | parameters, paper | here, trained | with moving statistics | steps/second, paper (60 K80) | here |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for run, (parameters, steps) in PAPER.items():
        seconds = statistics.median(row["seconds"] for row in rows if row["run"] == run)
        counts = " | ".join(f"{count:,}" for count in (parameters, *size(run)))
        lines.append(f"| {labels[run]} | {counts} | {steps} | {1 / seconds:.3g} |")
    found, first = sorted(ratios(rows)), rows[0]
    return [
        "\n".join(lines),
        f"Xception makes {statistics.median(found):.3f} times the steps of Inception V3 (from {found[0]:.3f} to"
        f" {found[-1]:.3f} in {len(found)} rounds; paper: 28 / 31 = 0.903).",
        f"Measured with {first['batch']} images of {first['image_size']} pixels, {first['dtype']}, on"
        f" {first['cpu'] or first['device']}, {first['cores']} cores, of whose time other programs took"
        f" {float(first['busy'] or 0):.0%}: one training step of each network in turn. The trained parameters are"
        " what Keras counted in 2016 and table 3 has. The paper does not say whether the Inception V3 it timed is"
        " the one it counted.",
    ]


def verdict(rows: list[Row], claim: str, scale: str) -> str:
    """Compares the measurement with the paper's claim."""
    if scale == "smoke":
        return "A smoke test of shallow networks: the times mean nothing, the parameters are the whole networks'."
    (ours, _), (theirs, _), found = size("xception"), size("inception_v3"), ratios(rows)
    smaller, slower = 1 - ours / theirs, sum(ratio < 1 for ratio in found)
    return (
        f"The paper: {claim} Here: Xception has {100 * smaller:.2f} % fewer parameters, and is slower in {slower}"
        f" of {len(found)} rounds."
    )
