"""What a configuration may hold: the type of each field and the limits of its values.

Types come from the default configuration, so a new field needs no entry here; limits
are the table below, and names such as those of the models are in tables of their own.
"""

import math
import numbers
import os
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatch
from typing import Any, NamedTuple

from alite_jax.errors import ConfigError, nearest
from alite_jax.registry import Registry

TYPE_NAMES = {
    bool: "true or false (bool)",
    int: "a whole number (int)",
    float: "a finite number (float)",
    str: "a text (str)",
    tuple: "a tuple of whole numbers such as 80,120",
}


class Limit(NamedTuple):
    """A condition on every field whose dotted name matches `pattern`."""

    pattern: str
    holds: Callable[[Any], bool]
    requirement: str


LIMITS = (
    Limit("seed", lambda v: v >= 0, "at least 0"),
    Limit("data.*batch_size", lambda v: v >= 1, "at least 1"),
    Limit("data.image_size", lambda v: v >= 0, "at least 0 (0 keeps the native size)"),
    Limit("data.workers", lambda v: v >= 0, "at least 0 (0: one a processor)"),
    Limit("data.crop_padding", lambda v: v >= 0, "at least 0 (0 turns crops off)"),
    Limit("data.crop_area", lambda v: 0 < v <= 1, "above 0 and at most 1"),
    Limit("data.crop_aspect", lambda v: v >= 1, "at least 1"),
    Limit("*.width", lambda v: v >= 1, "at least 1"),
    Limit("*.epochs", lambda v: v >= 1, "at least 1"),
    Limit("student.kernel_size", lambda v: v >= 1 and v % 2 == 1, "odd and at least 1"),
    Limit("student.heads", lambda v: v >= 1, "at least 1"),
    Limit(
        "student.density",
        lambda v: 0 < v <= 1,
        "above 0 and at most 1, the fraction of weights that is kept",
    ),
    Limit("*.optimizer.learning_rate", lambda v: v > 0, "above 0"),
    Limit("*.optimizer.momentum", lambda v: 0 <= v < 1, "at least 0 and below 1"),
    Limit("*.optimizer.weight_decay", lambda v: v >= 0, "at least 0"),
    Limit("*.optimizer.clip_norm", lambda v: v >= 0, "at least 0 (0 turns it off)"),
    Limit("*.optimizer.warmup_epochs", lambda v: v >= 0, "at least 0"),
    Limit("*.optimizer.step_factor", lambda v: 0 < v <= 1, "above 0 and at most 1"),
    Limit(
        "*.optimizer.label_smoothing", lambda v: 0 <= v < 1, "at least 0 and below 1"
    ),
    Limit("pruning.every_steps", lambda v: v >= 0, "at least 0 (0: epoch ends)"),
    Limit("pruning.stop_fraction", lambda v: 0 < v <= 1, "above 0 and at most 1"),
    Limit("pruning.prune_rate", lambda v: 0 <= v <= 1, "between 0 and 1"),
    Limit("pruning.prune_rate_end", lambda v: 0 <= v <= 1, "between 0 and 1"),
    Limit("pruning.macs", lambda v: 0 < v <= 1, "above 0 and at most 1"),
    Limit("pruning.multiple", lambda v: v >= 1, "at least 1"),
    Limit("distillation.alpha", lambda v: 0 <= v <= 1, "between 0 and 1"),
    Limit("distillation.temperature", lambda v: v > 0, "above 0"),
    Limit("distillation.alpha_end", lambda v: v <= 1, "at most 1 (below 0: stays)"),
    Limit("distillation.temperature_end", lambda v: v >= 0, "at least 0 (0: stays)"),
    Limit("distillation.*_dkd", lambda v: v >= 0, "at least 0"),
    Limit("distillation.feature_weight", lambda v: v >= 0, "at least 0 (0 is off)"),
    Limit("compute.accumulation", lambda v: v >= 1, "at least 1"),
    Limit("logging.profile_steps", lambda v: v >= 0, "at least 0 (0 traces none)"),
    Limit("logging.every_steps", lambda v: v >= 1, "at least 1"),
    Limit("checkpoint.every_steps", lambda v: v >= 0, "at least 0 (0: epoch ends)"),
    Limit("checkpoint.keep", lambda v: v >= 1, "at least 1"),
)


def choices() -> dict[str, Collection[str]]:
    """Returns the names that a field may hold, by dotted name, from their own tables.

    The tables are imported here and not above, so that a mistake in a command line is
    found before JAX is loaded.
    """
    from alite_jax.data.augment import VIEWS
    from alite_jax.models.configured import STEM_CHOICES
    from alite_jax.ops.local_attention import BORDERS
    from alite_jax.schedules import SCHEDULES
    from alite_jax.sparsity.distributions import DISTRIBUTIONS
    from alite_jax.structure.units import STRUCTURES

    # TFDS knows more data sets than any table.
    registered = {k: v for k, v in registries().items() if k != "data.name"}
    return registered | {
        "data.loading": ("auto", "memory", "stream"),
        "data.view": VIEWS,
        "teacher.stem": STEM_CHOICES["teacher"],
        "teacher.optimizer.schedule": ("cosine", "steps"),
        "student.border": BORDERS,
        "student.stem": STEM_CHOICES["student"],
        "student.optimizer.schedule": ("cosine", "steps"),
        "pruning.distribution": DISTRIBUTIONS,
        "pruning.structure": STRUCTURES,
        "pruning.prune_rate_schedule": SCHEDULES,
        "distillation.schedule": SCHEDULES,
        "compute.dtype": ("float32", "bfloat16"),
        "compute.batch_norm": ("global", "device"),
    }


def registries() -> dict[str, Registry[Any]]:
    """Returns the tables that other packages may add names to, by dotted name."""
    from alite_jax.data import registered as data
    from alite_jax.distillation import LOSSES
    from alite_jax.models import registered as models
    from alite_jax.sparsity.methods import METHODS

    return {
        "data.name": data.KNOWN,
        "teacher.model": models.KNOWN,
        "student.model": models.KNOWN,
        "pruning.method": METHODS,
        "distillation.loss": LOSSES,
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


def check_names(keys: Mapping[str, object], default: Mapping[str, object]) -> None:
    """Checks that every dotted name is a field of the default configuration.

    Args:
        keys: dotted names to check (only the keys are read).
        default: dotted names and values of the default configuration.

    Raises:
        ConfigError: a name is unknown; the sentence gives the nearest valid ones.
    """
    for key in keys:
        if key in default:
            continue
        fields = [name for name in default if name.startswith(f"{key}.")]
        if fields:
            raise ConfigError(
                f"{key} is a section of the configuration, set one of its fields, "
                f"such as {fields[0]}"
            )
        raise ConfigError(f"unknown field {key!r}; {_nearest_fields(key, default)}")


def _nearest_fields(key: str, default: Mapping[str, object]) -> str:
    """Narrows the valid names first, so that an error never lists all the fields."""
    leaf = key.rpartition(".")[2]
    same_leaf = [name for name in default if name.rpartition(".")[2] == leaf]
    close = nearest(key, same_leaf or default)
    if same_leaf or close.startswith("did you mean"):
        return close
    section = key.partition(".")[0]
    in_section = [name for name in default if name.startswith(f"{section}.")]
    return nearest(key, in_section or {name.partition(".")[0] for name in default})


def check_values(values: Mapping[str, Any]) -> None:
    """Checks limits, choices, and fields that must fit one another.

    Args:
        values: every field's value by dotted name, already of the right type.

    Raises:
        ConfigError: a value is outside its limits; the sentence names the field, what
            it must be and what was found.
    """
    for key, value in values.items():
        for limit in LIMITS:
            if fnmatch(key, limit.pattern) and not limit.holds(value):
                raise ConfigError(f"{key} must be {limit.requirement}, found {value!r}")
    for key, names in choices().items():
        if values[key] not in names:
            raise ConfigError(
                f"{key} has no choice {values[key]!r}; {nearest(values[key], names)}"
            )
    for network in ("teacher", "student"):
        _check_schedule(network, values)
    if values["student.init_compact"] and not values["student.init_workdir"]:
        raise ConfigError(
            "student.init_compact is true, but student.init_workdir names no run whose"
            " student could be compacted; give it one"
        )


def _check_schedule(network: str, values: Mapping[str, Any]) -> None:
    epochs = values[f"{network}.epochs"]
    warmup = values[f"{network}.optimizer.warmup_epochs"]
    if warmup >= epochs:
        raise ConfigError(
            f"{network}.optimizer.warmup_epochs must be below {network}.epochs "
            f"({epochs}), found {warmup:g}"
        )
    steps = values[f"{network}.optimizer.step_epochs"]
    if values[f"{network}.optimizer.schedule"] != "steps":
        return
    ordered = list(steps) == sorted(set(steps))
    if not steps or not ordered or steps[0] < 1 or steps[-1] >= epochs:
        raise ConfigError(
            f"{network}.optimizer.step_epochs must be increasing epochs from 1 to "
            f"below {network}.epochs ({epochs}), found {steps}"
        )
    if steps[0] < warmup:
        raise ConfigError(
            f"{network}.optimizer.step_epochs must begin after the warm-up, whose "
            f"{network}.optimizer.warmup_epochs are {warmup:g}, found {steps}"
        )
