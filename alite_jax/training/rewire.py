"""The step that changes masks in the course of a training, as the method has it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
from ml_collections import ConfigDict

from alite_jax.errors import ConfigError
from alite_jax.sparsity.masks import Masks, Params, apply_masks, pruning_rules
from alite_jax.sparsity.methods import find_method
from alite_jax.sparsity.moments import first_moment
from alite_jax.sparsity.pruner import Pruner
from alite_jax.sparsity.schedules import RewiringSteps
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


def create_pruner(config: ConfigDict, steps: RewiringSteps) -> Pruner:
    """The pruner of the student of a configuration.

    Args:
        config: the whole configuration.
        steps: after which of them masks change.
    """
    pruning = config.pruning
    return Pruner(
        pruning.method,
        config.student.density,
        pruning.distribution,
        steps,
        prune_rate=pruning.prune_rate,
        prune_rate_end=pruning.prune_rate_end,
        prune_rate_schedule=pruning.prune_rate_schedule,
        rules=pruning_rules(pruning.dense),
    )


def make_rewire_step(
    pruner: Pruner,
    key: chex.PRNGKey,
    gradients: Callable[..., chex.ArrayTree] | None = None,
    structure: Structure | None = None,
) -> RewireStep:
    """Builds the change of the masks.

    Args:
        pruner: whose method and schedule it follows.
        key: PRNG key; the step is folded into it.
        gradients: of the joint step, for methods that go by them.
        structure: of the network, if its masks have one.

    Returns:
        `rewire_step(state, *inputs) -> state` with new masks, applied to the
        parameters; `inputs` are the teacher's variables and the batch of the step that
        was just taken, for `gradients`. See `Pruner.change`.
    """

    def rewire_step(state: TrainState, *inputs: Any) -> TrainState:
        given = None
        if gradients is not None:
            # At the new weights, but with the views, alpha and temperature of the step
            # that was just taken.
            taken = dataclasses.replace(state, step=state.step - 1)
            given = gradients(taken, *inputs)

        # Units come first: what stays of them is where weights may be.
        allowed = None
        if structure is not None:
            allowed = allowed_units(state, given, structure)

        if structure is not None and structure.keeps_all_weights:
            masks = allowed
            opt_state = pruner.renewed(
                state.opt_state, state.params, state.masks, masks
            )
        else:
            masks, opt_state = pruner.change(
                key,
                state.step,
                state.params,
                state.masks,
                state.opt_state,
                given,
                allowed,
            )
        params = apply_masks(masks, state.params)
        return dataclasses.replace(
            state, masks=masks, opt_state=opt_state, params=params
        )

    def allowed_units(
        state: TrainState, given: Params | None, structure: Structure
    ) -> Masks:
        """The weights that the units of this change leave."""
        method, steps = find_method(pruner.method), pruner.schedule
        assert steps is not None
        groups = unit_groups(state.params, structure.kind)
        # Where units come back, there are as few at the start as at the end.
        remaining = steps.remaining() * method.starts_dense
        counts = unit_counts(groups, structure.chosen.counts, remaining)
        step_key = jax.random.fold_in(key, state.step)
        units = rewire_units(
            groups,
            state.params,
            given if given is not None else first_moment(state.opt_state, state.params),
            state.masks,
            steps.of_change(counts, state.step),
            pruner.rate(state.step),
            jax.random.fold_in(step_key, _UNITS),
            pruner.method,
        )
        # Without producers no unit could come back.
        cut_producers = method.starts_dense | (state.step >= steps.last)
        return allowed_masks(groups, units, state.params, cut_producers)

    return rewire_step
