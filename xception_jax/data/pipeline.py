"""Batches of numpy arrays, with grain.

The batch of a step is a function of (seed, step): resuming needs no iterator state, and a global batch, augmented,
is the same array for any number of hosts, worker processes and threads.
"""

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from xception_jax.data.dataset import Source, UnreadableExample
from xception_jax.settings import Section, setting

Batch = dict[str, np.ndarray]
Example = dict[str, Any]

_EPOCHS = 1_000_000  # grain's endless repetition overflows where a host gets one example of a batch
_ATTEMPTS = 10  # unreadable examples in a row, each far from the others, after which the disk is to blame
# From an unreadable example to its substitute, since its neighbors may have failed together. The strides are
# prime: one that does not divide the number of examples leads to ten different examples.
_STRIDES = (7919, 7907)
_WORTH_WORKERS = 5000  # examples of an evaluation; below this, starting workers costs more than it saves


class Reading(Section):
    """How a host reads examples; the "data" section of every modality extends it."""

    max_unreadable: float = setting(
        0.01, "share of training examples that may be replaced before training stops", free=True, ge=0, lt=1
    )
    num_threads: int = setting(2, "threads that read, in each process that reads", free=True, ge=1)
    num_workers: int = setting(0, "processes that read, beside the main one", free=True, ge=0)


@dataclasses.dataclass(frozen=True)
class Reader:
    """A source whose examples are decoded, with labels as arrays.

    Attributes:
      decode: see `inputs.Inputs.decode`.
      classes: number of classes if examples have several labels, which become uint8[classes] of 0 and 1.
      substitute: whether an unreadable example is replaced by another one, and "unreadable" tells its index (else
        -1). Without it, reading raises `UnreadableExample`.
    """

    source: Source
    decode: Callable[[Example], Example]
    classes: int | None = None
    substitute: bool = False

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        """The arrays of an example, "label" int32[] or uint8[classes], and "unreadable" int32[] with `substitute`.

        Raises:
          UnreadableExample: for an example that cannot be read; with `substitute`, if ten of them cannot.
        """
        if not self.substitute:
            return self._read(index)
        stride = next(stride for stride in (*_STRIDES, 1) if len(self) % stride or stride == 1)
        for attempt in range(_ATTEMPTS):
            try:
                example = self._read((index + attempt * stride) % len(self))
                return example | {"unreadable": np.int32(index if attempt else -1)}
            except UnreadableExample as error:
                last = error
        reason = f"{last.reason} ({_ATTEMPTS - 1} other examples could not be read either: is the disk there?)"
        raise UnreadableExample(last.name, reason)

    def why_unreadable(self, index: int) -> str:
        """What is wrong with an example that was replaced."""
        try:
            self._read(index)
        except UnreadableExample as error:
            return str(error)
        return f"cannot read {self.source.name(index)}: it failed once, and now it can be read"

    def _read(self, index: int) -> Example:
        example = self.source[index]
        try:
            arrays = self.decode(example)
        except UnreadableExample as error:  # finding the name of a record takes as long as reading it
            raise UnreadableExample(self.source.name(index), error.reason) from error
        if self.classes is None:
            return arrays | {"label": np.int32(example["label"])}
        label = np.zeros(self.classes, np.uint8)
        label[list(example["label"])] = 1
        return arrays | {"label": label}


@dataclasses.dataclass(frozen=True)
class Padding:
    """How examples of unequal length become a batch, which is as long as its longest example.

    All hosts give their shares of a batch the same length, since each of them knows all lengths and the order.

    Attributes:
      lengths: of the examples of a source, int[N].
      pad: (example, length) -> the example with arrays of this length.
    """

    lengths: np.ndarray
    pad: Callable[[Example, int], Example]

    def apply(self, examples: grain.MapDataset, lengths: grain.MapDataset, batch_size: int) -> grain.MapDataset:
        """Pads examples whose lengths come in the same order."""
        longest = _Longest(lengths.batch(batch_size))
        return examples.map_with_index(lambda place, x: self.pad(x, longest.of_batch(place // batch_size)))


class _Longest:
    """Greatest of the numbers in a batch; remembers its last answer, since all examples of a batch ask for it."""

    def __init__(self, batches: grain.MapDataset):
        self._batches, self._last = batches, (-1, 0)

    def of_batch(self, number: int) -> int:
        last = self._last  # read once, since other threads write it
        if last[0] != number:
            self._last = last = (number, int(np.max(self._batches[number])))
        return last[1]


def train_batches(
    reader: Reader,
    transform: Callable[[Example, np.random.Generator], Example],
    *,
    padding: Padding | None = None,
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
      reader: of the examples; with `substitute`, so that a bad file does not end the run.
      transform: augmentation on the host, seeded by (seed, epoch, index).
      padding: of examples that differ in length.
      batch_size: of all processes together; a multiple of `process_count`.
      seed: of order and augmentation.
      start_step: number of steps already done.
      num_threads, num_workers: see `Reading`.
      process_index, process_count: which of the consecutive shares of each batch to yield.

    Returns:
      Iterator of the transformed arrays [B, ...], "label" int32[B] or uint8[B, classes], "seed" uint32[B] and
      "unreadable" int32[B], where B = batch_size / process_count.
    """

    def seeded(example: Example, rng: np.random.Generator) -> Example:  # the seed is of augmentation on the device
        return transform(example, rng) | {"seed": rng.integers(2**32, dtype=np.uint32)}

    def ordered(source):
        return grain.MapDataset.source(source).seed(seed).shuffle().repeat(_EPOCHS)

    examples = ordered(reader).random_map(seeded)
    if padding is not None:
        examples = padding.apply(examples, ordered(padding.lengths), batch_size)
    batches = _share(examples, batch_size, process_index, process_count)
    return _iterate(batches[start_step:], num_threads, num_workers)


def evaluation_batches(
    reader: Reader,
    transform: Callable[[Example], Example],
    *,
    padding: Padding | None = None,
    batch_size: int,
    num_threads: int = 2,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every example once, in order; the last batch is padded, and every process gets as many batches.

    An unreadable example is an error, since an evaluation without it would be of another set.

    Returns:
      Iterator of the transformed arrays [B, ...], "label" int32[B] or uint8[B, classes] and "mask" float32[B],
      which is 0 on padding, where B = batch_size / process_count.
    """

    def clipped(index: int) -> int:  # beyond the last example, copies of the first one of the batch
        return index if index < len(reader) else index // batch_size * batch_size

    def read(index: int) -> Example:
        return reader[clipped(index)] | {"mask": np.float32(index < len(reader))}

    places = grain.MapDataset.range(-(-len(reader) // batch_size) * batch_size)
    examples = places.map(read).map(transform)
    if padding is not None:
        examples = padding.apply(examples, places.map(lambda index: padding.lengths[clipped(index)]), batch_size)
    batches = _share(examples, batch_size, process_index, process_count)
    return _iterate(batches, num_threads, num_workers if len(reader) >= _WORTH_WORKERS else 0)


def _share(examples: grain.MapDataset, batch_size: int, index: int, count: int) -> grain.MapDataset:
    """The share of process `index` of `count` in each global batch of consecutive examples."""
    if batch_size % count:
        raise ValueError(f"batch_size = {batch_size}: must be a multiple of the {count} processes")
    return examples.batch(batch_size // count)[index::count]


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
            # The batch of a worker lies in shared memory, which must be given back at once.
            yield {name: np.array(array) for name, array in batch.items()} if num_workers else batch
    finally:
        iterator.close()


def _follow_main_process(worker: int, workers: int) -> None:
    """Makes a worker ignore Ctrl-C and SIGTERM, which the main process handles, and end with the main process."""
    for number in (signal.SIGINT, signal.SIGTERM):  # Slurm and systemd signal all processes of a run
        signal.signal(number, signal.SIG_IGN)

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
