"""What a table or figure consists of: its rows, its comparisons, and what the document reports and concludes."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Network:
    """A row or curve: its names in configs/reproduction.py and in the document, and the document's numbers."""

    run: str
    label: str
    paper: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Effect:
    """A difference between runs, as weights of their results, which add up to 0; see `effects`."""

    label: str
    weights: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Question:
    """Effects that answer a question together.

    Attributes:
      title: stands above their table.
      in_verdict: whether the verdict names them.
    """

    title: str
    effects: tuple[Effect, ...]
    in_verdict: bool = True


IMAGENET, JFT = ("top1", "top5"), ("map100",)
SCALES = {
    "full": "the paper's networks and recipes on ImageNet, and on Open Images in the place of JFT",
    "small": "thin networks of the paper's depth on 8 x 8 pixel digits (1,437 to train on, 360 held out), and on"
    " canvases of several digits in the place of JFT, for 10 and 2 epochs, after which networks without"
    " residual connections have not converged. It can show an effect that is strong on any task; it says nothing"
    " of natural images, of many classes, or of networks a hundred times as large",
    "smoke": "4 steps of shallow networks: that everything runs, and nothing else",
}
SEEDS = {"full": 1, "small": 3, "smoke": 1}


@dataclasses.dataclass(frozen=True)
class Target:
    """A table or figure.

    Attributes:
      title: title of the page, with the number in the paper.
      measures: metrics to report; the first is used for the comparisons.
      networks: the rows or curves.
      claim: what the paper concludes; it says that the first of each pair is better. None: an open question.
      of_convergence: whether the claim is about the speed of convergence too, not only about the end of training.
      note: what else a reader has to know.
      kind: "table", "profile" (the first measure against gradient steps), "spectrum" (the first measure against
        the number of segments), "factors" (the first measure by cell, initial vectors and readout) or "speed".
      comparisons: pairs of runs, (better, worse) by the claim; None = the first network and each other one.
      questions: effects in the place of the comparisons.
      document, examples: what the claim is from, and what it was measured on, in one word each.
      scales: what the runs of each scale are.
      seeds: number of seeds at each scale.
    """

    title: str
    measures: tuple[str, ...]
    networks: tuple[Network, ...]
    claim: str | None
    kind: str
    comparisons: tuple[tuple[str, str], ...] | None = None
    of_convergence: bool = False
    note: str = ""
    questions: tuple[Question, ...] = ()
    document: str = "paper"
    examples: str = "images"
    scales: Mapping[str, str] = dataclasses.field(default_factory=lambda: SCALES)
    seeds: Mapping[str, int] = dataclasses.field(default_factory=lambda: SEEDS)

    @property
    def labels(self) -> dict[str, str]:
        """The label of each run."""
        return {network.run: network.label for network in self.networks}

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The comparisons as pairs of runs."""
        first, *others = (network.run for network in self.networks)
        return self.comparisons or tuple((first, other) for other in others)
