"""Figures of a run."""

import pathlib

from matplotlib.figure import Figure


def training_profile(rows: list[dict], target: pathlib.Path) -> Figure:
    """Draws loss, top-1 and, of several labels, MAP@100 against gradient steps into a PNG file.

    Figures 6-10 of Chollet 2017 are such profiles.

    Args:
      rows: of a metrics.jsonl, from `writers.read_jsonl`.
      target: the file.

    Raises:
      OSError: if `target` cannot be written.
    """
    panels = {"loss": (1, "cross-entropy in nats"), "top1": (100, "top-1 accuracy in %")}
    if any("map100" in row for row in rows):
        panels["map100"] = (100, "MAP@100 in %")
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    styles = {
        "train": ("training, mean since last point", "0.6", ".-"),
        "raw": ("held out, raw weights", "tab:orange", "o-"),
        "averaged": ("held out, averaged weights", "tab:blue", "s-"),
    }
    for axes, (name, (scale, label)) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for kind, (legend, color, style) in styles.items():
            points = [(row["step"], scale * row[name]) for row in rows if row["kind"] == kind and name in row]
            if points:
                axes.plot(*zip(*points, strict=True), style, color=color, label=legend, markersize=4)
        axes.set_xlabel("gradient steps")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.axes[1].legend()
    figure.savefig(target, dpi=120)
    return figure
