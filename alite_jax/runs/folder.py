"""A run's folder: its configuration, its lock, its summary, and atomic writes."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alite_jax import config as config_lib
from alite_jax.config import override, run_config
from alite_jax.data.specs import DatasetSpec
from alite_jax.errors import CheckpointError, ConfigError, InUseError
from alite_jax.models.precision import computing_dtype
from alite_jax.runs.processes import by_first

# Fields that a run may change when it resumes: none of them changes its result.
FREE_FIELDS = (
    *("logging.", "checkpoint."),
    *("data.data_dir", "data.manual_dir", "data.folder"),
    *("data.loading", "data.workers"),
)

_DATASET = "dataset.json"
_LOCK = ".lock"  # A killed process leaves it; whether somebody holds it is what counts.

# Any of these in a folder means that something was computed there.
_RESULTS = ("teacher", "checkpoints", "summary.json")


@contextlib.contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Keeps other processes from working in a run's folder, which is made if missing.

    The system takes the lock back when a process ends, however it ends. Where a file
    system knows no locks, or the folder cannot be written, there is none.

    Raises:
        InUseError: another process is at work there.
    """
    with contextlib.ExitStack() as held:

        @by_first
        def take() -> None:
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                _lock(folder, held)

        take()
        yield


def _lock(folder: Path, held: contextlib.ExitStack) -> None:
    """Takes the lock, until what is `held` is let go."""
    path = folder / _LOCK
    while True:
        file = held.enter_context(path.open("a+"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise InUseError(
                f"another process is at work in {folder} ({file.read().strip()}): wait"
                " until it has ended, stop it, or use another --workdir"
            ) from error
        # The process that had it may have removed the file since it was opened.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
    held.callback(path.unlink, missing_ok=True)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()


def _has_begun(folder: Path) -> bool:
    """Whether a folder holds a run that can be resumed.

    Before its first checkpoint there is nothing to resume: a mistake that stopped a run
    at once must not keep the folder from the corrected command.
    """
    results = any((folder / name).exists() for name in _RESULTS)
    return results and (folder / run_config.FILE).exists()


@by_first
def settled(config: ConfigDict, folder: Path) -> ConfigDict:
    """Returns a configuration that leaves nothing to the machine, as runs record it.

    Args:
        config: the whole configuration. Where `compute.dtype` is `"auto"`, it becomes
            that of the run in `folder`, wherever that has begun, or without one what
            suits these devices.
        folder: of the run.
    """
    dtype: str = config.compute.dtype
    if dtype == "auto" and _has_begun(folder):
        dtype = run_config.read_config(folder).compute.dtype
    return override(config, {"compute.dtype": computing_dtype(dtype).name})


@by_first
def claim(folder: Path, config: ConfigDict) -> None:
    """Makes the run's folder, or checks that it belongs to this configuration.

    Args:
        folder: of the run.
        config: the whole configuration, `settled`, which is written there.

    Raises:
        ConfigError: the folder holds another run.
        CheckpointError: the folder cannot be written.
    """
    if not _has_begun(folder):
        text = run_config.to_json(run_config.recorded(config, folder))
        write_whole(folder / run_config.FILE, text)
        return
    before = run_config.absolute(run_config.read_config(folder))
    now = run_config.absolute(config)
    changed = [
        f"{name} (was {old!r}, is {new!r})"
        for name, (old, new) in config_lib.describe_difference(now, before).items()
        if not name.startswith(FREE_FIELDS)
        # What was moved without this run is somewhere else now.
        and not (name in run_config.OTHER_RUNS and old and not os.path.isdir(old))
    ]
    if changed:
        raise ConfigError(
            f"{folder} holds a run with another configuration: {', '.join(changed)};"
            " use another --workdir, or the settings of that run to resume it"
        )


read_config = by_first(run_config.read_config)


@by_first
def read_summary(folder: Path) -> dict[str, Any] | None:
    """Returns the content of `summary.json`, None where the run is not finished.

    Args:
        folder: of the run.

    Raises:
        CheckpointError: the file is damaged.
    """
    return _read(
        folder / "summary.json",
        "delete it and run the same command again, which makes it anew from the"
        " checkpoints",
    )


@by_first
def read_spec(folder: Path) -> DatasetSpec | None:
    """Returns what a run has recorded about its data set; None for one known by heart.

    Raises:
        CheckpointError: the file is damaged.
    """
    path, cure = folder / _DATASET, "put it back, or start again in another folder"
    fields = _read(path, cure)
    if fields is None:
        return None
    try:
        values: dict[str, Any] = {  # JSON has no tuples.
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields.items()
        }
        return DatasetSpec(**values)
    except (AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{path} does not describe a data set ({error}); {cure}"
        ) from error


def record_spec(folder: Path, spec: DatasetSpec) -> None:
    """Writes down what was read or measured about a run's data set.

    Raises:
        CheckpointError: the file cannot be written.
    """
    if spec.prepared:  # Else it is known by heart.
        text = json.dumps(dataclasses.asdict(spec), indent=2)
        write_whole(folder / _DATASET, text + "\n")


def read_card(folder: Path) -> dict[str, Any] | None:
    """Returns the card of a run's export, None where it was not exported.

    Args:
        folder: of the run.

    Raises:
        CheckpointError: the file is damaged.
    """
    return _read(folder / "export" / "card.json", "run --job=export again")


def _read(path: Path, cure: str) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); {cure}") from error
    return content


@by_first
def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all, and its folder if that is missing.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        temporary = path.with_suffix(".tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path} ({error.strerror}); choose a place that can be"
            " written, such as another --workdir, or free some space"
        ) from error
