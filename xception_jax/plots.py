"""Figures of a run."""

import pathlib

from matplotlib.figure import Figure


def training_profile(rows: list[dict], target: pathlib.Path) -> Figure:
    """Draws loss and top-1 against gradient steps, as figures 6-10 of Chollet 2017, into a PNG file.

    Args:
      rows: of a metrics.jsonl, from `writers.read_jsonl`.
      target: the file.

    Raises:
      OSError: if `target` cannot be written.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = {"loss": (1, "cross-entropy in nats"), "top1": (100, "top-1 accuracy in %")}
    styles = {
        "train": ("training, mean since last point", "0.6", ".-"),
        "raw": ("held out, raw weights", "tab:orange", "o-"),
        "averaged": ("held out, averaged weights", "tab:blue", "s-"),
    }
    for axes, (name, (scale, label)) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for kind, (legend, color, style) in styles.items():
            points = [(row["step"], scale * row[name]) for row in rows if row["kind"] == kind]
            if points:
                axes.plot(*zip(*points, strict=True), style, color=color, label=legend, markersize=4)
        axes.set_xlabel("gradient steps")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(target, dpi=120)
    return figure
