"""What a program hands to a job beside the configuration, which names it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import optax
from ml_collections import ConfigDict

from alite_jax.config import override
from alite_jax.errors import ConfigError
from alite_jax.imports import FROM_PYTHON

Optimizer: TypeAlias = (
    optax.GradientTransformation | Callable[[int], optax.GradientTransformation]
)


@dataclass(frozen=True)
class Given:
    """Networks and an optimizer that were made by a program.

    Attributes:
        student: see `alite_jax.models.foreign.foreign_model`.
        teacher: see `alite_jax.models.given.given_network`.
        optimizer: of the student: an optax transformation, or a function from the
            number of its steps to one.
    """

    student: Any = None
    teacher: Any = None
    optimizer: Optimizer | None = None

    def named(self, config: ConfigDict) -> ConfigDict:
        """The configuration that says what was given, as a run records it."""
        fields = {}
        for phase in ("student", "teacher"):
            source = getattr(self, phase)
            if source is not None:
                fields[f"{phase}.module"] = f"{FROM_PYTHON}:{_name(source)}"
        if self.optimizer is not None:
            fields["student.optimizer.name"] = "python"
        return override(config, fields)

    def create_optimizer(self, steps: int) -> optax.GradientTransformation | None:
        """The optimizer of a training of so many steps; None where none is given."""
        made: Any = self.optimizer
        if callable(made) and not hasattr(made, "update"):
            made = made(steps)
        if made is not None and not (hasattr(made, "init") and hasattr(made, "update")):
            raise ConfigError(
                f"optimizer is a {type(made).__name__}, but must be an optax"
                " transformation, or a function from the number of steps to one"
            )
        found: optax.GradientTransformation | None = made
        return found


def _name(source: Any) -> str:
    if isinstance(source, tuple) and source:
        source = source[0]
    return str(getattr(source, "__name__", type(source).__name__))


NOTHING = Given()
