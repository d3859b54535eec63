"""What a configuration's structured pruning means for one network."""

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alite_jax.counting.layers import parameter_shapes
from alite_jax.errors import ConfigError
from alite_jax.models.model import Model
from alite_jax.models.resnet import ResNet
from alite_jax.sparsity.masks import Masks, Params, is_prunable
from alite_jax.sparsity.methods import find_method
from alite_jax.sparsity.rewiring import move_within
from alite_jax.structure.channels import allowed_masks, draw_units, unit_counts
from alite_jax.structure.units import unit_groups
from alite_jax.structure.widths import ChosenWidths, choose_widths
from alite_jax.trees import named_leaves


@dataclass(frozen=True)
class Structure:
    """How many channels and heads stay.

    Attributes:
        kind: one of `units.STRUCTURES`, not `"none"`.
        chosen: how many units stay, the widths that they make, and what these cost.
        keeps_all_weights: whether every weight within these widths stays; otherwise
            weights are pruned too.
    """

    kind: str
    chosen: ChosenWidths
    keeps_all_weights: bool

    def start(
        self,
        key: chex.PRNGKey,
        params: Params,
        masks: Masks,
        method: str,
        trained: bool,
    ) -> Masks:
        """Brings masks within units that are chosen here; they keep their total.

        If the parameters are trained, the largest units are chosen and the largest
        weights; otherwise they are drawn.
        """
        groups = unit_groups(params, self.kind)
        counts = unit_counts(groups, self.chosen.counts, np.zeros(1))[0]
        units_key, weights_key = jax.random.split(key)
        units = draw_units(
            units_key, groups, jnp.array(counts), params if trained else None
        )
        # Masks that never change have no last change.
        never = not find_method(method).changes
        allowed = allowed_masks(groups, units, params, cut_producers=never)
        if self.keeps_all_weights:
            return allowed
        return move_within(
            params, params, masks, allowed, weights_key, drawn=not trained
        )


def compactable(model: Model, why: str) -> ResNet:
    """Returns a model whose coupled units are known.

    Args:
        model: any.
        why: this is asked for, the beginning of a sentence.

    Raises:
        ConfigError: they are not.
    """
    if not isinstance(model, ResNet):
        name = getattr(model, "name", type(model).__name__)
        raise ConfigError(
            f"{why}, but the blocks of {name} are not in the table of coupled channels"
            " (alite_jax.structure.units.BLOCKS), so that none can be cut out; prune"
            " its weights only"
        )
    return model


def create_structure(
    config: ConfigDict, model: Model, image_shape: tuple[int, int, int]
) -> Structure | None:
    """Works out the structure of the student, `model`; None where there is none.

    Raises:
        ConfigError: it cannot be reached, or leaves fewer weights than the density.
    """
    pruning, density = config.pruning, config.student.density
    if pruning.structure == "none":
        return None
    model = compactable(model, f"pruning.structure is {pruning.structure!r}")
    chosen = choose_widths(
        model, image_shape, pruning.structure, pruning.macs, pruning.multiple
    )
    if density == 1:
        return Structure(pruning.structure, chosen, keeps_all_weights=True)
    left = _weights(model.clone(widths=chosen.widths), image_shape)
    whole = _weights(model, image_shape)
    if density * whole > left:
        raise ConfigError(
            f"student.density is {density:g}, but pruning.structure leaves"
            f" {left / whole:.3f} of the weights; set a lower density, or 1 to prune"
            " nothing else"
        )
    method = find_method(pruning.method)
    if method.starts_dense and not method.trades:
        raise ConfigError(
            f"pruning.method {pruning.method!r} gives each layer a number of weights,"
            " for which pruning.structure may leave no room; use 'gradual_global'"
        )
    return Structure(pruning.structure, chosen, keeps_all_weights=False)


def _weights(model: ResNet, image_shape: tuple[int, int, int]) -> int:
    """The number of prunable weights."""
    shapes = named_leaves(parameter_shapes(model, image_shape))
    return sum(leaf.size for path, leaf in shapes if is_prunable(path, leaf))
