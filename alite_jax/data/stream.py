"""Splits that are larger than memory: read where they are indexed, by other processes.

The order and the batches are those of a split in memory, pure functions of seed and
step; only who decodes the images differs.
"""

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Literal

import numpy as np

from alite_jax.data.examples import Examples
from alite_jax.errors import AliteError, DataError

# Worker processes beyond this many wait for the first to hand batches over.
_MOST_WORKERS = 16
# Why one may have ended, by its exit code.
_REASONS = {
    "1": 'scripts must train below `if __name__ == "__main__":`, since each'
    " process runs its other lines",
    "-7": "/dev/shm is too small for batches; make it larger, or data.workers smaller",
    "-9": "memory was short; make data.workers smaller",
}


class Streamed:
    """What an array of all images, or all labels, would be, read where it is indexed.

    Attributes:
        shape: as of a NumPy array, and so `dtype`.
        workers: processes that make batches of it.
    """

    def __init__(
        self, examples: Examples, part: Literal["images", "labels"], workers: int
    ) -> None:
        """Reads nothing yet.

        Args:
            examples: of the split.
            part: what this is the array of.
            workers: 0 for one on each processor, but at most 16.
        """
        image = part == "images"
        self.workers = workers or min(_processors(), _MOST_WORKERS)
        self.shape = (len(examples), *(examples.shape if image else ()))
        self.dtype = np.dtype(np.uint8 if image else np.int32)
        self._read = examples.images if image else examples.labels

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        """Reads some, chosen as from an array's first axis."""
        numbers = np.arange(len(self))[index]
        if not numbers.size:
            return np.empty((*numbers.shape, *self.shape[1:]), self.dtype)
        found = self._read(numbers.reshape(-1))
        return found.reshape((*numbers.shape, *self.shape[1:]))

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        """Reads all, in parts."""
        parts = [self[start : start + 256] for start in range(0, len(self), 256)]
        return np.concatenate(parts)


def by_workers(
    make: Callable[[int], dict[str, np.ndarray]], keys: range, workers: int
) -> Generator[dict[str, np.ndarray]]:
    """Yields `make(key)` of each key, in their order, made in worker processes.

    Args:
        make: a pure function, sent to each worker once.
        keys: for example steps, whose values are batches.
        workers: their number.

    Raises:
        DataError: as `make` does, or a worker was ended from outside.
    """
    # Imported here: who has the data in memory does without.
    import grain
    from absl import flags

    # Grain asks for one of its flags in the workers; notebooks have none parsed.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    made = (
        grain.MapDataset.source(keys)
        .map(make)
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        .mp_prefetch(
            grain.MultiprocessingOptions(min(workers, len(keys))), _follow_parent
        )
    )
    resource_tracker.ensure_running()  # It would undo what is held back below.
    values = iter(made)
    try:
        while True:
            with _signals_held_back():
                value = next(values, None)
            if value is None:
                return
            # Theirs is shared memory, which is scarce in containers: let it go.
            yield {name: np.array(array) for name, array in value.items()}
    except AliteError as error:  # Without the notes that Grain makes.
        raise type(error)(str(error)) from None
    except RuntimeError as error:
        if ended := re.search(r"unexpectedly with exit code (-?\d+)", str(error)):
            raise DataError(
                "a process that reads images for batches ended with exit code"
                f" {ended[1]}: {_REASONS.get(ended[1], 'what it printed says why')}; or"
                " keep images in memory with data.loading=memory"
            ) from error
        raise
    finally:
        values.close()


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Keeps signals from this thread, and for good from the processes that it starts.

    A terminal, or a scheduler, sends them to all processes of a run at once; workers
    leave them to the process that waits for batches, which ends the workers.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow_parent(index: int, count: int) -> None:
    """Lets a worker end when the process that waits for its batches is no more."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _processors() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):  # As on Linux.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_available() -> int:
    """Returns how many bytes this process may still take, as far as Linux tells."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = [line for line in lines if line.startswith("MemAvailable")][0]
        limits.append(1024 * int(free.split()[1]))
    with suppress(OSError, ValueError):  # `max` where a container has no limit.
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)
