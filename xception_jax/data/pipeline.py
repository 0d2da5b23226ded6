"""Batches of numpy arrays, with grain.

The batch of a step is a function of (seed, step): resuming needs no iterator state, and a global batch, augmented,
is the same array for any number of hosts.
"""

import dataclasses
import signal
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from xception_jax.data.sources import Source
from xception_jax.data.transforms import EvaluationTransform, TrainTransform

Batch = dict[str, np.ndarray]

_EPOCHS = 1_000_000  # grain's endless repetition overflows where a host gets one image of a batch


def train_batches(
    source: Source,
    transform: TrainTransform,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    num_threads: int = 2,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Endless training batches, each epoch in a new order, from `start_step` on; `close()` the iterator after use.

    Args:
      source: the images.
      transform: the augmentation, seeded by (seed, epoch, index).
      batch_size: of all processes together; a multiple of `process_count`.
      seed: of order and augmentation.
      start_step: steps already done.
      num_threads, num_workers: threads in each process that reads, and such processes beside this one.
      process_index, process_count: which of the consecutive shares of each batch to yield.

    Returns:
      Iterator of {"image": uint8[B, H, W, C], "label": int32[B]}, B = batch_size / process_count.
    """
    _check_share(batch_size, process_count)
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat(_EPOCHS).random_map(transform)
    dataset = dataset.batch(batch_size // process_count, batch_fn=_stack)[process_index::process_count]
    dataset = dataset[start_step:].to_iter_dataset(
        grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    )
    if num_workers:
        options = grain.MultiprocessingOptions(num_workers=num_workers)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_ignore_interrupts)
    return iter(dataset)


@dataclasses.dataclass(frozen=True)
class _Padded:
    """A source made longer with copies of its first example, whose mask is 0."""

    source: Source
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        real = index < len(self.source)
        return self.source[index if real else 0] | {"mask": np.float32(real)}


def evaluation_batches(
    source: Source,
    transform: EvaluationTransform,
    *,
    batch_size: int,
    num_threads: int = 2,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every example once, in order; the last batch is padded, and every process gets as many batches.

    Returns:
      Iterator of {"image": uint8[B, H, W, C], "label": int32[B], "mask": float32[B]}, mask 0 on padding,
      B = batch_size / process_count.
    """
    _check_share(batch_size, process_count)
    length = -(-len(source) // batch_size) * batch_size
    dataset = grain.MapDataset.source(_Padded(source, length)).map(transform)
    dataset = dataset.batch(batch_size // process_count, batch_fn=_stack)[process_index::process_count]
    read = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return iter(dataset.to_iter_dataset(read))


def _ignore_interrupts(worker: int, workers: int) -> None:
    """Ctrl-C in a terminal reaches workers too; it is the main process's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _check_share(batch_size: int, process_count: int) -> None:
    if batch_size % process_count:
        raise ValueError(f"batch_size = {batch_size}: must be a multiple of the {process_count} processes")


def _stack(examples: list[dict[str, Any]]) -> Batch:
    batch = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    return batch | {"label": batch["label"].astype(np.int32)}
