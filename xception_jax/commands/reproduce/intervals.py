"""Differences between two networks, paired by seed."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

from scipy import stats

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Difference:
    """A mean of paired differences and the ends of its confidence interval, None for a single pair."""

    mean: float
    low: float | None
    high: float | None
    pairs: int

    @property
    def sign(self) -> int:
        """1 or -1 if the interval does not contain 0, else 0."""
        if self.low is None or self.low <= 0 <= self.high:
            return 0
        return 1 if self.mean > 0 else -1

    def in_points(self) -> str:
        """The difference between two shares, in percentage points.

        >>> Difference(0.1, 0.05, 0.15, pairs=3).in_points()
        '+10.00 (+5.00 to +15.00)'
        """
        text = f"{100 * self.mean:+.2f}"
        if self.low is None:
            return f"{text} (one seed)"
        return f"{text} ({100 * self.low:+.2f} to {100 * self.high:+.2f})"


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """The mean of ours - theirs over the same seeds, with the 95 % confidence interval of Student's t-test.

    >>> paired_difference([3.0, 4.0, 5.0], [1.0, 3.0, 2.0])  # doctest: +ELLIPSIS
    Difference(mean=2.0, low=-0.48413..., high=4.48413..., pairs=3)
    """
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean, n = statistics.fmean(differences), len(differences)
    if n < 2:
        return Difference(mean, None, None, n)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * statistics.stdev(differences) / math.sqrt(n)
    return Difference(mean, mean - float(half), mean + float(half), n)
