"""The step that changes masks in the course of a training, as the method has it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from alite_jax.errors import ConfigError
from alite_jax.sparsity.gradual import gradual_counts, prune
from alite_jax.sparsity.masks import Masks, Params, apply_masks, is_pruned
from alite_jax.sparsity.methods import find_method
from alite_jax.sparsity.rewiring import move_within, rewire
from alite_jax.sparsity.schedules import RewiringSteps, prune_rate
from alite_jax.structure.channels import allowed_masks, rewire_units, unit_counts
from alite_jax.structure.configured import Structure
from alite_jax.structure.units import unit_groups
from alite_jax.training.state import TrainState

RewireStep = Callable[..., TrainState]

_UNITS = 1  # What the key of a change is for, folded into it, besides weights.


def rewiring_steps(config: ConfigDict, steps_per_epoch: int) -> RewiringSteps:
    """When the masks of the student change."""
    pruning = config.pruning
    return RewiringSteps(
        total=config.student.epochs * steps_per_epoch,
        every=pruning.every_steps or steps_per_epoch,
        stop_fraction=pruning.stop_fraction,
    )


def check_rewiring_steps(config: ConfigDict, steps: RewiringSteps) -> None:
    """Checks that masks change at all where the method says that they do.

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
    config: ConfigDict,
    steps: RewiringSteps,
    key: chex.PRNGKey,
    gradients: Callable[..., chex.ArrayTree] | None = None,
    structure: Structure | None = None,
) -> RewireStep:
    """Builds the change of the masks.

    Args:
        config: the whole configuration.
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

    def rewire_step(state: TrainState, *inputs: Any) -> TrainState:
        # What absent weights and units would be worth: momentum is dense, so that they
        # have one, too.
        scores = momentum = optax.tree_utils.tree_get(state.opt_state, "trace")
        if method.by_gradient:
            assert gradients is not None
            # At the new weights, but with the views, alpha and temperature of the step
            # that was just taken.
            taken = dataclasses.replace(state, step=state.step - 1)
            scores = gradients(taken, *inputs)

        # The share that goes and comes back, where any comes back.
        rate = prune_rate(
            steps.progress(state.step),
            pruning.prune_rate,
            pruning.prune_rate_end,
            pruning.prune_rate_schedule,
        )
        step_key = jax.random.fold_in(key, state.step)

        # Units come first: what stays of them is where weights may be.
        allowed = None
        if structure is not None:
            groups = unit_groups(state.params, structure.kind)
            # Where units come back, there are as few at the start as at the end.
            remaining = steps.remaining() * method.starts_dense
            counts = unit_counts(groups, structure.chosen.counts, remaining)
            units = rewire_units(
                groups,
                state.params,
                scores,
                state.masks,
                of_change(counts, state.step),
                rate,
                jax.random.fold_in(step_key, _UNITS),
                pruning.method,
            )
            # Without producers no unit could come back.
            cut_producers = method.starts_dense | (state.step >= steps.last)
            allowed = allowed_masks(groups, units, state.params, cut_producers)

        # Then the weights, within that.
        if structure is not None and structure.keeps_all_weights:
            masks = allowed
        elif method.starts_dense:
            masks = fall(state, momentum, allowed)
        else:
            masks = rewire(
                state.params,
                scores,
                state.masks,
                rate,
                step_key,
                pruning.method,
                allowed=allowed,
            )

        # What came in may have gathered momentum while it was absent.
        if method.fresh_momentum:
            kept = jax.tree.map(lambda old, new: old | ~new, state.masks, masks)
            opt_state = optax.tree_utils.tree_set(
                state.opt_state, trace=apply_masks(kept, momentum)
            )
            state = dataclasses.replace(state, opt_state=opt_state)
        params = apply_masks(masks, state.params)
        return dataclasses.replace(state, masks=masks, params=params)

    def of_change(counts: np.ndarray, step: jax.Array) -> jax.Array:
        """Those of the change after a step, of `[changes, ...]`."""
        change = jnp.clip(step // steps.every, 1, steps.last // steps.every) - 1
        return jnp.array(counts)[change]

    def fall(state: TrainState, momentum: Params, allowed: Masks | None) -> Masks:
        """Masks that have fallen to the density of this change."""
        masks = jax.tree.leaves(state.masks)
        counts = gradual_counts(
            [mask.shape for mask in masks if is_pruned(mask)],
            config.student.density,
            pruning.distribution,
            steps.remaining(),
        )
        now = of_change(counts, state.step)
        if allowed is None:
            return prune(state.params, state.masks, now, pruning.method)
        # What is outside goes first. What goes too much with it grows back within.
        within = apply_masks(allowed, state.params)
        fallen = prune(within, state.masks, now, pruning.method)
        return move_within(within, momentum, fallen, allowed, key, drawn=False)

    return rewire_step
