"""What a run records while it goes: metrics.jsonl and TensorBoard scalars.

`metrics.jsonl` is the record: one JSON object a line with `step`, `time` (Unix
seconds), `phase` (`teacher` or `student`) and the metrics. A number that is not finite
is written as `null`, since JSON has neither NaN nor infinity; pandas reads it as NaN.
"""

import contextlib
import errno
import json
import math
import numbers
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from alite_jax.errors import TrainingError

FILE_NAME = "metrics.jsonl"
_RESERVED = ("step", "time", "phase")


class MetricWriter:
    """Appends to `metrics.jsonl` of a run, and to its TensorBoard events if asked.

    A line is with the operating system when `write` returns, so a kill loses none; a
    last line that was cut off nevertheless is removed on opening.

    Args:
        workdir: the run's folder; made when missing.
        tensorboard: also write scalars below `<workdir>/tensorboard/<phase>`, a run of
            its own for each phase, so that their curves share one plot.

    Raises:
        TrainingError: the folder or the file cannot be written.
    """

    def __init__(self, workdir: str | os.PathLike[str], *, tensorboard: bool) -> None:
        self._workdir = Path(workdir)
        self._path = self._workdir / FILE_NAME
        self._tensorboard = tensorboard
        self._events: dict[str, Any] = {}  # phase: writer of an event file
        self._purge_step: dict[str, int] = {}
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
        except OSError as error:
            raise self._unwritable(error) from error

    def write(
        self, step: int, metrics: Mapping[str, Any], *, prefix: str = "student"
    ) -> None:
        """Writes the metrics of one step.

        Args:
            step: training steps of this phase that are done.
            metrics: Python, numpy or JAX numbers by name; the names `step`, `time` and
                `phase` are taken.
            prefix: the phase.

        Raises:
            TrainingError: the disk is full or the file cannot be written.
        """
        taken = sorted(set(metrics) & set(_RESERVED))
        if taken:
            raise ValueError(f"a metric cannot be called {taken[0]!r}: rename it")
        record = {"step": int(step), "time": round(time.time(), 3), "phase": prefix}
        record |= {name: _number(value) for name, value in metrics.items()}
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._tensorboard:
                self._write_events(prefix, step, metrics)
        except OSError as error:
            raise self._unwritable(error) from error

    def rewind(self, phase: str, step: int) -> None:
        """Drops what `phase` wrote after `step`, as a resumed run will write it again.

        The file is replaced as a whole, so a kill leaves the old or the new one.

        Args:
            phase: whose lines to drop; those of the other phase stay.
            step: the step that the run resumes from.

        Raises:
            TrainingError: a line is not JSON, or the file cannot be written.
        """
        kept = [
            record
            for record in read_metrics(self._workdir)
            if record["phase"] != phase or record["step"] <= step
        ]
        temporary = self._path.with_suffix(".jsonl.tmp")
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(record) + "\n" for record in kept)
                file.flush()
                os.fsync(file.fileno())
            self._file.close()
            os.replace(temporary, self._path)
            self._file = self._open()
        except OSError as error:
            raise self._unwritable(error) from error
        # TensorBoard drops the points from here on once the next event file says so.
        self._purge_step[phase] = step + 1
        if phase in self._events:
            self._events.pop(phase).close()

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        while self._events:
            # All is on disk, but for what a full disk refused, and `write` told that.
            with contextlib.suppress(OSError):
                self._events.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> BinaryIO:
        with open(self._path, "ab+") as file:
            file.seek(0)
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
        return open(self._path, "ab", buffering=0)

    def _write_events(self, phase: str, step: int, metrics: Mapping[str, Any]) -> None:
        # Slow to import, and not every run wants it. Not its SummaryWriter, which
        # writes in a thread: a full disk ends that, and a later event waits forever.
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        if phase not in self._events:
            folder = self._workdir / "tensorboard" / phase
            folder.mkdir(parents=True, exist_ok=True)
            # The name has the time in seconds, but a run may go on within one.
            events = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
            self._events[phase] = events
            if phase in self._purge_step:
                start = SessionLog(status=SessionLog.START)
                events.write_event(
                    Event(
                        step=self._purge_step[phase],
                        wall_time=time.time(),
                        session_log=start,
                    )
                )
        for name, value in metrics.items():
            scalar = summary.scalar(name, float(value))
            self._events[phase].write_event(
                Event(step=step, wall_time=time.time(), summary=scalar)
            )
        self._events[phase].flush()

    def _unwritable(self, error: OSError) -> TrainingError:
        return TrainingError(
            f"cannot write {self._path} ({error.strerror or error}): free space or "
            "make the folder writable and start again, or use another --workdir"
        )


class NoWriter:
    """Stands in for the writer in a process that is not the one to write."""

    def write(
        self, step: int, metrics: Mapping[str, Any], *, prefix: str = "student"
    ) -> None:
        """Writes nothing."""

    def rewind(self, phase: str, step: int) -> None:
        """Has nothing to drop."""


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the records of `metrics.jsonl` in file order, `[]` without the file.

    Text after the last line break is a line that a kill cut off, or one that is being
    written, and is left out.

    Args:
        workdir: the run's folder.

    Raises:
        TrainingError: a complete line is not JSON.
    """
    path = Path(workdir) / FILE_NAME
    if not path.exists():
        return []
    records = []
    lines = path.read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise TrainingError(
                f"line {number} of {path} is not JSON ({line[:40]!r}): delete that line"
            ) from error
    return records


def _number(value: Any) -> int | float | None:
    """Returns a Python number for JSON, `None` for NaN and the infinities."""
    if isinstance(value, numbers.Integral):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None
