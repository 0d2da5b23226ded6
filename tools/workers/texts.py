"""The batches of a race of text classifiers, the same on every side, in plain numpy."""

import numpy as np


def draw(options, multiple=1):
    """(tokens int32[N, T], lengths int32[N], labels int32[N]) of each batch.

    Args:
      options: has "lengths", the number of tokens of each text by batch, and "vocabulary".
      multiple: T is the length of the longest text, rounded up to a multiple of it; 0 pads.
    """
    rng = np.random.default_rng(0)
    for lengths in np.array(options["lengths"], np.int32):
        steps = -(-lengths.max() // multiple) * multiple
        # As in a text, few tokens are frequent and many are rare.
        ranks = np.minimum(rng.zipf(1.2, (len(lengths), steps)), options["vocabulary"] - 1)
        valid = np.arange(steps)[None] < lengths[:, None]
        yield (
            np.where(valid, ranks, 0).astype(np.int32),
            lengths,
            rng.integers(4, size=len(lengths)).astype(np.int32),
        )
