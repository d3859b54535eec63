"""A run's folder: whose it is, its result, and files that are whole or not there."""

import json
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alite_jax import config as config_lib
from alite_jax.errors import CheckpointError, ConfigError
from alite_jax.training.processes import by_first

# Fields that a run may change when it resumes: none of them changes its result.
FREE_FIELDS = (
    *("logging.", "checkpoint."),
    *("data.data_dir", "data.manual_dir", "data.on_device"),
)

# Any of these in a folder means that something was computed there.
_RESULTS = ("teacher", "checkpoints", "summary.json")


def run_folder(workdir: str | os.PathLike[str]) -> Path:
    """Returns the path of a run's folder.

    Raises:
        ConfigError: it is not on this machine.
    """
    text = os.fspath(workdir)
    if "://" in text:
        raise ConfigError(
            f"--workdir must be a folder, found {text}: mount the bucket (docs/tpu.md)"
            " and give the folder where it is mounted"
        )
    return Path(text)


@by_first
def claim(folder: Path, config: Any) -> None:
    """Makes the run's folder, or checks that it belongs to this configuration.

    Args:
        folder: of the run.
        config: the whole configuration, which is written there.

    Raises:
        ConfigError: the folder holds another run.
        CheckpointError: the folder cannot be written.
    """
    recorded = folder / "config.json"
    # Before its first checkpoint a run has nothing to resume: a mistake that stopped
    # it at once must not keep the folder from the corrected command.
    begun = any((folder / name).exists() for name in _RESULTS)
    if not begun or not recorded.exists():
        write_whole(recorded, config_lib.to_json(config))
        return
    before = read_config(folder)
    changed = [
        f"{name} (was {old!r}, is {new!r})"
        for name, (old, new) in config_lib.describe_difference(config, before).items()
        if not name.startswith(FREE_FIELDS)
    ]
    if changed:
        raise ConfigError(
            f"{folder} holds a run with another configuration: {', '.join(changed)};"
            " use another --workdir, or the settings of that run to resume it"
        )


@by_first
def read_config(folder: Path) -> ConfigDict:
    """Returns the configuration that a run has written into its folder.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    path = folder / "config.json"
    try:
        return config_lib.from_json(path.read_text())
    except (OSError, ConfigError) as error:
        raise ConfigError(f"{path} cannot be used: {error}") from error


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
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path} ({error.strerror}); choose a --workdir that can be"
            " written, or free some space"
        ) from error
