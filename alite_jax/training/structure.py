"""What a configuration's structured pruning means for one network."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alite_jax.analysis.layers import trace_layers
from alite_jax.analysis.widths import Plan, plan_widths, units_of
from alite_jax.errors import ConfigError
from alite_jax.models.resnet import ResNet
from alite_jax.sparsity import channels
from alite_jax.sparsity.masks import is_prunable
from alite_jax.sparsity.methods import find_method
from alite_jax.sparsity.rewiring import move_within


@dataclass(frozen=True)
class Structure:
    """How many channels and heads stay.

    Attributes:
        kind: a key of `channels.STRUCTURES`, not `"none"`.
        counts: units of each set of a group, by the group's name.
        plan: the widths that they make, and their cost.
        only: whether every weight within them stays; otherwise weights are pruned too.
    """

    kind: str
    counts: Mapping[str, int]
    plan: Plan
    only: bool

    def start(
        self, key: jax.Array, params: Any, masks: Any, method: str, trained: bool
    ) -> Any:
        """Brings masks within units that are chosen here.

        Args:
            key: PRNG key.
            params: parameters.
            masks: of the structure of `params`; their number of weights stays.
            method: `pruning.method`.
            trained: whether parameters mean something: then the largest units are
                chosen and the largest weights, otherwise they are drawn.

        Returns:
            New masks.
        """
        groups = channels.unit_groups(params, self.kind)
        counts = channels.unit_counts(groups, self.counts, np.zeros(1))[0]
        units_key, weights_key = jax.random.split(key)
        units = channels.draw_units(
            units_key, groups, jnp.array(counts), params if trained else None
        )
        # Masks that never change have no last change.
        never = not find_method(method).changes
        allowed = channels.allowed_masks(groups, units, params, never)
        if self.only:
            return allowed
        return move_within(
            params, params, masks, allowed, weights_key, drawn=not trained
        )


def create_structure(
    config: Any, model: ResNet, image_shape: tuple[int, int, int]
) -> Structure | None:
    """Works out the structure of the student; None where there is none.

    Args:
        config: the whole configuration.
        model: the student.
        image_shape: (height, width, channels).

    Raises:
        ConfigError: it cannot be reached, or leaves fewer weights than the density.
    """
    pruning, density = config.pruning, config.student.density
    if pruning.structure == "none":
        return None
    plan = plan_widths(
        model, image_shape, pruning.structure, pruning.macs, pruning.multiple
    )
    left, whole = (
        _weights(network, image_shape)
        for network in (model.clone(widths=plan.widths), model)
    )
    only = density == 1
    if not only and density * whole > left:
        raise ConfigError(
            f"student.density is {density:g}, but pruning.structure leaves"
            f" {left / whole:.3f} of the weights; set a lower density, or 1 to prune"
            " nothing else"
        )
    method = find_method(pruning.method)
    if not only and method.starts_dense and not method.trades:
        raise ConfigError(
            f"pruning.method {pruning.method!r} gives each layer a number of weights,"
            " for which pruning.structure may leave no room; use 'gradual_global'"
        )
    counts = units_of(plan.widths, model.block_names, pruning.structure)
    return Structure(pruning.structure, counts, plan, only)


def _weights(model: ResNet, image_shape: tuple[int, int, int]) -> int:
    """The number of prunable weights."""
    return sum(
        int(np.prod(shape))
        for layer in trace_layers(model, image_shape)
        for name, shape in layer.shapes.items()
        if is_prunable(f"{layer.path}/{name}")
    )
