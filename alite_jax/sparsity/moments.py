"""The first moment of an optimizer: the mean direction in which each weight would go.

Rewiring grows the weights of the largest first moment, whichever optimizer keeps it:
`optax.trace` as `trace`, Adam and its kin as `mu`, others by other names. It is found
as what lies below such a name and has the parameters' paths and shapes, so that chains,
partitions (`optax.multi_transform`) and wrappers need no case of their own.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from alite_jax.errors import ConfigError

# What optax and `optax.contrib` call it.
_NAMES = {"trace", "mu", "m", "m1", "exp_avg", "ema", "momentum"}
_DECAY = 0.9  # of the mean that is kept where the optimizer keeps none


class WithMoment(NamedTuple):
    """The state of an optimizer that lacks first moments, and those beside it.

    Attributes:
        mu: means of the gradients, a pytree like the parameters; an `optax.MaskedNode`
            for what the optimizer keeps a first moment of itself.
        inner: the optimizer's own state.
    """

    mu: chex.ArrayTree
    inner: optax.OptState


def with_first_moment(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Gives a first moment to an optimizer that keeps none for some parameter.

    It is the exponential mean of the gradients of that parameter, by which updates do
    not change. Any other optimizer stays as it is, its state included, and so does one
    that comes from here.
    """
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: chex.ArrayTree) -> optax.OptState:
        state = optimizer.init(params)
        own = {of for _, of in _places(state, params)}
        leaves, structure = jax.tree.flatten(params)
        if len(own) == len(leaves):
            return state
        means = [
            optax.MaskedNode() if i in own else jnp.zeros_like(leaf)
            for i, leaf in enumerate(leaves)
        ]
        return WithMoment(jax.tree.unflatten(structure, means), state)

    def update(
        gradients: chex.ArrayTree,
        state: optax.OptState,
        params: chex.ArrayTree | None = None,
        **extra: Any,
    ) -> tuple[chex.ArrayTree, optax.OptState]:
        if not isinstance(state, WithMoment):
            return optimizer.update(gradients, state, params, **extra)
        mu = jax.tree.map(_mean, state.mu, gradients, is_leaf=_is_elsewhere)
        updates, inner = optimizer.update(gradients, state.inner, params, **extra)
        return updates, WithMoment(mu, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _mean(mean: chex.ArrayTree, gradient: chex.ArrayTree) -> chex.ArrayTree:
    if _is_elsewhere(mean):
        return mean
    # One gradient that overflowed, which the optimizer may skip, would stay for ever.
    finite = jnp.where(jnp.isfinite(gradient), gradient, jnp.zeros((), gradient.dtype))
    return (_DECAY * mean + (1 - _DECAY) * finite).astype(mean.dtype)


def _is_elsewhere(mean: chex.ArrayTree) -> bool:
    return isinstance(mean, optax.MaskedNode)


def first_moment(opt_state: optax.OptState, params: chex.ArrayTree) -> chex.ArrayTree:
    """Returns the first moment that an optimizer's state holds, a pytree like `params`.

    Raises:
        ConfigError: it holds none for some parameter; see `with_first_moment`.
    """
    leaves = jax.tree.leaves(opt_state)
    found: dict[int, jax.Array] = {}
    for place, of in _places(opt_state, params):
        found.setdefault(of, leaves[place])
    named, structure = jax.tree_util.tree_flatten_with_path(params)
    for i, (path, _) in enumerate(named):
        if i not in found:
            raise ConfigError(
                f"the optimizer keeps no first moment of {jax.tree_util.keystr(path)},"
                " by which masks change; wrap it with"
                " alite_jax.sparsity.moments.with_first_moment"
            )
    return jax.tree.unflatten(structure, [found[i] for i in range(len(named))])


def mask_first_moment(
    opt_state: optax.OptState, params: chex.ArrayTree, kept: chex.ArrayTree
) -> optax.OptState:
    """Returns an optimizer's state whose first moments are zero but where `kept`.

    Args:
        opt_state: of an optimizer of `params`.
        params: the parameters, or their shapes.
        kept: bool, of the structure of `params`; scalars are for a whole leaf.
    """
    leaves, structure = jax.tree.flatten(opt_state)
    wanted = jax.tree.leaves(kept)
    for place, of in _places(opt_state, params):
        moment = leaves[place]
        leaves[place] = jnp.where(wanted[of], moment, jnp.zeros((), moment.dtype))
    return jax.tree.unflatten(structure, leaves)


def _places(opt_state: optax.OptState, params: chex.ArrayTree) -> list[tuple[int, int]]:
    """Which leaves of a state are a first moment, and of which leaves of `params`."""
    named = jax.tree_util.tree_leaves_with_path(params)
    numbers = {path: i for i, (path, _) in enumerate(named)}
    places = []
    for place, (path, leaf) in enumerate(
        jax.tree_util.tree_leaves_with_path(opt_state)
    ):
        # The longest end of the path that is a parameter's: those may have names of
        # moments themselves.
        starts = (s for s in range(1, len(path) + 1) if path[s:] in numbers)
        start = next(starts, None)
        if start is None:
            continue
        of, entry = numbers[path[start:]], path[start - 1]
        name = getattr(entry, "name", getattr(entry, "key", None))
        if name in _NAMES and leaf.shape == named[of][1].shape:
            places.append((place, of))
    return places
