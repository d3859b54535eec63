"""Masks as pytrees with exactly the structure of the parameters.

A prunable leaf carries a bool array of the leaf's shape, a leaf that stays dense the
scalar `True`; so `jax.tree.map` over parameters and masks needs no special case, and
nothing is None. Which leaves are prunable follows from their path and rank by rules.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

import chex
import jax
import jax.numpy as jnp

from alite_jax.errors import ConfigError
from alite_jax.sparsity.distributions import layer_counts
from alite_jax.sparsity.selection import Layout
from alite_jax.trees import named_leaves

Params: TypeAlias = chex.ArrayTree
Masks: TypeAlias = chex.ArrayTree
Leaf: TypeAlias = jax.Array | jax.ShapeDtypeStruct

MATRICES = "matrices"  # In a rule: prunable from rank 2 on.
Rules: TypeAlias = Sequence[tuple[str, bool | str]]

# (pattern of the path, prunable): the first match decides, and every parameter must
# match. Embeddings, tokens, normalisation and biases stay dense: hardly any parameters,
# but accuracy depends on them. What else has two axes is a kernel, whatever its name.
# Variables of nnx have a `/value` of their own behind the name.
RULES: Rules = (
    (r"(embed|_emb|token|position|bias|scale|offset)[^/]*(/value)?$", False),
    (r"(^|[/_])(emb|pos|cls|gamma|beta)(/value)?$", False),
    (r"", MATRICES),
)


def is_prunable(path: str, leaf: Leaf, rules: Rules = RULES) -> bool:
    """Whether a parameter may be pruned.

    Args:
        path: of the parameter, such as `"stem/kernel"`.
        leaf: the parameter, or its shape and dtype; integers never are.
        rules: `(pattern, prunable)` pairs, of which the first decides whose regular
            expression is found in the path. `prunable` is True, False or `"matrices"`,
            which means from rank 2 on.

    Raises:
        ConfigError: no rule matches.

    Example:
        >>> from alite_jax.sparsity.masks import is_prunable
        >>> is_prunable("stem/kernel", jnp.zeros((3, 3, 1, 8)))
        True
        >>> is_prunable("pos_embedding", jnp.zeros((1, 16, 8)))
        False
        >>> rules = [("^classifier/", False), *alite_jax.RULES]
        >>> is_prunable("classifier/kernel", jnp.zeros((8, 10)), rules)
        False
    """
    for pattern, prunable in rules:
        if re.search(pattern, path):
            enough = len(leaf.shape) >= 2 if prunable == MATRICES else bool(prunable)
            return enough and jnp.issubdtype(leaf.dtype, jnp.floating)
    raise ConfigError(
        f"masks: no rule says whether parameter {path!r} of shape {tuple(leaf.shape)}"
        " is prunable; add a pair such as"
        f" ({re.escape(path)!r}, False) to the rules, or end them with"
        f" ('', {MATRICES!r})"
    )


def pruning_rules(dense: str) -> Rules:
    """`RULES`, and before them that parameters of some paths stay dense.

    Args:
        dense: a regular expression of these; `""` for none.
    """
    return ((dense, False), *RULES) if dense else RULES


def is_pruned(mask: jax.Array) -> bool:
    """Whether a leaf of masks is of an array that is pruned, not the scalar True."""
    return mask.ndim > 0


def dense_masks(params: Params) -> Masks:
    """Masks that prune nothing and never will: the scalar True at every leaf."""
    return jax.tree.map(lambda _: jnp.ones((), bool), params)


def init_masks(
    key: jax.Array,
    params: Params,
    density: float,
    distribution: str = "uniform",
    rules: Rules = RULES,
) -> Masks:
    """Draws random masks with exact counts.

    Args:
        key: PRNG key.
        params: parameters, or their shapes (`jax.ShapeDtypeStruct`).
        density: fraction of the prunable weights that is kept, in (0, 1].
        distribution: how layers share it, `"uniform"` or `"erk"`; see
            `alite_jax.sparsity.distributions`.
        rules: which parameters may be pruned; see `is_prunable`.

    Returns:
        Masks of the structure of `params`; which weights of a layer are kept is random,
        how many is exact.

    Raises:
        ConfigError: for a density outside (0, 1] or an unknown distribution, or no rule
            names a parameter.
    """

    def at_random(layout: Layout, weights: list[jax.Array]) -> jax.Array:
        return jax.random.uniform(key, layout.shape, jnp.float32)

    return _highest(at_random, params, density, distribution, rules)


def magnitude_masks(
    params: Params,
    density: float,
    distribution: str = "uniform",
    rules: Rules = RULES,
) -> Masks:
    """As `init_masks`, but the largest weights of each layer are kept.

    Args:
        params: parameters, trained ones as a rule.
        density: see `init_masks`.
        distribution: see `init_masks`.
        rules: see `init_masks`.

    Raises:
        ConfigError: see `init_masks`.
    """

    def by_magnitude(layout: Layout, weights: list[jax.Array]) -> jax.Array:
        return jnp.abs(layout.pack(weights))

    return _highest(by_magnitude, params, density, distribution, rules)


def _highest(
    score: Callable[[Layout, list[jax.Array]], jax.Array],
    params: Params,
    density: float,
    distribution: str,
    rules: Rules,
) -> Masks:
    """Masks of the weights with the highest scores; those come as a matrix."""
    named = named_leaves(params)
    prunable = [is_prunable(path, leaf, rules) for path, leaf in named]
    weights = [
        leaf for (_, leaf), chosen in zip(named, prunable, strict=True) if chosen
    ]
    shapes = [leaf.shape for leaf in weights]
    counts = layer_counts(shapes, density, distribution)
    layout = Layout(tuple(math.prod(shape) for shape in shapes))
    real = layout.pack([jnp.ones(size, bool) for size in layout.sizes])
    scores = jnp.where(real, score(layout, weights), -jnp.inf)
    drawn = iter(layout.unpack(layout.top(scores, jnp.array(counts))))
    leaves = [
        next(drawn).reshape(leaf.shape) if chosen else jnp.ones((), bool)
        for (_, leaf), chosen in zip(named, prunable, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def nominal_density(
    params: Params,
    density: float,
    distribution: str = "uniform",
    rules: Rules = RULES,
) -> float:
    """The density that masks get: a little more where each layer keeps one weight.

    Args:
        params: parameters, or their shapes.
        density: that is asked for, in (0, 1].
        distribution: see `init_masks`.
        rules: see `init_masks`.

    Raises:
        ConfigError: see `init_masks`.
    """
    shapes = [
        leaf.shape
        for path, leaf in named_leaves(params)
        if is_prunable(path, leaf, rules)
    ]
    kept = layer_counts(shapes, density, distribution)
    return sum(kept) / sum(math.prod(shape) for shape in shapes)


def apply_masks(masks: Masks, tree: Params) -> Params:
    """Zeroes the absent weights of `tree`, which has the structure of `masks`.

    Args:
        masks: a bool array of the leaf's shape, or the scalar True, for each leaf.
        tree: parameters, gradients or whatever else has their structure.

    Raises:
        AssertionError: it has not: the masks are those of another network.

    Example:
        >>> masks = {"kernel": jnp.array([[True, False]]), "bias": jnp.array(True)}
        >>> tree = {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([5.0, 6.0])}
        >>> alite_jax.apply_masks(masks, tree)["kernel"]
        Array([[3., 0.]], dtype=float32)
    """
    chex.assert_trees_all_equal_structs(masks, tree)
    return jax.tree.map(
        lambda mask, leaf: jnp.where(mask, leaf, jnp.zeros((), leaf.dtype)), masks, tree
    )


def count_parameters(params: Params) -> int:
    """The number of trained numbers, absent ones included."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def kept_entries(masks: Masks, params: Params) -> chex.ArrayTree:
    """A tree like `params` of the number of entries that each leaf keeps."""
    return jax.tree.map(
        lambda mask, leaf: int(mask.sum()) if is_pruned(mask) else leaf.size,
        masks,
        params,
    )


def count_nonzero(masks: Masks, params: Params) -> int:
    """The number of parameters that are kept: mask entries plus all dense leaves."""
    return sum(jax.tree.leaves(kept_entries(masks, params)))


def prunes(masks: Masks) -> bool:
    """Whether these masks prune anything, or may: not so for `dense_masks`."""
    return any(is_pruned(mask) for mask in jax.tree.leaves(masks))


def density(masks: Masks) -> float:
    """The kept fraction of the prunable weights; 1.0 if there are none."""
    prunable = [mask for mask in jax.tree.leaves(masks) if is_pruned(mask)]
    if not prunable:
        return 1.0
    return sum(int(m.sum()) for m in prunable) / sum(m.size for m in prunable)


def layer_densities(masks: Masks) -> dict[str, float]:
    """The kept fraction of each prunable layer, by its path without `/kernel`."""
    return {
        path.removesuffix("/kernel"): int(mask.sum()) / mask.size
        for path, mask in named_leaves(masks)
        if is_pruned(mask)
    }
