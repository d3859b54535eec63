"""Gradual magnitude pruning (arXiv 1710.01878): from dense masks down to the density.

Each change of the masks keeps the largest of the weights that are still active; none
comes back. How many follows the cubic schedule, exactly. Pure, of static shape and
jittable.
"""

import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from alite_jax.sparsity.distributions import layer_counts
from alite_jax.sparsity.masks import apply_masks, is_pruned
from alite_jax.sparsity.methods import find_method
from alite_jax.sparsity.rewiring import move_within
from alite_jax.sparsity.selection import Layout


def gradual_counts(
    shapes: Sequence[tuple[int, ...]],
    density: float,
    distribution: str,
    remaining: np.ndarray,
) -> np.ndarray:
    """The number of weights that each layer keeps after each change of the masks.

    Args:
        shapes: of the prunable layers.
        density: kept fraction at the end, in (0, 1].
        distribution: how layers share it; see `layer_counts`.
        remaining: `[changes]`, the share of what is to be pruned that is still there.

    Returns:
        int32 `[changes, layers]`: at the end those of `layer_counts`, before it more by
        `remaining` of the others, rounded.

    Raises:
        ConfigError: see `layer_counts`.
    """
    sizes = np.array([math.prod(shape) for shape in shapes])
    target = np.array(layer_counts(shapes, density, distribution))
    extra = np.round(remaining[:, None] * (sizes - target))
    return (target + extra).astype(np.int32)


def prune(
    params: chex.ArrayTree,
    masks: chex.ArrayTree,
    counts: jax.Array,
    method: str = "gradual",
) -> chex.ArrayTree:
    """Keeps the largest active weights.

    Args:
        params: parameters, already masked.
        masks: pytree like `params`; see `alite_jax.sparsity.masks`.
        counts: int32 `[layers]`, the weights that each prunable layer keeps, in the
            order of the leaves; may be traced. What has fewer keeps them all.
        method: `"gradual"`, or `"gradual_global"`, for which only the sum of `counts`
            matters, except that every layer keeps its largest weight.

    Returns:
        New masks, subsets of the old ones; apply them to the parameters.

    Raises:
        ConfigError: if there is no such method.
    """
    everywhere = find_method(method).trades
    chex.assert_trees_all_equal_structs(params, masks)
    mask_leaves, structure = jax.tree.flatten(masks)
    prunable = [i for i, mask in enumerate(mask_leaves) if is_pruned(mask)]
    if not prunable:
        return masks
    layout = Layout(tuple(mask_leaves[i].size for i in prunable))
    weights, active = (
        layout.pack([leaves[i] for i in prunable])
        for leaves in (jax.tree.leaves(params), mask_leaves)
    )
    # Padding is not active.
    magnitude = jnp.where(active, jnp.abs(weights), -jnp.inf)
    nonzero = layout.sums(active)
    if everywhere:
        largest = layout.top(magnitude, jnp.minimum(nonzero, 1))
        magnitude = jnp.where(largest, jnp.inf, magnitude)
        layers = Layout((math.prod(layout.shape),))
        counts, nonzero = jnp.sum(counts)[None], jnp.sum(nonzero)[None]
    else:
        layers = layout
    kept = layout.unpack(layers.top(magnitude, jnp.minimum(counts, nonzero)))
    for i, mask in zip(prunable, kept, strict=True):
        mask_leaves[i] = mask.reshape(mask_leaves[i].shape)
    return jax.tree.unflatten(structure, mask_leaves)


def fall(
    key: chex.PRNGKey,
    params: chex.ArrayTree,
    scores: chex.ArrayTree,
    masks: chex.ArrayTree,
    counts: jax.Array,
    method: str,
    allowed: chex.ArrayTree | None = None,
) -> chex.ArrayTree:
    """As `prune`, within what is allowed.

    Args:
        key: PRNG key.
        params: see `prune`.
        scores: pytree like `params`, dense; see `move_within`.
        masks: see `prune`.
        counts: see `prune`.
        method: see `prune`.
        allowed: masks of the weights that may be kept; all of them when left out.
    """
    if allowed is None:
        return prune(params, masks, counts, method)
    # What is outside goes first. What goes too much with it grows back within.
    within = apply_masks(allowed, params)
    fallen = prune(within, masks, counts, method)
    return move_within(within, scores, fallen, allowed, key, drawn=False)
