"""The page of a table or figure: the document's numbers, ours, their differences, and what these show."""

import statistics
from collections.abc import Sequence

from xception_jax.commands.reproduce import effects, intervals
from xception_jax.commands.reproduce import rows as rows_lib
from xception_jax.commands.reproduce.definitions import JFT, Network, Question, Target
from xception_jax.commands.reproduce.intervals import Difference
from xception_jax.commands.reproduce.rows import Row

NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "map100": "MAP@100",
    "running": "running accuracy",
    "running_108800": "running accuracy after 108,800 texts",
}
DIGITS_2 = ("map100", "running", "running_108800")  # printed with two digits after the point
HELD_OUT = {"images": "one crop of every held-out image", "texts": "every held-out text"}


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
        f"Scale `{scale}`: {target.scales[scale]}{changed}. Seeds: {', '.join(map(str, seeds))}. The"
        f" {rows_lib.reported(rows)} weights are evaluated on {HELD_OUT[target.examples]}."
    )
    compare = _effects if target.questions else _comparisons
    body = [how, target.note, *_table(target, rows, scale), *compare(target, rows)]
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
    """The table of the document's numbers, if it prints any, and ours; and what the differences to them mean."""
    columns = [(measure, side) for measure in target.measures for side in _sides(target, rows, measure)]
    units = {"document": f"{target.document} in %", "here": "here in %", "difference": "difference in points"}
    header = [
        "network",
        "parameters",
        "seeds",
        *(f"{_name(target, measure)} {units[side]}" for measure, side in columns),
    ]
    lines = ["| " + " | ".join(header) + " |", "| --- " + "| ---: " * (len(header) - 1) + "|"]
    for network in target.networks:
        found = [row for row in rows if row["run"] == network.run]
        seeds = {row["seed"] for row in found}
        cells = [network.label, f"{found[0]['parameters']:,}" if found else "", str(len(seeds))]
        cells += [_cells(network, measure, rows)[side] for measure, side in columns]
        lines.append("| " + " | ".join(cells) + " |")
    table = ["\n".join(lines)]
    if any(network.paper for network in target.networks) and (scale != "full" or target.measures == JFT):
        about = f"{target.document} measured on other {target.examples}"
        table.append(f"The {about}, so the differences to its numbers say nothing.")
    return table


def _name(target: Target, measure: str) -> str:
    return "held-out accuracy" if (measure, target.examples) == ("top1", "texts") else NAMES[measure]


def _sides(target: Target, rows: Sequence[Row], measure: str) -> tuple[str, ...]:
    """The columns of a measure."""
    printed = any(measure in network.paper for network in target.networks)
    if not any(row.get(measure) is not None for row in rows):
        return ("document",) if printed else ()
    return ("document", "here", "difference") if printed else ("here",)


def _cells(network: Network, measure: str, rows: Sequence[Row]) -> dict[str, str]:
    """By column: the document's number in percent, ours with its standard deviation over seeds, the difference.

    The last two are empty if the runs do not have the measure.
    """
    paper, values = network.paper.get(measure), list(rows_lib.final(rows, network.run, measure).values())
    printed = "" if paper is None else f"{100 * paper:.{2 if measure in DIGITS_2 else 1}f}"
    if not values:
        return {"document": printed, "here": "failed", "difference": ""}
    if None in values:
        return {"document": printed, "here": "", "difference": ""}
    mean = statistics.fmean(values)
    ours = f"{100 * mean:.2f}" + (f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else "")
    return {
        "document": printed,
        "here": ours,
        "difference": "" if paper is None else f"{100 * (mean - paper):+.2f}",
    }


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
            f"| {labels[better]} against {labels[worse]} | {paper} | {end.in_points()} | {training.in_points()} |"
        )
    return [how, "\n".join(lines)] if found else []


def _effects(target: Target, rows: Sequence[Row]) -> list[str]:
    """A table for each question."""
    how = (
        "Differences in percentage points, paired by seed, each with its 95 % confidence interval (not corrected"
        " for multiple comparisons)."
    )
    return [how, *(_of_question(target, question, rows) for question in target.questions)]


def _of_question(target: Target, question: Question, rows: Sequence[Row]) -> str:
    columns = []  # a name and a cell for each effect
    for measure in target.measures:
        theirs = [effects.printed(effect, target.networks, measure) for effect in question.effects]
        ours = [effects.measured(effect, rows, measure) for effect in question.effects]
        if None not in theirs:
            columns.append((f"{_name(target, measure)}, {target.document}", [f"{100 * x:+.2f}" for x in theirs]))
        if any(ours):
            columns.append((f"{_name(target, measure)}, here", [x.in_points() if x else "" for x in ours]))
    header = ["", *(name for name, _ in columns)]
    lines = ["| " + " | ".join(header) + " |", "| --- " + "| ---: " * len(columns) + "|"]
    for place, effect in enumerate(question.effects):
        lines.append("| " + " | ".join([effect.label, *(cells[place] for _, cells in columns)]) + " |")
    return "\n".join([f"**{question.title}**", "", *lines])


def verdict(target: Target, rows: Sequence[Row], scale: str) -> str:
    """What these runs say about the document's claim; the words follow from the intervals."""
    if scale == "smoke":
        return "A smoke test: the numbers mean nothing."
    document = target.document
    claim = f"An open question of the {document}." if target.claim is None else f"The {document}: {target.claim}"
    said = _about_questions(target, rows) if target.questions else _about_pairs(target, rows)
    there = {row["run"] for row in rows}
    if missing := [label for run, label in target.labels.items() if run not in there]:
        said.append(f"Not trained: {', '.join(missing)}.")
    return " ".join([claim, *said])


def _about_pairs(target: Target, rows: Sequence[Row]) -> list[str]:
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
    return said


def _judge(difference: Difference, claimed: bool) -> str:
    if difference.low is None:
        return "undecided with one seed against"
    if difference.sign == 0:
        return "no significant difference to"
    better = "better" if difference.sign > 0 else "worse"
    if not claimed:
        return f"{better} than"
    return f"{better}, {'as' if difference.sign > 0 else 'contrary to what'} the paper says, than"


def _about_questions(target: Target, rows: Sequence[Row]) -> list[str]:
    """A sentence for each question, on the first measure; the document's claim is about the first effect."""
    measure, said = target.measures[0], []
    claimed = target.questions[0].effects[0]
    for question in (question for question in target.questions if question.in_verdict):
        judged: dict[str, list[str]] = {}
        for effect in question.effects:
            if (difference := effects.measured(effect, rows, measure)) is not None:
                words = {1: "better", 0: "no significant difference", -1: "worse"}[difference.sign]
                if effect is claimed and difference.sign:
                    words += f", {'as' if difference.sign > 0 else 'contrary to what'} the {target.document} says"
                if difference.low is None:
                    words = "undecided with one seed"
                judged.setdefault(words, []).append(f"{effect.label} {difference.in_points()}")
        if judged:
            text = "; ".join(f"{words}: {', '.join(found)}" for words, found in judged.items())
            said.append(f"{question.title}, {_name(target, measure)} in points: {text}.")
    return said
