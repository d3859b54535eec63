"""Orbax behind the few calls that checkpoints need, on any path, without its noise.

Orbax and TensorStore take some characters of a path for more than they are: a bracket
makes a pattern of it, a backslash a separator. Where a path has such characters, they
are given a link to the folder instead, with a name in which nothing means anything.
"""

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Coroutine, Iterator, Mapping
from logging import ERROR
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint._src import asyncio_utils

from alite_jax.errors import first_line

# Characters that neither a pattern nor a URL gives a meaning to.
_PLAIN = re.compile(r"[A-Za-z0-9 _./,=+-]*")
_LINKS = "/tmp"  # Plain itself, which TMPDIR need not be.

# Orbax would wait for other processes, which do not even have a manager.
_FIRST_ALONE = ocp.options.MultiprocessingOptions(
    primary_host=0, active_processes={0}, barrier_sync_key_prefix="alite_jax"
)

Arrays = Mapping[str, np.ndarray]


class OrbaxStore:
    """The steps below one folder, each of some items of named arrays and a document.

    Args:
        directory: absolute path of the folder; made by the first `write`.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._manager: ocp.CheckpointManager | None = None
        self._writable = False
        self._remove_link = lambda: None

    def steps(self) -> list[int]:
        """Returns the steps whose writing was finished, in ascending order."""
        try:
            with _own_failures_only():
                return sorted(self._open().all_steps())
        except NotADirectoryError:
            return []

    def write(self, step: int, items: Mapping[str, Arrays], document: Any) -> None:
        """Writes a step, and returns once it is on disk.

        Args:
            step: one that is not there.
            items: arrays by name, by the name of their item.
            document: JSON values, the item `meta`.
        """
        arguments = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        arguments["meta"] = ocp.args.JsonSave(document)
        with _own_failures_only():
            manager = self._open(write=True)
            manager.save(step, args=ocp.args.Composite(**arguments), force=True)
            manager.wait_until_finished()

    def read(self, step: int, item: str, template: Arrays) -> dict[str, np.ndarray]:
        """Reads an item of a step into arrays like those of the template."""
        arrays: dict[str, np.ndarray] = self._read(
            step, item, ocp.args.StandardRestore(template)
        )
        return arrays

    def read_document(self, step: int) -> Any:
        """Reads the JSON values of a step."""
        return self._read(step, "meta", ocp.args.JsonRestore())

    def delete(self, step: int) -> None:
        """Removes a step."""
        with _own_failures_only():
            self._open(write=True).delete(step)

    def close(self) -> None:
        """Ends Orbax's threads; the object may be used again."""
        if self._manager is not None:
            self._manager.close()
        self._manager, self._writable = None, False
        self._remove_link()

    def _read(self, step: int, item: str, arguments: Any) -> Any:
        with _own_failures_only(), _patient_loops():
            composite = ocp.args.Composite(**{item: arguments})
            return self._open().restore(step, args=composite)[item]

    def _open(self, write: bool = False) -> ocp.CheckpointManager:
        # The remains of a killed save are swept before the first write only: a reader
        # must not touch a folder into which another process may be saving.
        if self._manager is None or (write and not self._writable):
            self.close()
            if write:
                os.makedirs(self._directory, exist_ok=True)  # Orbax logs a traceback.
            self._manager = ocp.CheckpointManager(
                self._plain_path(),
                options=ocp.CheckpointManagerOptions(
                    create=False,
                    cleanup_tmp_directories=write,
                    enable_async_checkpointing=False,
                    multiprocessing_options=_FIRST_ALONE,
                ),
            )
            self._writable = write
        return self._manager

    def _plain_path(self) -> str:
        if _PLAIN.fullmatch(self._directory):
            return self._directory
        folder = tempfile.mkdtemp(prefix="alite_jax-", dir=_LINKS)
        self._remove_link = weakref.finalize(
            self, shutil.rmtree, folder, ignore_errors=True
        )
        link = Path(folder, "checkpoints")
        link.symlink_to(self._directory)
        return str(link)


@contextlib.contextmanager
def _own_failures_only() -> Iterator[None]:
    """Keeps Orbax's threads from logging the failure that is raised here anyway.

    Its warnings pass: nobody else tells what they say.
    """

    def is_no_failure_of_orbax(record: Any) -> bool:
        of_orbax = f"{os.sep}orbax{os.sep}" in record.pathname
        return not of_orbax or record.levelno < ERROR

    logger = logging.get_absl_logger()
    logger.addFilter(is_no_failure_of_orbax)
    try:
        yield
    finally:
        logger.removeFilter(is_no_failure_of_orbax)


@contextlib.contextmanager
def _patient_loops() -> Iterator[None]:
    """Makes Orbax finish all reads in flight before it reports that one has failed.

    Otherwise it closes their event loop under them: they then raise in TensorStore's
    threads and, unfinished, wherever the garbage collector meets them.
    """

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(coroutine)
        finally:
            if others := asyncio.all_tasks(loop):
                loop.run_until_complete(asyncio.wait(others))
            loop.close()

    # A private name: a version of Orbax without it is left as it is.
    hasty = getattr(asyncio_utils, "_run_sync_via_new_loop", None)
    if hasty is None:
        yield
        return
    asyncio_utils._run_sync_via_new_loop = run
    try:
        yield
    finally:
        asyncio_utils._run_sync_via_new_loop = hasty


def reason(error: BaseException) -> str:
    """Returns a short cause: the operating system's words where there are any."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    from_tensorstore = re.search(r"([^:]+) \[os_error_code=", str(error))
    if from_tensorstore:
        return from_tensorstore[1].strip()
    return first_line(error)[:200]
