"""The step that changes masks in the course of a training, as the method has it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from alite_jax.errors import ConfigError
from alite_jax.sparsity.gradual import GRADUAL, gradual_counts, prune
from alite_jax.sparsity.masks import apply_masks
from alite_jax.sparsity.rewiring import METHODS, rewire
from alite_jax.sparsity.schedules import RewiringSteps, prune_rate
from alite_jax.training.state import TrainState

RewireStep = Callable[..., TrainState]


def starts_dense(method: str) -> bool:
    """Whether the masks of the start keep everything."""
    return method in GRADUAL


def needs_gradient(method: str) -> bool:
    """Whether a change of the masks looks at the loss's gradient."""
    chosen = METHODS.get(method)
    return chosen is not None and chosen.by_gradient


def rewiring_steps(config: Any, steps_per_epoch: int) -> RewiringSteps:
    """When the masks of the student change.

    Args:
        config: the whole configuration.
        steps_per_epoch: optimizer steps in an epoch.

    Raises:
        ConfigError: never, for a method that prunes by these changes.
    """
    pruning = config.pruning
    steps = RewiringSteps(
        total=config.student.epochs * steps_per_epoch,
        every=pruning.every_steps or steps_per_epoch,
        stop_fraction=pruning.stop_fraction,
    )
    if steps.last == 0 and config.student.density < 1 and starts_dense(pruning.method):
        raise ConfigError(
            f"pruning.method {pruning.method!r} prunes every {steps.every} steps, but"
            f" the student's {steps.total} steps up to pruning.stop_fraction ="
            f" {pruning.stop_fraction:g} have no such step before the last one; set"
            " pruning.every_steps lower, or student.epochs or pruning.stop_fraction"
            " higher"
        )
    return steps


def make_rewire_step(
    config: Any,
    steps: RewiringSteps,
    key: jax.Array,
    gradient: Callable[..., Any] | None = None,
) -> RewireStep:
    """Builds the change of the masks.

    Args:
        config: the whole configuration, of which `pruning` and `student.density` count.
        steps: after which of them it happens.
        key: PRNG key; the step is folded into it.
        gradient: the loss's gradient, a function of the same arguments; only for
            methods that need it.

    Returns:
        `rewire_step(state, *inputs) -> state` with new masks, applied to the
        parameters; `inputs` are for `gradient`. A weight that went out keeps its
        momentum and may come back; one that came in has its own, or none where the
        method says so.
    """
    pruning = config.pruning

    def pruned(state: TrainState) -> TrainState:
        shapes = [m.shape for m in jax.tree.leaves(state.masks) if m.ndim > 0]
        counts = gradual_counts(
            shapes, config.student.density, pruning.distribution, steps.remaining()
        )
        now = jnp.clip(state.step // steps.every, 1, len(counts)) - 1
        masks = prune(state.params, state.masks, jnp.array(counts)[now], pruning.method)
        return _with_masks(state, masks)

    def rewire_step(state: TrainState, *inputs: Any) -> TrainState:
        if pruning.method in GRADUAL:
            return pruned(state)
        rate = prune_rate(
            steps.progress(state.step),
            pruning.prune_rate,
            pruning.prune_rate_end,
            pruning.prune_rate_schedule,
        )
        scores = momentum = optax.tree_utils.tree_get(state.opt_state, "trace")
        if needs_gradient(pruning.method):
            assert gradient is not None
            scores = gradient(state, *inputs)
        masks = rewire(
            state.params,
            scores,
            state.masks,
            rate,
            jax.random.fold_in(key, state.step),
            pruning.method,
        )
        method = METHODS[pruning.method]
        if method is not None and method.fresh_momentum:
            kept = jax.tree.map(lambda old, new: old | ~new, state.masks, masks)
            opt_state = optax.tree_utils.tree_set(
                state.opt_state, trace=apply_masks(kept, momentum)
            )
            state = dataclasses.replace(state, opt_state=opt_state)
        return _with_masks(state, masks)

    return rewire_step


def _with_masks(state: TrainState, masks: Any) -> TrainState:
    params = apply_masks(masks, state.params)
    return dataclasses.replace(state, masks=masks, params=params)
