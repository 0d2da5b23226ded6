"""The page of a table or figure: the paper's numbers, ours, their differences, and what these show."""

import statistics
from collections.abc import Sequence

from xception_jax.commands.reproduce import intervals
from xception_jax.commands.reproduce import rows as rows_lib
from xception_jax.commands.reproduce.intervals import Difference
from xception_jax.commands.reproduce.rows import Row
from xception_jax.commands.reproduce.targets import JFT, SCALES, Network, Target

NAMES = {"top1": "top-1", "top5": "top-5", "map100": "MAP@100"}


def write(target: Target, rows: Sequence[Row], *, scale: str, settings: Sequence[str], **about: str) -> str:
    """The page of trained networks in Markdown.

    Args:
      rows: results of the runs.
      settings: "--config.KEY=VALUE", by which the recipes differ from those of the scale.
      **about: see `assemble`.
    """
    seeds = sorted({row["seed"] for row in rows})
    changed = f", changed by `{' '.join(settings)}`" if settings else ""
    how = (
        f"Scale `{scale}`: {SCALES[scale]}{changed}. Seeds: {', '.join(map(str, seeds))}. The"
        " averaged weights are evaluated on one crop of every held-out image."
    )
    body = [how, target.note, *_table(target, rows, scale), *_comparisons(target, rows)]
    return assemble(target, body, verdict(target, rows, scale), **about)


def assemble(target: Target, body: Sequence[str], verdict: str, *, command: str, written: str, plot: str) -> str:
    """A page in Markdown.

    Args:
      body: paragraphs and tables; empty ones are left out.
      command: the command that makes the page.
      written: the commit and the device that it was made with.
      plot: file name of the plot.
    """
    parts = [f"# {target.title}", f"    {command}", *body, f"![{target.title}]({plot})"]
    parts += [f"**Verdict.** {verdict}", f"Written {written}."]
    return "\n\n".join(filter(None, parts)) + "\n"


def _table(target: Target, rows: Sequence[Row], scale: str) -> list[str]:
    """The table of the paper's numbers, if it prints any, and ours; and what the difference between them means."""
    printed = any(network.paper for network in target.networks)
    sides = ("paper in %", "here in %", "difference in points") if printed else ("here in %",)
    header = ["network", "parameters", "seeds"]
    header += [f"{NAMES[measure]} {side}" for measure in target.measures for side in sides]
    lines = ["| " + " | ".join(header) + " |", "| --- " + "| ---: " * (len(header) - 1) + "|"]
    for network in target.networks:
        found = [row for row in rows if row["run"] == network.run]
        seeds = {row["seed"] for row in found}
        cells = [network.label, f"{found[0]['parameters']:,}" if found else "", str(len(seeds))]
        for measure in target.measures:
            values = _cells(network, measure, rows)
            cells += values if printed else values[1:2]
        lines.append("| " + " | ".join(cells) + " |")
    table = ["\n".join(lines)]
    if printed and (scale != "full" or target.measures == JFT):
        table.append("The paper measured on other images, so the differences to its numbers say nothing.")
    return table


def _cells(network: Network, measure: str, rows: Sequence[Row]) -> tuple[str, str, str]:
    """(the paper's number, ours with its standard deviation over seeds, the difference) in percent."""
    paper, values = network.paper.get(measure), list(rows_lib.final(rows, network.run, measure).values())
    printed = "" if paper is None else f"{100 * paper:.{2 if measure == 'map100' else 1}f}"
    if not values:
        return printed, "failed", ""
    mean = statistics.fmean(values)
    ours = f"{100 * mean:.2f}" + (f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else "")
    return printed, ours, "" if paper is None else f"{100 * (mean - paper):+.2f}"


def differences(target: Target, rows: Sequence[Row]) -> dict[tuple[str, str], tuple[Difference, Difference]]:
    """The differences (at the end, over training) of the first measure for each pair of runs with common seeds."""
    found = {}
    for pair in target.pairs:
        both = []
        for measured in (rows_lib.final, rows_lib.over_training):
            ours, theirs = (measured(rows, run, target.measures[0]) for run in pair)
            seeds = sorted(ours.keys() & theirs.keys())
            if seeds:
                both.append(intervals.paired_difference([ours[s] for s in seeds], [theirs[s] for s in seeds]))
        if both:
            found[pair] = tuple(both)
    return found


def _comparisons(target: Target, rows: Sequence[Row]) -> list[str]:
    labels = target.labels
    papers = {network.run: network.paper.get(target.measures[0]) for network in target.networks}
    name = NAMES[target.measures[0]]
    how = (
        f"Differences in {name}, in percentage points, paired by seed, each with its 95 % confidence interval (not"
        ' corrected for multiple comparisons). "Over training" compares the means of all evaluations, which are'
        " higher for a network that converges faster or to a higher value."
    )
    lines = ["| | paper | here, at the end | here, over training |", "| --- | ---: | ---: | ---: |"]
    found = differences(target, rows)
    for (better, worse), (end, training) in found.items():
        paper = "" if None in (papers[better], papers[worse]) else f"{100 * (papers[better] - papers[worse]):+.2f}"
        lines.append(
            f"| {labels[better]} against {labels[worse]} | {paper} | {_interval(end)} | {_interval(training)} |"
        )
    return [how, "\n".join(lines)] if found else []


def _interval(difference: Difference) -> str:
    text = f"{100 * difference.mean:+.2f}"
    if difference.low is None:
        return f"{text} (one seed)"
    return f"{text} ({100 * difference.low:+.2f} to {100 * difference.high:+.2f})"


def verdict(target: Target, rows: Sequence[Row], scale: str) -> str:
    """What these runs say about the paper's claim; the words follow from the intervals."""
    if scale == "smoke":
        return "A smoke test: the numbers mean nothing."
    claim = "An open question of the paper." if target.claim is None else f"The paper: {target.claim}"
    labels, found, said = target.labels, differences(target, rows), []
    for first in dict.fromkeys(better for better, _ in found):
        for moment, name in enumerate(("at the end", "over training")):
            judged: dict[str, list[str]] = {}
            for (better, worse), difference in found.items():
                if better == first:
                    claimed = target.claim is not None and (moment == 0 or target.of_convergence)
                    judged.setdefault(_judge(difference[moment], claimed), []).append(labels[worse])
            text = "; ".join(f"{judgment} {', '.join(others)}" for judgment, others in judged.items())
            said.append(f"{labels[first][0].upper()}{labels[first][1:]}, {name}: {text}.")
    there = {row["run"] for row in rows}
    if missing := [label for run, label in labels.items() if run not in there]:
        said.append(f"Not trained: {', '.join(missing)}.")
    return " ".join([claim, *said])


def _judge(difference: Difference, claimed: bool) -> str:
    if difference.low is None:
        return "undecided with one seed against"
    if difference.sign == 0:
        return "no significant difference to"
    better = "better" if difference.sign > 0 else "worse"
    if not claimed:
        return f"{better} than"
    return f"{better}, {'as' if difference.sign > 0 else 'contrary to what'} the paper says, than"
