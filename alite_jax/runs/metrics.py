"""What a run records while it goes: metrics.jsonl, and what else takes its metrics.

`metrics.jsonl` is the record: one JSON object a line with `step`, `time` (Unix
seconds), `phase` (`teacher` or `student`) and the metrics. A number that is not finite
is written as `null`, since JSON has neither NaN nor infinity; pandas reads it as NaN.
"""

import errno
import json
import math
import numbers
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

import numpy as np

from alite_jax.errors import TrainingError

FILE_NAME = "metrics.jsonl"
_RESERVED = ("step", "time", "phase")


class Sink(Protocol):
    """What takes a run's metrics besides `metrics.jsonl`."""

    def rewind(
        self, phase: str, step: int, dropped: Sequence[Mapping[str, Any]]
    ) -> None:
        """Begins a phase that goes on after `step`; `dropped` are lines after that."""

    def write(self, phase: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics of one step."""

    def show_masks(
        self, phase: str, step: int, matrices: Mapping[str, np.ndarray]
    ) -> None:
        """Takes masks of some layers, bool `[inputs, outputs]`."""

    def close(self) -> None:
        """Ends all phases."""


class MetricWriter:
    """Appends to `metrics.jsonl` of a run, and hands all of it on to the sinks.

    A line is with the operating system when `write` returns, so a kill loses none; a
    last line that was cut off nevertheless is removed on opening.

    Args:
        workdir: the run's folder; made when missing.
        sinks: what takes the metrics besides, such as
            `alite_jax.runs.tensorboard.TensorBoard`.

    Raises:
        TrainingError: the folder or the file cannot be written.
    """

    def __init__(
        self, workdir: str | os.PathLike[str], sinks: Sequence[Sink] = ()
    ) -> None:
        self._workdir = Path(workdir)
        self._path = self._workdir / FILE_NAME
        self._sinks = sinks
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
            for sink in self._sinks:
                sink.write(prefix, int(step), metrics)
        except OSError as error:
            raise self._unwritable(error) from error

    def show_masks(
        self, step: int, matrices: Mapping[str, np.ndarray], *, prefix: str = "student"
    ) -> None:
        """Hands masks of some layers, bool `[inputs, outputs]`, to the sinks.

        Raises:
            TrainingError: the disk is full or a file cannot be written.
        """
        try:
            for sink in self._sinks:
                sink.show_masks(prefix, int(step), matrices)
        except OSError as error:
            raise self._unwritable(error) from error

    def rewind(self, phase: str, step: int) -> None:
        """Begins a phase: drops what it wrote after `step`, to be written again.

        The file is replaced as a whole, so a kill leaves the old or the new one.

        Args:
            phase: whose lines to drop; those of the other phase stay.
            step: the step that the run resumes from.

        Raises:
            TrainingError: a line is not JSON, or the file cannot be written.
        """
        kept: list[dict[str, Any]] = []
        dropped: list[dict[str, Any]] = []
        for record in read_metrics(self._workdir):
            again = record["phase"] == phase and record["step"] > step
            (dropped if again else kept).append(record)
        temporary = self._path.with_suffix(".jsonl.tmp")
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(record) + "\n" for record in kept)
                file.flush()
                os.fsync(file.fileno())
            self._file.close()
            os.replace(temporary, self._path)
            self._file = self._open()
            for sink in self._sinks:
                sink.rewind(phase, step, dropped)
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Closes the file and the sinks."""
        self._file.close()
        for sink in self._sinks:
            sink.close()

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

    def show_masks(
        self, step: int, matrices: Mapping[str, np.ndarray], *, prefix: str = "student"
    ) -> None:
        """Shows nothing."""

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
