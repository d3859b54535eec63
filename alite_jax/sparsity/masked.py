"""An optimizer that keeps absent weights at zero, by masks in its state."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from alite_jax.errors import ConfigError
from alite_jax.sparsity.masks import Masks, Params, dense_masks, is_pruned
from alite_jax.sparsity.moments import with_first_moment
from alite_jax.trees import named_leaves


class PrunerState(NamedTuple):
    """The state of a pruned optimizer.

    Attributes:
        step: int32 scalar, updates done.
        masks: of the structure of the parameters; see `alite_jax.sparsity.masks`.
        inner: the optimizer's own state, dense; see `with_first_moment`.
    """

    step: jax.Array
    masks: Masks
    inner: optax.OptState


def masked(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Lets an optimizer keep absent weights at zero; its state is a `PrunerState`.

    Its `init` gives masks that prune nothing: others are somebody else's to put there.
    Its `update` raises `ConfigError` without parameters, or where masks do not fit.
    """
    optimizer = with_first_moment(optimizer)

    def init(params: Params) -> PrunerState:
        start = dense_masks(params)
        return PrunerState(jnp.zeros((), jnp.int32), start, optimizer.init(params))

    def update(
        gradients: Params,
        state: PrunerState,
        params: Params | None = None,
        **extra: Any,
    ) -> tuple[Params, PrunerState]:
        if params is None:
            raise ConfigError(
                "a pruned optimizer needs the parameters to keep absent weights at"
                " zero: call update(gradients, state, params)"
            )
        _check_masks(state.masks, params)
        updates, inner = optimizer.update(gradients, state.inner, params, **extra)
        updates = jax.tree.map(_without_absent, state.masks, updates, params)
        return updates, PrunerState(state.step + 1, state.masks, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def pruner_state(state: optax.OptState) -> PrunerState:
    """The pruner's own part of an optimizer's state, however deep it lies; the first.

    Raises:
        ConfigError: there is none.
    """
    for part in jax.tree.leaves(state, is_leaf=_is_pruner_state):
        if _is_pruner_state(part):
            found: PrunerState = part
            return found
    raise ConfigError(
        "this optimizer's state holds no masks; it must come from the `init` of what"
        " Pruner.wrap returned"
    )


def with_dense_masks(state: optax.OptState) -> optax.OptState:
    """An optimizer's state of which every pruner's masks keep everything."""

    def of_part(part: Any) -> Any:
        if not _is_pruner_state(part):
            return part
        return part._replace(masks=dense_masks(part.masks))

    return jax.tree.map(of_part, state, is_leaf=_is_pruner_state)


def _without_absent(mask: jax.Array, update: jax.Array, param: jax.Array) -> jax.Array:
    """An update after which absent weights are zero, whatever they were before."""
    if not is_pruned(mask):
        return update
    # In the wider of both types, in which the sum is exactly zero.
    dtype = jnp.promote_types(update.dtype, param.dtype)
    return jnp.where(mask, update.astype(dtype), -param.astype(dtype))


def _is_pruner_state(part: Any) -> bool:
    return isinstance(part, PrunerState)


def _check_masks(masks: Masks, params: Params) -> None:
    """Raises `ConfigError` for masks of other parameters."""
    try:
        chex.assert_trees_all_equal_structs(masks, params)
    except AssertionError as error:
        theirs, ours = (
            {path for path, _ in named_leaves(tree)} for tree in (masks, params)
        )
        found = ", ".join(sorted(theirs ^ ours)[:3]) or "the kinds of their nodes"
        raise ConfigError(
            f"the masks are not of these parameters: they differ in {found}; take the"
            " state that init(params) gave for them"
        ) from error
    for (path, param), mask in zip(
        named_leaves(params), jax.tree.leaves(masks), strict=True
    ):
        if is_pruned(mask) and mask.shape != param.shape:
            raise ConfigError(
                f"the mask of {path} has shape {mask.shape}, but the parameter"
                f" {param.shape}; take the state that init(params) gave for it"
            )
