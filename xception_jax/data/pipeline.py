"""Batches of numpy arrays, with grain.

The batch of a step is a function of (seed, step): resuming needs no iterator state, and a global batch, augmented,
is the same array for any number of hosts, worker processes and threads.
"""

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from xception_jax.data.dataset import Source
from xception_jax.data.images import decoding
from xception_jax.data.images.transforms import EvaluationTransform, TrainTransform

Batch = dict[str, np.ndarray]

_EPOCHS = 1_000_000  # grain's endless repetition overflows where a host gets one image of a batch
_ATTEMPTS = 10  # images that may be unreadable, each far from the others, before it is the disk that is to blame
_STRIDE = 7919  # from an unreadable image to its substitute: its neighbors may have failed together


@dataclasses.dataclass(frozen=True)
class Reader:
    """A source whose images are decoded, and whose labels are arrays.

    Attributes:
      source: the images; those that are bytes get decoded.
      classes: number of classes, if an image has several labels: these become uint8[classes] of 0 and 1.
      orientation: turn pictures the way the camera was held, as their EXIF record says.
      substitute: give another image for one that cannot be read, whose index is then in "unreadable"
        (otherwise -1); False = raise `decoding.UnreadableImage`.
    """

    source: Source
    classes: int | None = None
    orientation: bool = False
    substitute: bool = False

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": uint8[H, W, C], "label": int32[] or uint8[classes], "unreadable": int32[] where asked for}.

        Raises:
          UnreadableImage: for an image that cannot be read; with `substitute`, if ten of them cannot.
        """
        if not self.substitute:
            return self._read(index)
        for attempt in range(_ATTEMPTS):
            try:
                example = self._read((index + attempt * _STRIDE) % len(self))
                return example | {"unreadable": np.int32(index if attempt else -1)}
            except decoding.UnreadableImage as error:
                last = error
        reason = f"{last.reason} (nor the {_ATTEMPTS - 1} before it: is the disk there?)"
        raise decoding.UnreadableImage(last.name, reason)

    def _read(self, index: int) -> dict[str, Any]:
        example = self.source[index]
        image, label = example["image"], example["label"]
        if isinstance(image, bytes):
            try:
                image = decoding.decode(image, name="", orientation=self.orientation)
            except decoding.UnreadableImage as error:  # to find the name of a record takes as long as to read it
                raise decoding.UnreadableImage(self.source.name(index), error.reason) from error
        if self.classes is not None:
            present, label = label, np.zeros(self.classes, np.uint8)
            label[list(present)] = 1
        return {"image": image, "label": label if self.classes is not None else np.int32(label)}


def train_batches(
    reader: Reader,
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
      reader: of the images; with `substitute`, so that a bad file does not end the run.
      transform: the augmentation, seeded by (seed, epoch, index).
      batch_size: of all processes together; a multiple of `process_count`.
      seed: of order and augmentation.
      start_step: steps already done.
      num_threads, num_workers: threads in each process that reads, and such processes beside this one.
      process_index, process_count: which of the consecutive shares of each batch to yield.

    Returns:
      Iterator of {"image": uint8[B, H, W, C], "label": int32[B] or uint8[B, classes], "seed": uint32[B],
      "unreadable": int32[B]}, B = batch_size / process_count.
    """
    _check_share(batch_size, process_count)
    dataset = grain.MapDataset.source(reader).seed(seed).shuffle().repeat(_EPOCHS).random_map(transform)
    dataset = dataset.batch(batch_size // process_count, batch_fn=_stack)[process_index::process_count]
    return _iterate(dataset[start_step:], num_threads, num_workers)


@dataclasses.dataclass(frozen=True)
class _Padded:
    """A source made longer with copies of its first example, whose mask is 0."""

    source: Reader
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        real = index < len(self.source)
        return self.source[index if real else 0] | {"mask": np.float32(real)}


def evaluation_batches(
    reader: Reader,
    transform: EvaluationTransform,
    *,
    batch_size: int,
    num_threads: int = 2,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every example once, in order; the last batch is padded, and every process gets as many batches.

    An unreadable image is an error: an evaluation without it would be of another set.

    Returns:
      Iterator of {"image": uint8[B, H, W, C], "label": int32[B] or uint8[B, classes], "mask": float32[B]}, mask 0
      on padding, B = batch_size / process_count.
    """
    _check_share(batch_size, process_count)
    length = -(-len(reader) // batch_size) * batch_size
    dataset = grain.MapDataset.source(_Padded(reader, length)).map(transform)
    dataset = dataset.batch(batch_size // process_count, batch_fn=_stack)[process_index::process_count]
    return _iterate(dataset, num_threads, num_workers)


def _iterate(dataset: grain.MapDataset, num_threads: int, num_workers: int) -> Iterator[Batch]:
    """The batches, read ahead; threads and processes end with the iterator."""
    read = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    batches = dataset.to_iter_dataset(read)
    if num_workers:
        options = grain.MultiprocessingOptions(num_workers=num_workers)
        batches = batches.mp_prefetch(options, worker_init_fn=_follow_main_process)
    iterator = iter(batches)
    try:
        for batch in iterator:
            # What comes from a worker lies in shared memory, to be given back at once.
            yield {name: np.array(array) for name, array in batch.items()} if num_workers else batch
    finally:
        iterator.close()


def _follow_main_process(worker: int, workers: int) -> None:
    """A worker leaves Ctrl-C in the terminal to the main process, and ends with it, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _check_share(batch_size: int, process_count: int) -> None:
    if batch_size % process_count:
        raise ValueError(f"batch_size = {batch_size}: must be a multiple of the {process_count} processes")


def _stack(examples: list[dict[str, Any]]) -> Batch:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}
