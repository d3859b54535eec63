"""What a configuration may hold: the limits of its values.

Limits are the table below; names such as those of the models are in tables of their
own.
"""

import re
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatch
from typing import Any, NamedTuple

from alite_jax.errors import ConfigError, nearest
from alite_jax.registry import Registry


class Limit(NamedTuple):
    """A condition on every field whose dotted name matches `pattern`."""

    pattern: str
    holds: Callable[[Any], bool]
    requirement: str


# Services that a run's metrics may go to.
TRACKERS = ("wandb", "trackio")

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
    Limit("*.optimizer.beta2", lambda v: 0 <= v < 1, "at least 0 and below 1"),
    Limit("teacher.image_size", lambda v: v >= 0, "at least 0 (0: the student's)"),
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
    Limit(
        "logging.trackers",
        lambda v: not v or set(v.split(",")) <= set(TRACKERS),
        "'', 'wandb', 'trackio' or both with a comma between them",
    ),
    Limit("logging.every_steps", lambda v: v >= 1, "at least 1"),
    Limit("checkpoint.every_steps", lambda v: v >= 0, "at least 0 (0: epoch ends)"),
    Limit("checkpoint.keep", lambda v: v >= 1, "at least 1"),
)


# Where a teacher comes from that is not trained in the run.
_GIVEN_TEACHERS = ("workdir", "weights", "module", "logits")
# `python` is whichever a program has handed to `train`.
OPTIMIZERS = ("sgd", "adamw", "python")


def choices() -> dict[str, Collection[str]]:
    """Returns the names that a field may hold, by dotted name, from their own tables.

    The tables are imported here and not above, so that a mistake in a command line is
    found before JAX is loaded.
    """
    from alite_jax.data.augment import NORMALIZATIONS, VIEWS
    from alite_jax.models.resnet import STEM_CHOICES
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
        "teacher.output": ("logits", "probabilities"),
        "teacher.normalization": ("auto", "dataset", *NORMALIZATIONS),
        "teacher.optimizer.name": OPTIMIZERS,
        "teacher.optimizer.schedule": ("cosine", "steps"),
        "student.border": BORDERS,
        "student.stem": STEM_CHOICES["student"],
        "student.optimizer.name": OPTIMIZERS,
        "student.optimizer.schedule": ("cosine", "steps"),
        "pruning.distribution": DISTRIBUTIONS,
        "pruning.structure": STRUCTURES,
        "pruning.prune_rate_schedule": SCHEDULES,
        "distillation.schedule": SCHEDULES,
        "compute.dtype": ("auto", "float32", "bfloat16"),
        "compute.matmul_precision": ("default", "high", "highest"),
        "compute.attention": ("auto", "blocked", "all_pairs"),
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


def given_teacher(config: Any) -> str:
    """The field that gives a teacher which is not trained in the run; `""` if none."""
    given = [name for name in _GIVEN_TEACHERS if config.teacher[name]]
    return f"teacher.{given[0]}" if given else ""


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
    given = [f"teacher.{name}" for name in _GIVEN_TEACHERS if values[f"teacher.{name}"]]
    if len(given) > 1:
        raise ConfigError(
            f"{' and '.join(given)} each give a teacher, but there is one; set all but"
            " one to ''"
        )
    if values["distillation.feature_weight"] and values["teacher.logits"]:
        raise ConfigError(
            "distillation.feature_weight compares maps, of which teacher.logits has"
            " none; set it to 0, or give the teacher itself"
        )
    try:
        re.compile(values["pruning.dense"])
    except re.error as error:
        raise ConfigError(
            f"pruning.dense is {values['pruning.dense']!r}, which is no regular"
            f" expression ({error}); '^head/' is one"
        ) from error
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
