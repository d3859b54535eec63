"""How batches reach the steps: sent by the host, or picked out on the device.

Both feeds give the very same batches. `sources` runs on the host and goes through the
dispatches with what the program is given for each, its source; `take` runs within the
program and makes the batches out of it (see `alite_jax.training.dispatch`).
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import jax
import numpy as np

from alite_jax.data.pipeline import TrainBatches, prefetch
from alite_jax.data.sources import Split
from alite_jax.training import parallel
from alite_jax.training.dispatch import Source
from alite_jax.training.step import Batch

# The share of a device's memory that a split may take unasked.
_LARGEST_SHARE = 0.1


class SentFeed:
    """The host makes the batches in advance and sends them with each dispatch.

    Args:
        batches: what to send.
        length: the most steps in a dispatch.
    """

    def __init__(self, batches: TrainBatches, length: int) -> None:
        self._batches = batches
        self._length = length

    def sources(self, dispatches: Iterable[range]) -> Generator[tuple[range, Source]]:
        """Yields each dispatch with its source; has a thread, so close it after use."""
        return prefetch(self._source, dispatches)

    def take(self, source: Source, step: jax.Array, i: jax.Array | int) -> Batch:
        """The batch of one device, whatever the step is; see `make_program`."""
        del step
        if self._length == 1:
            return source
        return {name: source[name][i] for name in ("image", "label")}

    def _source(self, dispatch: range) -> Source:
        batches = [self._batches.batch(step) for step in dispatch]
        if self._length == 1:
            return batches[0]
        # The program has one shape, and does not look at what fills it up.
        batches += batches[-1:] * (self._length - len(batches))
        stacked = jax.tree.map(lambda *arrays: np.stack(arrays, axis=1), *batches)
        counts = np.full(len(stacked["label"]), len(dispatch), np.int32)
        return stacked | {"count": counts}


class KeptFeed:
    """Every device keeps the split and picks the examples of each step itself.

    The host sends the order of the examples once an epoch, and nothing between.

    Args:
        batches: whose orders to use.
        split: the examples of `batches`.
        length: the most steps in a dispatch.
    """

    def __init__(self, batches: TrainBatches, split: Split, length: int) -> None:
        self._batches = batches
        self._length = length
        self._split = parallel.keep({"image": split.images, "label": split.labels})

    def sources(self, dispatches: Iterable[range]) -> Generator[tuple[range, Source]]:
        """Yields each dispatch with its source."""
        counts = cache(lambda count: parallel.replicate({"count": np.int32(count)}))
        latest = None
        for dispatch in dispatches:
            epoch = dispatch[0] // self._batches.steps_per_epoch
            if epoch != latest:
                order = parallel.shard(self._batches.order(epoch))
                latest = epoch
            source = {**self._split, "order": order}
            yield dispatch, source | (counts(len(dispatch)) if self._length > 1 else {})

    def take(self, source: Source, step: jax.Array, i: jax.Array | int) -> Batch:
        """The batch of one device at the training's step; see `make_program`."""
        del i
        chosen = source["order"][step % self._batches.steps_per_epoch]
        return {name: source[name][chosen] for name in ("image", "label")}


def keeps_split(
    choice: str, split: Split, memory_stats: Sequence[Mapping[str, Any] | None]
) -> bool:
    """Whether the training split should lie on the devices.

    Args:
        choice: `data.on_device`: `"always"`, `"never"`, or `"auto"`, which is yes where
            every device reports its memory, as accelerators do and CPUs do not, and the
            split takes at most a tenth of it.
        split: the training split.
        memory_stats: `device.memory_stats()` of each local device.
    """
    if choice != "auto":
        return choice == "always"
    limits = [(stats or {}).get("bytes_limit", 0) for stats in memory_stats]
    size = split.images.nbytes + split.labels.nbytes
    return size <= _LARGEST_SHARE * min(limits)


def make_feed(config: Any, batches: TrainBatches, split: Split) -> SentFeed | KeptFeed:
    """Builds the feed that a configuration asks for.

    Args:
        config: the whole configuration.
        batches: the batches of the training.
        split: the examples of `batches`.
    """
    length = config.compute.steps_per_dispatch
    if keeps_split(config.data.on_device, split, parallel.memory_stats()):
        return KeptFeed(batches, split, length)
    return SentFeed(batches, length)
