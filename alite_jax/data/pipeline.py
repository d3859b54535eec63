"""Turns a split into batches: shuffled, cut into shards, made in advance."""

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from alite_jax.data.sources import Array, Split
from alite_jax.data.stream import Streamed, by_workers
from alite_jax.errors import ConfigError

Batch = dict[str, np.ndarray]
Key = TypeVar("Key")
Value = TypeVar("Value")


class TrainBatches:
    """Shuffled training batches, each a pure function of the seed and the step.

    The examples come in passes, one after another: each pass has every example once, in
    an order of its own. An epoch is as many batches as a pass fills; the few examples
    that are left then are the first of the next epoch, so that none is ever missed.
    Nothing has to be saved to go on at any step.

    Attributes:
        steps_per_epoch: number of batches in an epoch.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int,
        num_shards: int,
        own_shards: slice = slice(None),
        views: int = 0,
    ):
        """Prepares to make batches.

        Args:
            split: the examples.
            batch_size: examples in a batch, over all shards.
            seed: of the orders; not negative.
            num_shards: number of devices that share a batch; divides `batch_size`.
            own_shards: those of them that this process feeds; what it leaves out is
                made by the others.
            views: fixed views that there are of each image; 0 where a step draws them.

        Raises:
            ConfigError: `batch_size` is not a positive multiple of `num_shards`, or is
                larger than the split.
        """
        _check_divides("data.batch_size", batch_size, num_shards)
        if batch_size > len(split):
            raise ConfigError(
                f"data.batch_size = {batch_size} is larger than the training split of "
                f"{len(split)} examples; make it smaller"
            )
        self.steps_per_epoch = len(split) // batch_size
        self._split = split
        self._batch_size = batch_size
        self._seed = seed
        self._num_shards = num_shards
        self._own_shards = own_shards
        self._views = views
        # (epoch, order) of the latest batch: a memory of the pure function, no state.
        self._latest = (-1, np.empty(0, np.int32))

    def batches(self, steps: range) -> Generator[Batch]:
        """Yields the batches of some steps, by workers if they are not in memory."""
        return _made(self.batch, steps, self._split)

    def batch(self, step: int) -> Batch:
        """Returns the batch of a step, counted from 0 over all epochs.

        It has 'image': uint8 [own shards, batch_size / num_shards, height, width,
        channels] and 'label': int32 [own shards, batch_size / num_shards]. With fixed
        views it also has, int32 like the label, 'index' in the split and 'view', of
        which an image has the next one in each pass.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        chosen = self.order(epoch)[:, position]
        batch = {
            "image": self._split.images[chosen],
            "label": self._split.labels[chosen],
        }
        if self._views:
            places = step * self._batch_size + np.arange(self._batch_size)
            passes = places.reshape(self._num_shards, -1) // len(self._split)
            views = (passes[self._own_shards] + chosen) % self._views
            batch |= {"index": chosen, "view": views.astype(np.int32)}
        return batch

    def order(self, epoch: int) -> np.ndarray:
        """Returns which examples the batches of an epoch, counted from 0, hold.

        They are indices into the split, int32 [own shards, steps_per_epoch, batch_size
        / num_shards].
        """
        if self._latest[0] != epoch:
            length = self.steps_per_epoch * self._batch_size
            first, skipped = divmod(epoch * length, len(self._split))
            # At most the end of one pass and the beginning of another.
            order = np.concatenate([self._pass(first), self._pass(first + 1)])
            order = order[skipped : skipped + length]
            # Shard i holds the i-th contiguous part of each batch.
            order = order.reshape(self.steps_per_epoch, self._num_shards, -1)
            self._latest = (epoch, order.swapaxes(0, 1)[self._own_shards])
        return self._latest[1]

    def _pass(self, number: int) -> np.ndarray:
        random = np.random.default_rng([self._seed, number])
        return random.permutation(len(self._split)).astype(np.int32)


def eval_batches(
    split: Split, batch_size: int, num_shards: int, own_shards: slice = slice(None)
) -> Iterator[Batch]:
    """Goes once through a split in its own order, with every example in it.

    All batches have the same shape: the last is filled up with black images of label 0,
    whose weight is 0.

    Args:
        split: the examples.
        batch_size: as for `TrainBatches`, with all that follows.
        num_shards: see there.
        own_shards: see there.

    Returns:
        An iterator of batches with 'image': uint8 [own shards, batch_size / num_shards,
        height, width, channels], 'label': int32 and 'weight': float32 [own shards,
        batch_size / num_shards], 1 for an example and 0 for filling.

    Raises:
        ConfigError: `batch_size` is not a positive multiple of `num_shards`.
    """
    _check_divides("data.eval_batch_size", batch_size, num_shards)

    def make(start: int) -> Batch:
        # Shard i holds the i-th contiguous part of the batch.
        numbers = np.arange(start, start + batch_size).reshape(num_shards, -1)
        numbers = numbers[own_shards]
        inside = numbers < len(split)
        images = np.zeros((*numbers.shape, *split.images.shape[1:]), np.uint8)
        labels = np.zeros(numbers.shape, np.int32)
        images[inside] = split.images[numbers[inside]]
        labels[inside] = split.labels[numbers[inside]]
        return {"image": images, "label": labels, "weight": inside.astype(np.float32)}

    return _made(make, range(0, len(split), batch_size), split)


def _made(make: Callable[[int], Batch], keys: range, split: Split) -> Generator[Batch]:
    if isinstance(split.images, Streamed):
        return by_workers(make, keys, split.images.workers)
    return (make(key) for key in keys)


def in_batches(
    function: Callable[[np.ndarray], ArrayLike], images: Array, batch: int = 256
) -> np.ndarray:
    """Applies a function to all images, in batches of one shape.

    The last batch is filled up with zeros, so that nothing is compiled for it.

    Args:
        function: from a batch of images to an array whose first axis is the batch.
        images: `[n, ...]`, at least one.
        batch: images in a batch, `n` if there are fewer.

    Returns:
        The results of the `n` images.
    """
    batch = min(batch, len(images))
    parts = [
        np.asarray(function(_filled(images[start : start + batch], batch)))
        for start in range(0, len(images), batch)
    ]
    return np.concatenate(parts)[: len(images)]


def prefetch(
    make: Callable[[Key], Value], keys: Iterable[Key], depth: int = 2
) -> Generator[tuple[Key, Value]]:
    """Makes values in a background thread while the device works on earlier ones.

    The thread starts with the first `next` and has ended when the iterator is exhausted
    or closed. An exception of `make` is raised here, in its turn.

    Args:
        make: makes the value of a key; called in the order of the keys.
        keys: for example steps, whose values are batches.
        depth: how many values may wait.
    """
    made: queue.SimpleQueue[tuple[Key, Value] | BaseException | None]
    made = queue.SimpleQueue()
    room = threading.Semaphore(depth)
    closed = threading.Event()

    def produce() -> None:
        try:
            for key in keys:
                room.acquire()
                if closed.is_set():
                    return
                made.put((key, make(key)))
            made.put(None)
        except BaseException as error:
            made.put(error)

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            room.release()
            yield item
    finally:
        closed.set()
        room.release()
        thread.join()


def _check_divides(field: str, batch_size: int, num_shards: int) -> None:
    if batch_size < 1 or batch_size % num_shards:
        raise ConfigError(
            f"{field} = {batch_size} cannot be shared equally by {num_shards} "
            f"device{'s' if num_shards > 1 else ''}; use a positive multiple of "
            f"{num_shards}"
        )


def _filled(array: np.ndarray, length: int) -> np.ndarray:
    """Appends zeros along the first axis, up to a length."""
    missing = length - len(array)
    return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
