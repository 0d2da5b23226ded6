"""Differences between several runs, such as the share of one change in a difference, paired by seed."""

from collections.abc import Sequence

from xception_jax.commands.reproduce import intervals
from xception_jax.commands.reproduce import rows as rows_lib
from xception_jax.commands.reproduce.definitions import Effect, Network
from xception_jax.commands.reproduce.intervals import Difference
from xception_jax.commands.reproduce.rows import Row


def measured(effect: Effect, rows: Sequence[Row], measure: str) -> Difference | None:
    """An effect on a measure at the end of training; None if its runs have no seed with the measure in common."""
    values = {run: rows_lib.final(rows, run, measure) for run in effect.weights}
    seeds = [s for s in next(iter(values.values())) if all(found.get(s) is not None for found in values.values())]
    if not seeds:
        return None
    sums = [sum(weight * values[run][seed] for run, weight in effect.weights.items()) for seed in seeds]
    return intervals.paired_difference(sums, [0.0] * len(seeds))


def printed(effect: Effect, networks: Sequence[Network], measure: str) -> float | None:
    """An effect on the numbers that the document prints; None if it does not print all of them."""
    numbers = {network.run: network.paper.get(measure) for network in networks}
    if any(numbers[run] is None for run in effect.weights):
        return None
    return sum(weight * numbers[run] for run, weight in effect.weights.items())
