"""Rewiring: dropping small weights and growing absent ones, at a constant total.

The default is sparse momentum (arXiv 1907.04840): every layer drops its smallest
weights; the freed budget goes to the layers in proportion to the mean absolute momentum
of their active weights; each grows where the momentum of absent weights is largest. So
gradients and momentum must be dense: the step may not mask them. RigL (arXiv
1911.11134) grows where the gradient is largest, SET (arXiv 1707.04780) anywhere; with
both, a layer keeps its number of weights.

Everything here is pure, of static shape and jittable. Totals are kept exactly.
"""

import chex
import jax
import jax.numpy as jnp

from alite_jax.sparsity.masks import is_pruned
from alite_jax.sparsity.methods import Method, at_random, by_score, find_method
from alite_jax.sparsity.selection import Layout

_DENSE_SPARSITY = 0.2  # a layer with fewer zeros than this is protected; see _to_drop
_FILL = 0.99  # of a layer's zeros may be grown while other layers have room


def rewire(
    params: chex.ArrayTree,
    scores: chex.ArrayTree,
    masks: chex.ArrayTree,
    prune_rate: jax.Array | float,
    key: chex.PRNGKey,
    method: str = "sparse_momentum",
    allowed: chex.ArrayTree | None = None,
) -> chex.ArrayTree:
    """Drops and regrows weights; the number of non-zeros stays exactly the same.

    Args:
        params: parameters, already masked.
        scores: pytree like `params`, dense: the optimizer's momentum, or the gradient
            for methods that go by it.
        masks: pytree like `params`; see `alite_jax.sparsity.masks`.
        prune_rate: fraction of each layer's active weights to drop, in [0, 1].
        key: PRNG key for methods that draw.
        method: a key of `alite_jax.sparsity.methods.METHODS`. Where nothing grows, as
            with `"static"`, the masks stay.
        allowed: masks of the weights that may be kept, at least as many as are active;
            all of them when left out. Active weights outside go before any others, and
            as many grow within, in other layers where a layer has no room.

    Returns:
        New masks. Weights that come in are zero in `params`; those that went out must
        be zeroed with `apply_masks`.

    Raises:
        ConfigError: if there is no such method.
    """
    chosen = find_method(method)
    if chosen.grow is None:
        return masks
    return _rewire(params, scores, masks, prune_rate, key, chosen, allowed)


def move_within(
    params: chex.ArrayTree,
    scores: chex.ArrayTree,
    masks: chex.ArrayTree,
    allowed: chex.ArrayTree | None,
    key: chex.PRNGKey,
    *,
    drawn: bool,
) -> chex.ArrayTree:
    """Moves masks into what is allowed; the number of non-zeros stays exactly the same.

    Args:
        params: parameters, already masked.
        scores: pytree like `params`, dense.
        masks: pytree like `params`; see `alite_jax.sparsity.masks`.
        allowed: as for `rewire`.
        key: PRNG key.
        drawn: whether the weights that come are drawn; otherwise they are those of the
            largest absolute scores.

    Returns:
        New masks, as from `rewire`.
    """
    chosen = Method(grow=at_random if drawn else by_score)
    return _rewire(params, scores, masks, 0.0, key, chosen, allowed)


def _rewire(
    params: chex.ArrayTree,
    scores: chex.ArrayTree,
    masks: chex.ArrayTree,
    prune_rate: jax.Array | float,
    key: chex.PRNGKey,
    chosen: Method,
    allowed: chex.ArrayTree | None,
) -> chex.ArrayTree:
    """`rewire`, by any method by which something grows."""
    assert chosen.grow is not None
    chex.assert_trees_all_equal_structs(params, scores, masks)
    mask_leaves, structure = jax.tree.flatten(masks)
    prunable = [i for i, mask in enumerate(mask_leaves) if is_pruned(mask)]
    if not prunable:
        return masks
    layout = Layout(tuple(mask_leaves[i].size for i in prunable))
    weights, layer_scores, active = (
        layout.pack([leaves[i] for i in prunable])
        for leaves in (jax.tree.leaves(params), jax.tree.leaves(scores), mask_leaves)
    )
    lost: jax.Array | int = 0
    if allowed is None:
        room = layout.pack([jnp.ones(size, bool) for size in layout.sizes])
        sizes = jnp.array(layout.sizes, jnp.int32)
    else:
        room = layout.pack([jax.tree.leaves(allowed)[i] for i in prunable])
        sizes, lost = layout.sums(room), layout.sums(active & ~room)
        active &= room
    nonzero = layout.sums(active)

    # An empty layer has no importance, rather than none over none.
    importance = layout.sums(jnp.where(active, jnp.abs(layer_scores), 0.0))
    importance = importance / jnp.maximum(nonzero, 1).astype(jnp.float32)
    importance = importance / jnp.maximum(
        jnp.sum(importance), jnp.finfo("float32").tiny
    )

    dropped = _to_drop(nonzero, sizes, importance, prune_rate, chosen)
    kept = nonzero - dropped
    grown = dropped + lost
    if chosen.trades or allowed is not None:
        shares = importance if chosen.trades else jnp.zeros_like(importance)
        grown = _allocate(jnp.sum(grown), shares, sizes - kept, fallback=grown)
    drop_key, grow_key = jax.random.split(key)
    drop = chosen.drop(weights, layer_scores, drop_key)
    survivors = layout.top(jnp.where(active, drop, -jnp.inf), kept)
    grow = chosen.grow(weights, layer_scores, grow_key)
    newcomers = layout.top(jnp.where(survivors | ~room, -jnp.inf, grow), grown)
    rewired = layout.unpack(survivors | newcomers)
    for i, mask in zip(prunable, rewired, strict=True):
        mask_leaves[i] = mask.reshape(mask_leaves[i].shape)
    return jax.tree.unflatten(structure, mask_leaves)


def _to_drop(
    nonzero: jax.Array,
    sizes: jax.Array,
    importance: jax.Array,
    prune_rate: jax.Array | float,
    method: Method,
) -> jax.Array:
    """How many weights each layer drops, `[layers]` int32; never its last one.

    An important layer that is already nearly dense drops at most its sparsity, as in
    sparse momentum's code: it would only get its weights back.
    """
    rate = jnp.full(sizes.shape, prune_rate, jnp.float32)
    if method.trades:
        # Compiled, a division by constants becomes a product with their reciprocals,
        # which differs in the last bit, and `ceil` makes a weight of that.
        whole = jax.lax.optimization_barrier(sizes).astype(jnp.float32)
        sparsity = (sizes - nonzero).astype(jnp.float32) / whole
        protected = (sparsity < _DENSE_SPARSITY) & (importance > 1 / sizes.size)
        rate = jnp.where(protected, jnp.minimum(sparsity, rate), rate)
    dropped = method.round_drop(rate * nonzero.astype(jnp.float32)).astype(jnp.int32)
    return jnp.minimum(dropped, jnp.maximum(nonzero - 1, 0))


def _allocate(
    total: jax.Array, importance: jax.Array, zeros: jax.Array, fallback: jax.Array
) -> jax.Array:
    """Shares `total` new weights among layers by importance, exactly.

    Args:
        total: int32 scalar, at most `sum(zeros)`.
        importance: `[layers]` float32, sums to 1, or all 0.
        zeros: `[layers]` int32, the absent weights of each layer.
        fallback: `[layers]` int32 of sum `total`, used if nothing is important.

    Returns:
        `[layers]` int32 of sum `total`, none above `zeros`. What exceeds 99 % of a
        layer's zeros is shared equally by the layers that have room.
    """
    capacity = jnp.floor(_FILL * zeros.astype(jnp.float32)).astype(jnp.int32)
    capacity = jnp.where(jnp.sum(capacity) >= total, capacity, zeros)
    # Rounding the running total keeps the sum exact and each share within one weight.
    shares = jnp.cumsum(importance)
    wanted = shares / jnp.maximum(shares[-1], 1e-30) * total.astype(jnp.float32)
    bounds = jnp.floor(wanted).astype(jnp.int32)
    bounds = jnp.minimum(bounds, total).at[-1].set(total)
    bounds = jax.lax.cummax(bounds)  # a parallel sum of floats may dip in the last bit
    grown = jnp.diff(bounds, prepend=0)
    grown = jnp.minimum(jnp.where(shares[-1] > 0, grown, fallback), capacity)

    def unfinished(grown: jax.Array) -> jax.Array:
        return jnp.sum(grown) < total

    def share_rest(grown: jax.Array) -> jax.Array:
        rest = total - jnp.sum(grown)
        room = capacity - grown
        has_room = room > 0
        equal = rest // jnp.maximum(jnp.sum(has_room), 1)
        # Fewer weights than layers with room: the first of these take one each.
        single = (jnp.cumsum(has_room) <= rest).astype(jnp.int32)
        return grown + jnp.minimum(room, jnp.where(equal > 0, equal, single))

    return jax.lax.while_loop(unfinished, share_rest, grown)
