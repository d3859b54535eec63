"""Checkpoints that are written while the training goes on."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import jax

from alite_jax.runs.checkpoints import Checkpoints
from alite_jax.runs.manifest import as_json


class BackgroundSaves:
    """Saves checkpoints in a thread of its own, one after the other.

    A kill leaves what it leaves of a save that blocks: older checkpoints stay until the
    new one was read back whole. What a save raises is raised by the call that follows
    it, or at the end of the context. With several processes, which must act in the same
    order, saves block.

    Args:
        checkpoints: of the training; nobody else may use them in the context.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._saving: Future[None] | None = None
        self.directory = checkpoints.directory

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.wait()
        finally:
            self._thread.shutdown()  # Waits, too, but hides no other error.

    def save(self, step: int, state: Any, *, extra: Mapping[str, Any]) -> None:
        """Begins `Checkpoints.save`, once the save before it has ended.

        Args:
            step: as there, like the rest.
            state: its arrays must stay as they are; `extra` need not.
            extra: JSON values.

        Raises:
            CheckpointError: the save before it has failed.
        """
        self.wait()
        extra = as_json(extra)
        if jax.process_count() > 1:
            self._checkpoints.save(step, state, extra=extra)
            return
        save = self._checkpoints.save
        self._saving = self._thread.submit(save, step, state, extra=extra)

    def wait(self) -> None:
        """Returns once the last checkpoint is on disk.

        Raises:
            CheckpointError: it could not be written.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, once that is on disk.

        Raises:
            CheckpointError: it could not be written.
        """
        self.wait()
        return self._checkpoints.latest_step()
