"""The step that changes masks in the course of a training, as the method has it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from alite_jax.errors import ConfigError
from alite_jax.sparsity import channels
from alite_jax.sparsity.gradual import gradual_counts, prune
from alite_jax.sparsity.masks import apply_masks
from alite_jax.sparsity.methods import find_method
from alite_jax.sparsity.rewiring import move_within, rewire
from alite_jax.sparsity.schedules import RewiringSteps, prune_rate
from alite_jax.training.state import TrainState
from alite_jax.training.structure import Structure

RewireStep = Callable[..., TrainState]

_UNITS = 1  # What the key of a change is for, folded into it, besides weights.


def rewiring_steps(config: Any, steps_per_epoch: int) -> RewiringSteps:
    """When the masks of the student change.

    Args:
        config: the whole configuration.
        steps_per_epoch: optimizer steps in an epoch.
    """
    pruning = config.pruning
    return RewiringSteps(
        total=config.student.epochs * steps_per_epoch,
        every=pruning.every_steps or steps_per_epoch,
        stop_fraction=pruning.stop_fraction,
    )


def check_rewiring_steps(config: Any, steps: RewiringSteps) -> None:
    """Checks that masks change at all where the method says that they do.

    Args:
        config: the whole configuration.
        steps: from `rewiring_steps`.

    Raises:
        ConfigError: there is no such step.
    """
    pruning = config.pruning
    method = find_method(pruning.method)
    if not method.changes or steps.last > 0:
        return
    if pruning.structure != "none":
        what = f"structure {pruning.structure!r} prunes"
    elif config.student.density == 1:
        return
    elif method.starts_dense:
        what = f"method {pruning.method!r} prunes"
    else:
        what = f"method {pruning.method!r} changes masks"
    raise ConfigError(
        f"pruning.{what} every {steps.every} steps, but the student's {steps.total}"
        f" steps up to pruning.stop_fraction = {pruning.stop_fraction:g} have no such"
        " step before the last one; set pruning.every_steps lower, or student.epochs or"
        " pruning.stop_fraction higher"
    )


def make_rewire_step(
    config: Any,
    steps: RewiringSteps,
    key: jax.Array,
    gradients: Callable[..., Any] | None = None,
    structure: Structure | None = None,
) -> RewireStep:
    """Builds the change of the masks.

    Args:
        config: the whole configuration, of which `pruning` and `student.density` count.
        steps: after which of them it happens.
        key: PRNG key; the step is folded into it.
        gradients: of the joint step, for methods that go by them.
        structure: of the network, if its masks have one.

    Returns:
        `rewire_step(state, *inputs) -> state` with new masks, applied to the
        parameters; `inputs` are the teacher's variables and the batch of the step that
        was just taken, for `gradients`. A weight that went out keeps its
        momentum and may come back; one that came in has its own, or none where the
        method says so.
    """
    pruning = config.pruning
    method = find_method(pruning.method)

    def change(state: TrainState) -> jax.Array:
        """Which change of the masks this is, from 0 on."""
        return jnp.clip(state.step // steps.every, 1, steps.last // steps.every) - 1

    def pruned(state: TrainState, momentum: Any, allowed: Any) -> Any:
        shapes = [m.shape for m in jax.tree.leaves(state.masks) if m.ndim > 0]
        counts = gradual_counts(
            shapes, config.student.density, pruning.distribution, steps.remaining()
        )
        now = jnp.array(counts)[change(state)]
        if allowed is None:
            return prune(state.params, state.masks, now, pruning.method)
        # What is outside goes first. What goes too much with it grows back within.
        within = apply_masks(allowed, state.params)
        masks = prune(within, state.masks, now, pruning.method)
        return move_within(within, momentum, masks, allowed, key, drawn=False)

    def within_units(state: TrainState, scores: Any, rate: Any) -> Any:
        """Masks of what the units leave that stay or come."""
        assert structure is not None
        groups = channels.unit_groups(state.params, structure.kind)
        only_falls = method.starts_dense
        remaining = steps.remaining() * only_falls
        counts = channels.unit_counts(groups, structure.counts, remaining)
        units = channels.rewire_units(
            groups,
            state.params,
            scores,
            state.masks,
            jnp.array(counts)[change(state)],
            rate,
            jax.random.fold_in(jax.random.fold_in(key, state.step), _UNITS),
            pruning.method,
        )
        cut_makers = only_falls | (state.step >= steps.last)
        return channels.allowed_masks(groups, units, state.params, cut_makers)

    def rewire_step(state: TrainState, *inputs: Any) -> TrainState:
        rate = prune_rate(
            steps.progress(state.step),
            pruning.prune_rate,
            pruning.prune_rate_end,
            pruning.prune_rate_schedule,
        )
        scores = momentum = optax.tree_utils.tree_get(state.opt_state, "trace")
        if method.by_gradient:
            assert gradients is not None
            # At the new weights, but with the views, alpha and temperature of the step
            # that was just taken.
            taken = dataclasses.replace(state, step=state.step - 1)
            scores, *_ = gradients(taken, *inputs)
        allowed = None if structure is None else within_units(state, scores, rate)
        if structure is not None and structure.only:
            masks = allowed
        elif method.starts_dense:
            masks = pruned(state, momentum, allowed)
        else:
            masks = rewire(
                state.params,
                scores,
                state.masks,
                rate,
                jax.random.fold_in(key, state.step),
                pruning.method,
                allowed=allowed,
            )
        if method.fresh_momentum:
            kept = jax.tree.map(lambda old, new: old | ~new, state.masks, masks)
            opt_state = optax.tree_utils.tree_set(
                state.opt_state, trace=apply_masks(kept, momentum)
            )
            state = dataclasses.replace(state, opt_state=opt_state)
        params = apply_masks(masks, state.params)
        return dataclasses.replace(state, masks=masks, params=params)

    return rewire_step
