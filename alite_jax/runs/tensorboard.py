"""A run's metrics as TensorBoard events, written without TensorFlow."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alite_jax.sparsity.mask_matrices import shrunk

_SIDE = 128  # pixels of a mask's picture


class TensorBoard:
    """Writes to `<folder>/<phase>`, a run of its own for each phase.

    So their curves share one plot.

    Args:
        folder: of all events.
        configuration: shown as a text, "" for none.
    """

    def __init__(self, folder: Path, configuration: str = "") -> None:
        self._folder = folder
        self._configuration = configuration
        self._events: dict[str, Any] = {}  # phase: writer of an event file
        self._purge_step: dict[str, int] = {}

    def rewind(
        self, phase: str, step: int, dropped: Sequence[Mapping[str, Any]]
    ) -> None:
        """Has TensorBoard drop the points after `step`, by the next event file."""
        self._purge_step[phase] = step + 1
        if phase in self._events:
            self._events.pop(phase).close()

    def write(self, phase: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes scalars."""
        from tensorboardX import summary

        scalars = [summary.scalar(n, float(value)) for n, value in metrics.items()]
        self._write(phase, step, scalars)

    def show_masks(
        self, phase: str, step: int, matrices: Mapping[str, np.ndarray]
    ) -> None:
        """Writes small pictures of masks, kept weights black."""
        from tensorboardX import summary

        pictures = [
            summary.image(f"masks/{name}", shrunk(matrix, _SIDE), dataformats="HW")
            for name, matrix in matrices.items()
        ]
        self._write(phase, step, pictures)

    def close(self) -> None:
        """Closes the files."""
        while self._events:
            # All is on disk, but for what a full disk refused, and `write` told that.
            with contextlib.suppress(OSError):
                self._events.popitem()[1].close()

    def _write(self, phase: str, step: int, summaries: Sequence[Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event

        events = self._events.get(phase) or self._open(phase)
        for summary in summaries:
            events.write_event(Event(step=step, wall_time=time.time(), summary=summary))
        events.flush()

    def _open(self, phase: str) -> Any:
        # Slow to import, and not every run wants it. Not its SummaryWriter, which
        # writes in a thread: a full disk ends that, and a later event waits forever.
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder = self._folder / phase
        folder.mkdir(parents=True, exist_ok=True)
        is_new = not any(folder.iterdir())
        # The name has the time in seconds, but a run may go on within one.
        events = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        self._events[phase] = events
        if phase in self._purge_step:
            start = SessionLog(status=SessionLog.START)
            event = Event(
                step=self._purge_step[phase], wall_time=time.time(), session_log=start
            )
            events.write_event(event)
        if is_new and self._configuration:
            # Lines that are indented are code in Markdown.
            text = "".join(f"    {x}\n" for x in self._configuration.splitlines())
            shown = summary.text("configuration", text)
            events.write_event(Event(step=0, wall_time=time.time(), summary=shown))
        return events
