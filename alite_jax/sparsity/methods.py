"""The methods of pruning: one table, and nothing else knows their names.

A method says with which masks a student starts, and what becomes of them at each
change: which weights go, which come, and whether layers trade. Adding one is one entry;
from another package, `register_method`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from alite_jax.errors import ConfigError, nearest
from alite_jax.registry import Given, Registry

Score = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def by_magnitude(weights: jax.Array, scores: jax.Array, key: jax.Array) -> jax.Array:
    """The size of the weights."""
    return jnp.abs(weights)


def by_score(weights: jax.Array, scores: jax.Array, key: jax.Array) -> jax.Array:
    """The size of the scores, which are momentum or gradient."""
    return jnp.abs(scores)


def at_random(weights: jax.Array, scores: jax.Array, key: jax.Array) -> jax.Array:
    """Anything, the same for the same key."""
    return jax.random.uniform(key, weights.shape, jnp.float32)


class Method(NamedTuple):
    """A way to prune.

    Attributes:
        changes: whether masks change at all in the course of a training.
        starts_dense: whether masks keep everything at the start and then fall to the
            density by the cubic schedule; otherwise they have it from the start.
        drop: score of each active weight from (weights, scores, key), arrays of one
            shape that hold all layers; the lowest of each layer go.
        grow: score of each absent weight from the same; the highest come. None where
            nothing comes back.
        trades: whether layers trade budget: by the mean absolute score of their active
            weights where something grows, otherwise by letting the weights of all
            layers compete. If not, each layer keeps what it has or is meant to have.
        by_gradient: whether the scores are the loss's gradient; otherwise they are the
            optimizer's momentum.
        fresh_momentum: whether weights that come in start without momentum; otherwise
            with that of the gradients that they had while absent.
        round_drop: makes a whole number of the weights to drop, as the method's own
            code does: up, or down.
    """

    changes: bool = True
    starts_dense: bool = False
    drop: Score = by_magnitude
    grow: Score | None = None
    trades: bool = False
    by_gradient: bool = False
    fresh_momentum: bool = False
    round_drop: Callable[[jax.Array], jax.Array] = jnp.ceil


_METHODS = {
    # arXiv 1907.04840
    "sparse_momentum": Method(grow=by_score, trades=True),
    # arXiv 1911.11134
    "rigl": Method(
        grow=by_score, by_gradient=True, fresh_momentum=True, round_drop=jnp.floor
    ),
    # arXiv 1707.04780
    "set": Method(grow=at_random, fresh_momentum=True, round_drop=jnp.floor),
    "static": Method(changes=False),
    # arXiv 1710.01878
    "gradual": Method(starts_dense=True),
    "gradual_global": Method(starts_dense=True, trades=True),
}


def _method(given: Any) -> Method:
    method = given() if callable(given) else given
    if not isinstance(method, Method):
        raise ConfigError(f"it is {method!r}, not an alite_jax.sparsity.methods.Method")
    return method


METHODS: Registry[Method] = Registry("method", "alite_jax.methods", _METHODS, _method)


def register_method(name: str) -> Callable[[Given], Given]:
    """A decorator that registers a way to prune for `pruning.method`.

    What is decorated is a function without arguments that returns a `Method`, or called
    with a `Method` itself: `register_method("mine")(Method(grow=by_score))`.

    Args:
        name: by which a configuration knows the method.

    Raises:
        ConfigError: something else has the name, or what is given is no method.

    Example:
        >>> from alite_jax.sparsity.methods import Method, by_score
        >>> @alite_jax.register_method("large_gradient")
        ... def large_gradient():
        ...     return Method(grow=by_score, by_gradient=True)
        >>> changed = alite_jax.override(config, "pruning.method=large_gradient")
        >>> changed.pruning.method
        'large_gradient'
    """
    return METHODS.register(name)


def find_method(name: str) -> Method:
    """Returns an entry of the table.

    Raises:
        ConfigError: there is no such method.
    """
    if name not in METHODS:
        raise ConfigError(f"the method is {name!r}; {nearest(name, METHODS)}")
    return METHODS[name]
