"""Stopping a run from outside so that nothing is lost: SIGTERM, Ctrl-C, preemption."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils

from alite_jax.errors import StoppedError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """While it is open, SIGTERM and Ctrl-C ask for a stop and do not end the process.

    A second signal does what it always did. With several processes, JAX's own service
    listens for SIGTERM, which is how the notice of a preemption comes: it may reach one
    process only, and all stop after the same step. In a thread other than the main one,
    where Python delivers no signals, nothing changes.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            signals = _SIGNALS if jax.process_count() == 1 else ()
            for number in signals:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def requested(self, step: int) -> bool:
        """Whether to save and stop now.

        Args:
            step: steps of the training that are done; with several processes, all must
                ask after each step.
        """
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(
            step
        ):
            self._received = signal.SIGTERM
        return self._received is not None

    def error(self, phase: str, step: int, folder: str) -> StoppedError:
        """What to raise once all is saved.

        Args:
            phase: `teacher` or `student`.
            step: the step of the checkpoint.
            folder: of the checkpoint.
        """
        name = signal.Signals(self._received or signal.SIGTERM).name
        return StoppedError(
            f"{phase}: stopped by {name} after step {step}, which is saved in {folder};"
            " the same command again goes on from there",
            self._received or signal.SIGTERM,
        )

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)
