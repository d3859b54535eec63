"""Paths that people give: every one of them goes through `user_path`."""

import os
from pathlib import Path

from alite_jax.errors import ConfigError


def user_path(text: str | os.PathLike[str]) -> Path:
    """Returns a path on this machine, `~` and `~name` replaced by that home folder.

    Args:
        text: as it was given, on a command line or in a configuration.

    Raises:
        ConfigError: it is a URL, there is no such home, or no system takes the path.
    """
    path = os.fspath(text)
    if is_url(path):
        raise ConfigError(
            f"{path} is no path on this machine: mount the bucket"
            " (docs/accelerators.md) and give the folder where it is mounted"
        )
    if "\0" in path:
        raise ConfigError(f"{path!r} is no path: it has a null character; leave it out")
    found = os.path.expanduser(path)
    if found.startswith("~"):
        raise ConfigError(
            f"{path} begins with a home folder that is not known here; write the whole"
            " path, or ./~ for a folder of that name"
        )
    return Path(found)


def printable(text: str) -> str:
    """Returns a text for people, since the name of a file in it need not be text."""
    return text.encode(errors="backslashreplace").decode()


def is_url(text: str | os.PathLike[str]) -> bool:
    """Whether a text names a place in a store such as `gs://bucket`."""
    return "://" in os.fspath(text)
