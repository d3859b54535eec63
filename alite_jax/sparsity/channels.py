"""Structured masks: channels and heads of a block that come and go as one unit.

A unit has *makers*, the columns of kernels that compute it, and *takers*, the slices of
kernels that use it:

    kind      makers                           takers
    reduce    columns of `reduce`              rows of query, key and value, or of the
                                               convolution
    value     columns of value, or of the      rows of `expand`
              convolution
    qk        columns of key, in all heads     columns of query, in all heads
    head      columns of query, key, value     rows of `expand`

The norm of its takers says what a unit is worth, the norm of their momentum what an
absent one would be: the channel variant of dynamic network rewiring (arXiv 2011.03083),
for units that span several kernels. Makers stay while masks change. Without takers they
get no gradient, but what they make gives the absent takers theirs; were both zero,
neither would ever have one, and no unit could come back. They are cut with the last
change, or at once where nothing comes back.

Every layer keeps its number of units, so that its cost is known. All heads of a layer
keep equally many channels, and so do the halves of their queries and keys, which are
the same in all heads, since heads share their embeddings.

Everything here is pure, of static shape and jittable.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alite_jax.sparsity.masks import Masks, Params, is_prunable
from alite_jax.sparsity.methods import find_method
from alite_jax.sparsity.selection import Layout
from alite_jax.trees import named_leaves

# The kinds of units that `pruning.structure` stands for, with attention and with a
# convolution, which has neither heads nor queries.
STRUCTURES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "none": ((), ()),
    "channels": (("reduce", "value", "qk"), ("reduce", "value")),
    "heads": (("reduce", "head"), ("reduce", "value")),
}


class Slices(NamedTuple):
    """The slices of one parameter that belong to units.

    Attributes:
        path: of the parameter.
        axis: along which a slice has one index.
        view: what the axis is a product of, such as (heads, channels).
        units: the shape of the units within it, 1 where a unit has the whole factor.
        takes: whether these are takers; otherwise they are makers.
    """

    path: str
    axis: int
    view: tuple[int, ...]
    units: tuple[int, ...]
    takes: bool


class Group(NamedTuple):
    """The units of one kind in one block.

    Attributes:
        name: such as `"stage1_block1/value"`.
        shape: (sets, size); each set keeps the same number of its units.
        slices: what makes and what takes them.
    """

    name: str
    shape: tuple[int, int]
    slices: tuple[Slices, ...]


def unit_groups(params: Params, structure: str) -> tuple[Group, ...]:
    """The groups of a network.

    Args:
        params: its parameters, or their shapes.
        structure: a key of `STRUCTURES`.
    """
    groups = []
    for block in sorted(name for name in params if "spatial" in params[name]):
        attends = "query" in params[block]["spatial"]
        kinds = STRUCTURES[structure][0 if attends else 1]
        groups += [_group(block, params[block], kind) for kind in kinds]
    return tuple(groups)


def unit_counts(
    groups: Sequence[Group], counts: Mapping[str, int], remaining: np.ndarray
) -> np.ndarray:
    """The number of units that each set keeps after each change of the masks.

    Args:
        groups: from `unit_groups`.
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
    key: jax.Array, groups: Sequence[Group], counts: jax.Array, params: Params | None
) -> list[jax.Array]:
    """Chooses units to start with.

    Args:
        key: PRNG key.
        groups: from `unit_groups`.
        counts: `[sets]`, how many of each set.
        params: trained parameters, of which the units with the largest takers are
            chosen, or None, which draws them.

    Returns:
        Of each group bool `[sets, size]`.
    """
    layout = _layout(groups)
    if params is None:
        scores = jax.random.uniform(key, layout.shape, jnp.float32)
    else:
        scores = _pack(layout, _norms(groups, params))
    return _unpack(groups, layout.top(_only_units(layout, scores), counts))


def rewire_units(
    groups: Sequence[Group],
    params: Params,
    scores: Any,
    masks: Masks,
    counts: jax.Array,
    prune_rate: jax.Array | float,
    key: jax.Array,
    method: str,
) -> list[jax.Array]:
    """Drops and regrows units, each set by itself.

    Args:
        groups: from `unit_groups`.
        params: parameters, already masked.
        scores: as for `rewire`.
        masks: of the structure of `params`; a unit is active if any of its takers is.
        counts: int32 `[sets]`, how many units each set keeps; may be traced.
        prune_rate: fraction of the active units to drop besides those too many.
        key: PRNG key for methods that draw.
        method: a key of `methods.METHODS`. Where nothing grows, units only go, and
            those too many alone.

    Returns:
        Of each group bool `[sets, size]`.
    """
    layout = _layout(groups)
    active = _pack(layout, _taken(groups, masks)) > 0
    weights, momenta = (_pack(layout, _norms(groups, t)) for t in (params, scores))
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
    cut_makers: jax.Array | bool,
) -> Masks:
    """The weights that active units leave.

    Args:
        groups: from `unit_groups`.
        units: of each group bool `[sets, size]`.
        params: parameters, or their shapes.
        cut_makers: whether absent units lose their makers, too.

    Returns:
        Masks of the structure of `params`.
    """
    leaves = dict(named_leaves(params))
    allowed = {
        path: jnp.ones(leaf.shape if is_prunable(path) else (), bool)
        for path, leaf in leaves.items()
    }
    for group, active in zip(groups, units, strict=True):
        for part in group.slices:
            stays = active if part.takes else active | ~jnp.asarray(cut_makers)
            stays = jnp.broadcast_to(stays.reshape(part.units), part.view)
            others = [i for i in range(leaves[part.path].ndim) if i != part.axis]
            allowed[part.path] &= jnp.expand_dims(jnp.ravel(stays), others)
    return jax.tree.unflatten(jax.tree.structure(params), list(allowed.values()))


def _group(block: str, params: Any, kind: str) -> Group:
    spatial = params["spatial"]
    reduced = params["reduce"]["kernel"].shape[1]
    given = params["expand"]["kernel"].shape[0]
    reduce, expand = f"{block}/reduce/kernel", f"{block}/expand/kernel"
    if kind == "reduce":
        whole = (reduced,)
        takers = [f"{n}/kernel" for n in ("query", "key", "value") if n in spatial]
        axis = 0 if takers else 2
        slices = [
            Slices(f"{block}/spatial/{name}", axis, whole, whole, True)
            for name in takers or ["kernel"]
        ]
        slices.append(Slices(reduce, 1, whole, whole, False))
        return Group(f"{block}/{kind}", (1, reduced), tuple(slices))
    if "query" not in spatial:
        slices = [
            Slices(expand, 0, (given,), (given,), True),
            Slices(f"{block}/spatial/kernel", 3, (given,), (given,), False),
        ]
        return Group(f"{block}/{kind}", (1, given), tuple(slices))
    half = spatial["row_embeddings"].shape[1]
    heads = spatial["query"]["kernel"].shape[1] // (2 * half)
    query, key, value = (
        f"{block}/spatial/{name}/kernel" for name in ("query", "key", "value")
    )
    by_head, by_half = (heads, given // heads), (heads, 2, half)
    if kind == "value":
        slices = [
            Slices(expand, 0, by_head, by_head, True),
            Slices(value, 1, by_head, by_head, False),
        ]
        return Group(f"{block}/{kind}", by_head, tuple(slices))
    if kind == "qk":
        slices = [
            Slices(query, 1, by_half, (1, 2, half), True),
            Slices(key, 1, by_half, (1, 2, half), False),
        ]
        return Group(f"{block}/{kind}", (2, half), tuple(slices))
    slices = [
        Slices(expand, 0, by_head, (heads, 1), True),
        Slices(value, 1, by_head, (heads, 1), False),
        Slices(query, 1, by_half, (heads, 1, 1), False),
        Slices(key, 1, by_half, (heads, 1, 1), False),
    ]
    return Group(f"{block}/{kind}", (1, heads), tuple(slices))


def _norms(groups: Sequence[Group], tree: Any) -> list[jax.Array]:
    """The Frobenius norm of each unit's takers, of each group `[sets, size]`."""
    return [jnp.sqrt(total) for total in _sums(groups, jax.tree.map(jnp.square, tree))]


def _taken(groups: Sequence[Group], masks: Masks) -> list[jax.Array]:
    """How many takers each unit has."""
    return _sums(groups, jax.tree.map(lambda mask: mask.astype(jnp.float32), masks))


def _sums(groups: Sequence[Group], tree: Any) -> list[jax.Array]:
    leaves = dict(named_leaves(tree))
    sums = []
    for group in groups:
        total: Any = 0.0
        for part in group.slices:
            if part.takes:
                leaf = leaves[part.path]
                others = tuple(i for i in range(leaf.ndim) if i != part.axis)
                whole = tuple(i for i, n in enumerate(part.units) if n != part.view[i])
                of_slice = jnp.sum(leaf, axis=others).reshape(part.view)
                total = total + jnp.sum(of_slice, axis=whole).reshape(group.shape)
        sums.append(total)
    return sums


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
