"""Errors that a person reads: one sentence with the place, the finding and the cure.

`launch.py` prints the sentence without a traceback and exits with status 2; from Python
they are ordinary exceptions.
"""

import difflib
from collections.abc import Iterable


class AliteError(Exception):
    """Base of every error that this project raises on purpose."""


class ConfigError(AliteError, ValueError):
    """A field, a name or a value of the configuration is wrong."""


class DataError(AliteError):
    """A data set is missing, incomplete or holds what it must not hold."""


class CheckpointError(AliteError):
    """A checkpoint cannot be written, or does not belong to this model."""


class InUseError(AliteError):
    """Another process is at work in the folder of a run."""


class TrainingError(AliteError):
    """Training cannot go on, for example because the loss is not finite."""


class PackedFileError(AliteError):
    """A network cannot be packed, or a packed file is damaged."""


class ArtefactError(AliteError):
    """A network cannot be exported, or what was exported cannot be used."""


class StoppedError(AliteError):
    """A signal asked a run to stop; all that it needs to go on is saved.

    Attributes:
        signal: its number; `launch.py` exits with 128 plus this.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message, signal)
        self.signal = signal

    def __str__(self) -> str:
        return str(self.args[0])


def check_is_list(name: str, values: object) -> None:
    """Refuses one text in the place of several, as it would be read letter by letter.

    Raises:
        ConfigError: it is a text.
    """
    if isinstance(values, str):
        raise ConfigError(
            f"{name} is the text {values!r}, but must be a list: write [{values!r}]"
        )


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error says, else its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns the valid names as a phrase for an error, the most similar ones first.

    Args:
        name: what the user wrote.
        valid: the names that exist.

    Returns:
        `"did you mean 'a' or 'b'?"` where something is similar, otherwise all names.
    """
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "valid names: " + ", ".join(names)
