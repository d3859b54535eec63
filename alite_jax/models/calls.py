"""How other people's modules are made and called, and what they may return."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from alite_jax.errors import ConfigError

# Arguments by which modules are told whether they are trained, and what each is then.
_MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


def call_with(function: Any, name: str, settings: Mapping[str, Any]) -> Any:
    """Calls a function or class with those of the settings that its signature names.

    Raises:
        ConfigError: it wants others, or fails.
    """
    wanted = arguments_of(function)
    takes_all = any(x.kind is x.VAR_KEYWORD for x in wanted.values())
    taken = {n: value for n, value in settings.items() if takes_all or n in wanted}
    try:
        return function(**taken)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{name} cannot be made: {' '.join(str(error).split())}; it is called with"
            f" those of {', '.join(settings)} and rngs that its signature names"
        ) from error


def arguments_of(function: Any) -> Mapping[str, inspect.Parameter]:
    """The arguments of a function, or of what makes an object of a class."""
    # The signature of an nnx class is that of its metaclass.
    call = function.__init__ if inspect.isclass(function) else function
    return inspect.signature(call).parameters


def mode_of(call: Callable[..., Any], name: str) -> dict[str, bool]:
    """The arguments of a call that say whether a module is trained.

    Raises:
        ConfigError: it needs others, besides the images.
    """
    images, *others = inspect.signature(call).parameters.values()
    needed = [
        p.name
        for p in others
        if p.default is p.empty
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        and p.name not in _MODES
    ]
    if needed:
        raise ConfigError(
            f"{name} is called with {', '.join([images.name, *needed])}, but a network"
            f" gets images, and at most one of {', '.join(_MODES)}; give the others"
            " defaults"
        )
    return {p.name: _MODES[p.name] for p in others if p.name in _MODES}


def in_mode(mode: Mapping[str, bool], train: bool) -> dict[str, bool]:
    """These arguments, for a call in training or not."""
    return {name: then == train for name, then in mode.items()}


def as_logits(output: Any, name: str) -> jax.Array:
    """Checks the shape of logits, and makes them float32.

    Raises:
        ConfigError: it is no array of a row for each image.
    """
    if not hasattr(output, "ndim"):
        parts = f" of {len(output)}" if isinstance(output, tuple | list | dict) else ""
        raise ConfigError(
            f"{name} returns a {type(output).__name__}{parts}, but must return one"
            " array, the logits [batch, classes]; wrap it so that it does"
        )
    if output.ndim != 2 or not jnp.issubdtype(output.dtype, jnp.floating):
        raise ConfigError(
            f"{name} returns {output.dtype} of shape {tuple(output.shape)}, but logits"
            " are floats [batch, classes]"
        )
    return jnp.asarray(output, jnp.float32)
