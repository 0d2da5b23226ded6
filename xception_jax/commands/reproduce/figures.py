"""Plots of rows: training profiles as in the paper's figures 6-10, accuracies, the spectrum, speed."""

import itertools
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xception_jax.commands.reproduce import intervals
from xception_jax.commands.reproduce import rows as rows_lib
from xception_jax.commands.reproduce.rows import Row

AXES = {
    "top1": "validation accuracy, top-1 in %",
    "top5": "validation accuracy, top-5 in %",
    "map100": "MAP@100 in %",
}
COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")


def profiles(rows: Sequence[Row], labels: Mapping[str, str], measure: str) -> Figure:
    """Plots the measure against gradient steps as in figures 6-10: the mean over seeds, and thin lines for seeds.

    Args:
      rows: from `rows.read` or `rows.of_workdir`.
      labels: run -> its name in the legend, in the order of the legend.
      measure: "top1", "top5" or "map100".
    """
    figure, axes = _new(measure)
    for color, (run, label) in zip(itertools.cycle(COLORS), labels.items(), strict=False):
        curves = list(rows_lib.evaluations(rows, run).values())
        if not curves:
            continue
        steps = [[point["step"] for point in points] for points in curves]
        values = [[100 * point[measure] for point in points] for points in curves]
        for x, y in zip(steps, values, strict=True):
            axes.plot(x, y, color=color, alpha=0.3, linewidth=0.8)
        mean = [statistics.fmean(column) for column in zip(*values, strict=False)]  # as far as the shortest
        seeds = f"{len(curves)} seed" + "s" * (len(curves) > 1)
        axes.plot(min(steps, key=len), mean, color=color, linewidth=2, label=f"{label}, {seeds}")
    axes.set_xlabel("gradient descent steps")
    axes.legend()
    return figure


def accuracies(rows: Sequence[Row], labels: Mapping[str, str], measure: str) -> Figure:
    """Plots the measure at the end of training: for each run a row of points (seeds) and their mean as a bar."""
    figure, axes = _new(None)
    for place, run in enumerate(reversed(labels)):
        values = [100 * value for value in rows_lib.final(rows, run, measure).values()]
        if values:
            axes.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.6)
            axes.plot([statistics.fmean(values)] * 2, [place - 0.25, place + 0.25], color="black")
    axes.set_yticks(range(len(labels)), list(reversed(labels.values())))
    axes.set_ylim(-0.5, len(labels) - 0.5)
    axes.set_xlabel(AXES[measure])
    return figure


def spectrum(rows: Sequence[Row], labels: Mapping[str, str], measure: str) -> Figure:
    """Plots the measure against the number of segments, from a regular to a separable convolution."""
    figure, axes = _new(measure)
    order = sorted(labels, key=_segments)
    kinds = ((rows_lib.final, "o-", "at the end"), (rows_lib.over_training, "s--", "mean over training"))
    for color, (measured, marker, what) in zip(COLORS, kinds, strict=False):
        found = {place: list(measured(rows, run, measure).values()) for place, run in enumerate(order)}
        found = {place: 100 * np.array(values) for place, values in found.items() if values}
        axes.plot(list(found), [values.mean() for values in found.values()], marker, color=color, label=what)
        for place, values in found.items():
            axes.plot([place] * len(values), values, ".", color=color, alpha=0.4)
    axes.set_xticks(
        range(len(order)), ["1 a channel" if s == np.inf else f"{s:.0f}" for s in map(_segments, order)]
    )
    axes.set_xlabel("segments of the spatial convolutions, at equal parameters")
    axes.legend()
    return figure


def factors(rows: Sequence[Row], labels: Mapping[str, str], measure: str) -> Figure:
    """Plots the measure at the end of training by readout: means with 95 % intervals, and small dots for seeds.

    A run is called CELL_VECTORS_READOUT, and its label begins with these three; other runs stand to the right.
    """
    figure, axes = _new(measure)
    parts = {  # (cell and vectors, or "", and the place on the axis)
        run: tuple(run.rsplit("_", 1)) if run.count("_") == 2 else ("", label.rpartition(", ")[2])
        for run, label in labels.items()
    }
    ticks = list(dict.fromkeys(tick for _, tick in parts.values()))
    groups = list(dict.fromkeys(group for group, _ in parts.values() if group))
    named = set()
    for run, label in labels.items():
        values = [100 * value for value in rows_lib.final(rows, run, measure).values()]
        if not values:
            continue
        group, tick = parts[run]
        place, color = float(ticks.index(tick)), "black"
        if group:
            place += 0.15 * (groups.index(group) - (len(groups) - 1) / 2)
            color = COLORS[groups.index(group)]
        name = ", ".join(label.split(", ")[:-1]) if group and group not in named else None
        named.add(group)
        mean = intervals.paired_difference(values, [0.0] * len(values))
        half = 0.0 if mean.low is None else mean.mean - mean.low
        axes.plot([place - 0.05] * len(values), values, ".", color=color, alpha=0.4, markersize=4)
        axes.errorbar(place, mean.mean, half, fmt="o", capsize=3, color=color, label=name)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlabel("readout, and in black LSTMPackClassifier with one change")
    axes.legend()
    return figure


FIGURES = {
    "table": accuracies,
    "profile": profiles,
    "spectrum": spectrum,
    "factors": factors,
}  # by the kind of target


def steps_per_second(rows: Sequence[Row], labels: Mapping[str, str]) -> Figure:
    """Plots the steps per second of every round, one line for each network."""
    figure, axes = _new(None)
    for color, (run, label) in zip(COLORS, labels.items(), strict=False):
        rates = [1 / row["seconds"] for row in rows if row["run"] == run]
        axes.plot(range(1, len(rates) + 1), rates, "o-", color=color, label=label)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("round")
    axes.set_ylabel("training steps / second")
    axes.legend()
    return figure


def _new(measure: str | None) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    if measure is not None:
        axes.set_ylabel(AXES[measure])
    return figure, axes


def _segments(run: str) -> float:
    """The number of segments of a run called segments_N; other runs have one segment per channel."""
    return float(run.removeprefix("segments_")) if run.startswith("segments_") else float("inf")
