"""Structured masks: channels and heads of a block that come and go as one unit.

The norm of its consumers says what a unit is worth, the norm of their momentum what an
absent one would be: the channel variant of dynamic network rewiring (arXiv 2011.03083),
for units that span several kernels. Producers stay while masks change. Without
consumers they get no gradient, but what they compute gives the absent consumers theirs;
were both zero, neither would ever have one, and no unit could come back. They are cut
with the last change, or at once where nothing comes back.

Every layer keeps its number of units, so that its cost is known. All heads of a layer
keep equally many channels, and so do the halves of their queries and keys, which are
the same in all heads, since heads share their embeddings.

Everything here is pure, of static shape and jittable. Which slices of which arrays are
a unit says the table of `units`.
"""

from collections.abc import Mapping, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from alite_jax.sparsity.masks import Masks, Params, is_prunable
from alite_jax.sparsity.methods import find_method
from alite_jax.sparsity.selection import Layout
from alite_jax.structure.units import Group
from alite_jax.trees import named_leaves


def unit_counts(
    groups: Sequence[Group], counts: Mapping[str, int], remaining: np.ndarray
) -> np.ndarray:
    """The number of units that each set keeps after each change of the masks.

    Args:
        groups: of a network.
        counts: that each set of a group keeps at the end, by the group's name.
        remaining: `[changes]`, the share of what is to be pruned that is still there.

    Returns:
        int32 `[changes, sets]`, over the sets of all groups.
    """
    sets = _sets(groups)
    sizes = np.array([group.shape[1] for group in sets])
    target = np.array([counts[group.name] for group in sets])
    return (target + np.round(remaining[:, None] * (sizes - target))).astype(np.int32)


def draw_units(
    key: chex.PRNGKey,
    groups: Sequence[Group],
    counts: jax.Array,
    params: Params | None,
) -> list[jax.Array]:
    """Chooses units to start with: of each group bool `[sets, size]`.

    Args:
        key: PRNG key.
        groups: of a network.
        counts: `[sets]`, how many of each set.
        params: trained parameters, of which the units with the largest consumers are
            chosen, or None, which draws them.
    """
    layout = _layout(groups)
    if params is None:
        scores = jax.random.uniform(key, layout.shape, jnp.float32)
    else:
        scores = _pack(layout, consumer_norms(groups, params))
    return _unpack(groups, layout.top(_only_units(layout, scores), counts))


def rewire_units(
    groups: Sequence[Group],
    params: Params,
    scores: Params,
    masks: Masks,
    counts: jax.Array,
    prune_rate: jax.Array | float,
    key: chex.PRNGKey,
    method: str,
) -> list[jax.Array]:
    """Drops and regrows units, each set by itself: of each group bool `[sets, size]`.

    Args:
        groups: of a network.
        params: parameters, already masked.
        scores: as for `rewire`.
        masks: of the structure of `params`; a unit is active if any of its consumers
            is.
        counts: int32 `[sets]`, how many units each set keeps; may be traced.
        prune_rate: fraction of the active units to drop besides those too many.
        key: PRNG key for methods that draw.
        method: a key of `methods.METHODS`. Where nothing grows, units only go, and
            those too many alone.
    """
    layout = _layout(groups)
    active = _pack(layout, active_units(groups, masks))
    weights, momenta = (
        _pack(layout, consumer_norms(groups, tree)) for tree in (params, scores)
    )
    number = layout.sums(active)
    weights = jnp.where(active, weights, -jnp.inf)
    chosen = find_method(method)
    if chosen.grow is None:
        return _unpack(groups, layout.top(weights, jnp.minimum(counts, number)))
    dropped = jnp.ceil(prune_rate * number).astype(jnp.int32)
    kept = jnp.minimum(counts, jnp.maximum(number - dropped, jnp.minimum(number, 1)))
    survivors = layout.top(weights, kept)
    grow = jnp.where(survivors, -jnp.inf, chosen.grow(weights, momenta, key))
    newcomers = layout.top(_only_units(layout, grow), counts - kept)
    return _unpack(groups, survivors | newcomers)


def allowed_masks(
    groups: Sequence[Group],
    units: Sequence[jax.Array],
    params: Params,
    cut_producers: jax.Array | bool,
) -> Masks:
    """Masks of the weights that active units leave.

    Args:
        groups: of a network.
        units: those that are active, of each group bool `[sets, size]`.
        params: parameters, or their shapes.
        cut_producers: whether absent units lose their producers, too.
    """
    leaves = dict(named_leaves(params))
    allowed = {
        path: jnp.ones(leaf.shape if is_prunable(path, leaf) else (), bool)
        for path, leaf in leaves.items()
    }
    for group, active in zip(groups, units, strict=True):
        produced = active | ~jnp.asarray(cut_producers)
        for part in group.slices:
            if part.role != "follower":  # Those are never pruned.
                along = part.along(active if part.role == "consumer" else produced)
                others = [i for i in range(leaves[part.path].ndim) if i != part.axis]
                allowed[part.path] &= jnp.expand_dims(along, others)
    return jax.tree.unflatten(jax.tree.structure(params), list(allowed.values()))


def consumer_norms(groups: Sequence[Group], tree: Params) -> list[jax.Array]:
    """The Frobenius norm of each unit's consumers, of each group `[sets, size]`."""
    squares = dict(named_leaves(jax.tree.map(jnp.square, tree)))
    return [jnp.sqrt(group.consumed(squares)) for group in groups]


def active_units(groups: Sequence[Group], masks: Masks) -> list[jax.Array]:
    """Which units have any consumers, of each group bool `[sets, size]`."""
    kept = jax.tree.map(lambda mask: mask.astype(jnp.float32), masks)
    leaves = dict(named_leaves(kept))
    return [group.consumed(leaves) > 0 for group in groups]


def _layout(groups: Sequence[Group]) -> Layout:
    """One layer for each set."""
    return Layout(tuple(group.shape[1] for group in _sets(groups)))


def _sets(groups: Sequence[Group]) -> list[Group]:
    """Each group once for each of its sets."""
    return [group for group in groups for _ in range(group.shape[0])]


def _pack(layout: Layout, units: Sequence[jax.Array]) -> jax.Array:
    return layout.pack([row for of_group in units for row in of_group])


def _unpack(groups: Sequence[Group], matrix: jax.Array) -> list[jax.Array]:
    rows = iter(_layout(groups).unpack(matrix))
    return [jnp.stack([next(rows) for _ in range(group.shape[0])]) for group in groups]


def _only_units(layout: Layout, scores: jax.Array) -> jax.Array:
    """Keeps padding from being chosen."""
    units = layout.pack([jnp.ones(size, bool) for size in layout.sizes])
    return jnp.where(units, scores, -jnp.inf)
