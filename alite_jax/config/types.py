"""The type of each field, that of its default, and how a text is read as it."""

import math
import numbers
import os
from typing import Any

from alite_jax.errors import ConfigError

TYPE_NAMES = {
    bool: "true or false (bool)",
    int: "a whole number (int)",
    float: "a finite number (float)",
    str: "a text (str)",
    tuple: "a tuple of whole numbers such as 80,120",
}


def convert(key: str, value: object, default: Any) -> Any:
    """Converts a value to the type of its field; a text is read as that type.

    Args:
        key: the dotted name of the field, for the error.
        value: what the user gave, for example the text `"1e2"` or the number 100.
        default: the field's value in the default configuration, which has its type.

    Returns:
        The value with exactly the type of `default`; lists become tuples.

    Raises:
        ConfigError: the value does not have that type.
    """
    value = plain(value)
    converted = _convert(value, default)
    if converted is None:
        raise ConfigError(
            f"{key} must be {TYPE_NAMES[type(default)]}, "
            f"found {_shown(value)} ({type(value).__name__})"
        )
    return converted


def plain(value: Any) -> Any:
    """Returns NumPy's and JAX's scalars and arrays as numbers, texts and lists.

    Args:
        value: of any type; lists and tuples may hold such scalars and arrays.
    """
    # NumPy is not imported for that: reading a configuration must not wait for it.
    if hasattr(value, "tolist") and not isinstance(value, type):
        value = value.tolist()
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return value


def _shown(value: object) -> str:
    """Returns a value as a person writes it, the beginning of a long one."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _convert(value: Any, default: Any) -> Any:
    """Returns the converted value, or None where it does not have the type."""
    if isinstance(default, str):
        if isinstance(value, str | os.PathLike):
            return str(os.fspath(value))
        return None
    if isinstance(default, tuple):
        return _convert_tuple(value, default[0] if default else 0)
    if isinstance(value, str):
        value = _read_number(value, is_bool=isinstance(default, bool))
    if isinstance(default, bool) or isinstance(value, bool):
        # A bool counts as an int in Python, but epochs=True is surely a mistake.
        return value if isinstance(default, bool) and isinstance(value, bool) else None
    if isinstance(default, int):
        return int(value) if isinstance(value, numbers.Integral) else None
    try:
        # The numbers' abstract types include fractions, and NumPy's long doubles.
        number = float(value) if isinstance(value, numbers.Real) else math.nan
    except OverflowError:  # A whole number of more than 308 digits.
        return None
    return number if math.isfinite(number) else None


def _read_number(text: str, *, is_bool: bool) -> object:
    """Reads a text as a bool or a number; a whole number such as 1e2 becomes an int."""
    text = text.strip()
    if is_bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower())
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() else number


def _convert_tuple(value: object, element: Any) -> tuple[Any, ...] | None:
    if isinstance(value, str):
        text = value.strip()
        if text[:1] + text[-1:] in ("()", "[]"):
            text = text[1:-1]
        value = [part for part in text.split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        return None
    converted = tuple(_convert(part, element) for part in value)
    return None if None in converted else converted
