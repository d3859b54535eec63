"""Configurations: found by name, given arguments, overridden, checked, compared.

A configuration is a locked `ml_collections.ConfigDict`. `configs/default.py` is the one
full list of its fields; every other file in `configs/` is a small diff on it. Command
line and Python go through the same functions, so an override means the same in both:

    get_config("cifar10:smoke,density=0.05", {"student.epochs": 3})
    get_config("configs/cifar10.py", ["data.batch_size=64", {"pruning": {...}}])
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from alite_jax.config import validation
from alite_jax.config.files import (
    call_file,
    config_directory,
    config_names,
    load_config_file,
)
from alite_jax.config.types import convert
from alite_jax.errors import ConfigError, nearest

__all__ = [
    "ARGUMENTS",
    "SMOKE",
    "Overrides",
    "apply_arguments",
    "config_names",
    "default_config",
    "describe_difference",
    "flatten",
    "get_config",
    "override",
    "split_argument",
    "validate",
]

Overrides = str | Mapping[str, Any] | Iterable[str | Mapping[str, Any]]

# What may follow the colon in `cifar10:density=0.05,epochs=20`, and the fields it sets.
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "student": ("student.model",),
    "teacher": ("teacher.model",),
    "density": ("student.density",),
    "kernel_size": ("student.kernel_size",),
    "border": ("student.border",),
    "stem": ("student.stem",),
    "width": ("teacher.width", "student.width"),
    "teacher_width": ("teacher.width",),
    "epochs": ("teacher.epochs", "student.epochs"),
    "batch_size": ("data.batch_size",),
    "image_size": ("data.image_size",),
    "method": ("pruning.method",),
    "seed": ("seed",),
}

# `smoke` runs all of it (teacher, joint pass, one rewiring) in a minute or two on
# 2 cores, most of which is compilation.
SMOKE: dict[str, Any] = {
    "data.batch_size": 64,
    "data.eval_batch_size": 64,
    "teacher.model": "resnet26",
    "teacher.width": 8,
    "teacher.epochs": 1,
    "teacher.optimizer.warmup_epochs": 0.5,
    "student.width": 8,
    "student.epochs": 2,
    "student.optimizer.warmup_epochs": 0.5,
    "logging.every_steps": 2,
    "logging.note": "This was a smoke run, so small that its figures mean nothing.",
}


def get_config(
    name_or_path: str = "digits", overrides: Overrides | None = None
) -> ConfigDict:
    """Loads a configuration by name or from a file.

    Args:
        name_or_path: a name in `configs/` such as `"cifar10"`, or the path of a Python
            file that defines `get_config`; arguments follow a colon, as in
            `"cifar10:smoke,density=0.05"` (`ARGUMENTS` and `smoke`).
        overrides: as for `override`, applied last.

    Returns:
        A locked, validated configuration.

    Raises:
        ConfigError: the file, an argument, a field or a value is wrong.

    Example:
        >>> small = alite_jax.get_config("digits:smoke", {"student.density": 0.05})
        >>> small.student.density, small.teacher.model
        (0.05, 'resnet26')
    """
    name, _, argument = str(name_or_path).partition(":")
    config = call_file("config", name, argument, ConfigDict)
    return override(config, overrides)


def default_config() -> ConfigDict:
    """Returns a fresh copy of the full list of fields in `configs/default.py`."""
    config: ConfigDict = load_config_file(
        config_directory() / "default.py"
    ).get_config()
    return config.lock()


def apply_arguments(
    config: ConfigDict, argument: str = "", smoke: Mapping[str, Any] | None = None
) -> ConfigDict:
    """Applies the text after the colon of `--config=configs/cifar10.py:text`.

    Args:
        config: the configuration of the file, left unchanged.
        argument: comma-separated `name=value` pairs and the bare word `smoke`.
        smoke: what this file's `smoke` sets besides `SMOKE`, by dotted name.

    Returns:
        A new configuration; explicit arguments win over `smoke` in any order.

    Raises:
        ConfigError: an argument is unknown or its value is wrong.
    """
    overrides: dict[str, Any] = {}
    items = [item.strip() for item in argument.split(",") if item.strip()]
    if "smoke" in items:
        overrides |= SMOKE | dict(smoke or {})
    for item in items:
        name, equals, value = item.partition("=")
        if item == "smoke":
            continue
        if name not in ARGUMENTS:
            raise ConfigError(
                f"unknown config argument {item!r}; "
                f"{nearest(name, [*ARGUMENTS, 'smoke'])}"
            )
        if not equals:
            raise ConfigError(
                f"config argument {name!r} needs a value, as in {name}=..."
            )
        overrides |= dict.fromkeys(ARGUMENTS[name], value)
        if name == "epochs":
            overrides |= _shorter_warmup(config, value)
    return override(config, overrides)


def split_argument(argument: str) -> tuple[str, str]:
    """Splits `PATH,width=16,smoke` into what comes first and the arguments behind it.

    What comes first may have commas of its own.
    """
    items = argument.split(",")
    count = len(items)
    while count:
        name, equals, _ = items[count - 1].partition("=")
        if items[count - 1] != "smoke" and not (equals and name in ARGUMENTS):
            break
        count -= 1
    return ",".join(items[:count]), ",".join(items[count:])


def _shorter_warmup(config: ConfigDict, epochs: str) -> dict[str, float]:
    """Cuts a warm-up to a fifth of the epochs, so that `epochs=3` just works."""
    count = convert("epochs", epochs, 1)
    return {
        f"{network}.optimizer.warmup_epochs": min(
            config[network].optimizer.warmup_epochs, max(count, 0) / 5
        )
        for network in ("teacher", "student")
    }


def override(config: ConfigDict, overrides: Overrides | None) -> ConfigDict:
    """Returns a copy with some fields changed; the input stays as it is.

    Args:
        config: any configuration with the fields of `configs/default.py`.
        overrides: a mapping with dotted names (`{"student.density": 0.05}`), nested
            mappings (`{"student": {"density": 0.05}}`), texts (`"student.density=0.05"`
            or a list of them), or a list that mixes these; the last one wins. A text
            is read as the type of its field: `1e2` is a whole number for an int field.

    Returns:
        A new locked, validated configuration.

    Raises:
        ConfigError: a name is unknown (with the nearest ones), or a value has the wrong
            type or lies outside its limits.

    Example:
        >>> changes = ["student.epochs=40", {"pruning": {"method": "rigl"}}]
        >>> changed = alite_jax.override(config, changes)
        >>> changed.student.epochs, changed.pruning.method
        (40, 'rigl')
        >>> alite_jax.override(config, "student.densty=0.1")
        Traceback (most recent call last):
        alite_jax.errors.ConfigError: unknown field 'student.densty'; did you mean ...
    """
    values = flatten(config)
    changes = _collect(overrides)
    default = flatten(default_config())
    validation.check_names(changes, default)
    values |= changes
    _check(values, default)
    result = default_config()
    for key, value in values.items():
        _assign(result, key, convert(key, value, default[key]))
    return result


def validate(config: ConfigDict) -> None:
    """Checks that a configuration has exactly the known fields, types and limits.

    Args:
        config: the configuration, for example one changed by assignment.

    Raises:
        ConfigError: with one sentence about the first thing that is wrong.
    """
    _check(flatten(config), flatten(default_config()))


def describe_difference(
    config: ConfigDict, default: ConfigDict | None = None
) -> dict[str, tuple[Any, Any]]:
    """Lists the fields in which two configurations differ.

    Args:
        config: the configuration of a run.
        default: what to compare with; `configs/default.py` when left out.

    Returns:
        `{dotted name: (value in default, value in config)}`, sorted by name.
    """
    before = flatten(default_config() if default is None else default)
    after = flatten(config)
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }


def flatten(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """Returns `{dotted name: value}` of nested mappings or of a ConfigDict."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= {f"{key}.{name}": leaf for name, leaf in flatten(value).items()}
        else:
            flat[str(key)] = value
    return flat


def _collect(overrides: Overrides | None) -> dict[str, Any]:
    if overrides is None:
        return {}
    if isinstance(overrides, str):
        key, equals, value = overrides.partition("=")
        if not equals:
            raise ConfigError(f"override {overrides!r} must be written as key=value")
        return {key.strip(): value}
    if isinstance(overrides, Mapping | ConfigDict):
        return flatten(overrides)
    changes: dict[str, Any] = {}
    for item in overrides:
        changes |= _collect(item)
    return changes


def _check(values: Mapping[str, Any], default: Mapping[str, Any]) -> None:
    validation.check_names(values, default)
    missing = sorted(default.keys() - values.keys())
    if missing:
        raise ConfigError(
            f"the configuration lacks {missing[0]!r}, start from "
            "alite_jax.config.default_config()"
        )
    validation.check_values(
        {key: convert(key, values[key], default[key]) for key in default}
    )


def _assign(config: ConfigDict, key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        config = config[section]
    config[leaf] = value
