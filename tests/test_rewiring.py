"""Rewiring: the default against a plain oracle, and what every method must keep."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chex import assert_trees_all_equal
from compiling import full_jit
from references import rigl, sparse_momentum

from alite_jax.errors import ConfigError
from alite_jax.sparsity.masks import apply_masks
from alite_jax.sparsity.methods import METHODS
from alite_jax.sparsity.rewiring import rewire

REWIRE = [name for name, method in METHODS.items() if not method.starts_dense]

# Paths of the prunable layers and of a dense leaf between them, with their shapes.
SHAPES = {
    "block": {"kernel": (3, 3, 4, 5), "scale": (5,)},
    "narrow": {"kernel": (2, 3)},
    "stem": {"kernel": (3, 3, 3, 4)},
    "wide": {"kernel": (12, 31)},
}
MANY = {f"layer{n:02}": {"kernel": (n + 1, 7)} for n in range(20)}
ONE = {"kernel": (40,)}


@functools.partial(jax.jit, static_argnames="method")
def rewire_jitted(params, scores, masks, prune_rate, key, method="sparse_momentum"):
    return rewire(params, scores, masks, prune_rate, key, method)


def is_shape(value):
    return isinstance(value, tuple)


def is_dense(path):
    return "scale" in jax.tree_util.keystr(path)


def make_case(shapes, density, seed):
    """Masked weights, a dense momentum of very unequal layers, and masks."""
    rng = np.random.default_rng(seed)

    def masks_of(path, shape):
        if is_dense(path):
            return np.ones((), bool)
        size = int(np.prod(shape))
        mask = np.arange(size) < max(1, round(density * size))
        return rng.permutation(mask).reshape(shape)

    def scores_of(shape):
        scale = 10.0 ** rng.uniform(-1, 1)
        return np.float32(scale * rng.normal(size=shape))

    masks = jax.tree_util.tree_map_with_path(masks_of, shapes, is_leaf=is_shape)
    scores = jax.tree.map(scores_of, shapes, is_leaf=is_shape)
    weights = jax.tree.map(
        lambda shape: rng.normal(size=shape), shapes, is_leaf=is_shape
    )
    params = jax.tree.map(lambda m, w: np.float32(np.where(m, w, 0)), masks, weights)
    return params, scores, masks


def prunable(tree, masks):
    """The flat leaves of the prunable layers, in the tree's order."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(masks), strict=True)
    return [np.ravel(leaf) for leaf, mask in pairs if np.ndim(mask)]


def counts(masks):
    return [int(np.sum(mask)) for mask in prunable(masks, masks)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("prune_rate", [0.0, 0.005, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("density", [0.03, 0.1, 0.5, 0.85, 0.99, 1.0])
@pytest.mark.parametrize("shapes", [SHAPES, MANY, ONE], ids=["few", "many", "one"])
def test_sparse_momentum_equals_the_plain_oracle(shapes, density, prune_rate, seed):
    params, scores, masks = make_case(shapes, density, seed)
    found = rewire_jitted(params, scores, masks, prune_rate, jax.random.key(0))
    expected = sparse_momentum(
        *(prunable(tree, masks) for tree in (params, scores, masks)), prune_rate
    )
    assert counts(found) == [int(mask.sum()) for mask in expected]
    for one, other in zip(prunable(found, masks), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_oracle_sees_every_branch():
    """The cases above shift budget, hit the cap, protect layers and share overflow."""
    moved = capped = 0
    for density in (0.1, 0.5, 0.85):
        for seed in range(4):
            params, scores, masks = make_case(SHAPES, density, seed)
            trees = [prunable(tree, masks) for tree in (params, scores, masks)]
            after = [int(mask.sum()) for mask in sparse_momentum(*trees, 0.5)]
            moved += after != counts(masks)
            capped += any(
                size > 20 and 0.95 < count / size < 1
                for count, size in zip(after, map(len, trees[0]), strict=True)
            )
    assert moved >= 10 and capped >= 3


@pytest.mark.parametrize("method", REWIRE)
def test_jit_changes_nothing(method):
    # An important layer that is dense has nothing to drop, but would drop a weight if
    # its sparsity, compiled, were not exactly zero: in float32 55 * (1 / 55) is not 1.
    params, scores, masks = make_case(
        {"a": (5, 11), "b": (10, 7), "scale": (4,)}, 0.3, 0
    )
    masks["a"][:] = True
    scores["a"] = np.float32(100 * np.sign(scores["a"]))
    masks = jax.tree.map(jnp.asarray, masks)
    arguments = (params, scores, masks, 0.5, jax.random.key(3))
    compiled = full_jit(functools.partial(rewire, method=method))
    assert_trees_all_equal(rewire(*arguments, method), compiled(*arguments))


@pytest.mark.parametrize("method", REWIRE)
@pytest.mark.parametrize("density", [0.02, 0.3, 0.99, 1.0])
@pytest.mark.parametrize("prune_rate", [0.0, 0.3, 1.0])
def test_what_every_method_keeps(method, density, prune_rate):
    params, scores, masks = make_case(SHAPES, density, 1)
    found = rewire_jitted(params, scores, masks, prune_rate, jax.random.key(5), method)
    assert jax.tree.structure(found) == jax.tree.structure(masks)
    for new, old in zip(jax.tree.leaves(found), jax.tree.leaves(masks), strict=True):
        assert new.dtype == bool and new.shape == old.shape
    assert found["block"]["scale"]
    assert sum(counts(found)) == sum(counts(masks))
    assert min(counts(found)) >= 1
    if method == "static" or prune_rate == 0:
        assert_trees_all_equal(found, masks)
    if not METHODS[method].trades:
        assert counts(found) == counts(masks)


@pytest.mark.parametrize("method", REWIRE)
def test_a_key_decides_only_where_the_method_draws(method):
    params, scores, masks = make_case(SHAPES, 0.2, 2)
    first, again, other = (
        rewire_jitted(params, scores, masks, 0.5, jax.random.key(seed), method)
        for seed in (0, 0, 1)
    )
    assert_trees_all_equal(first, again)
    same = jax.tree.all(jax.tree.map(np.array_equal, first, other))
    assert same == (method != "set")


def test_set_keeps_the_largest_weights_and_draws_anew_per_layer():
    shape = (6, 20)
    params, scores, masks = make_case({"a": shape, "b": shape}, 0.25, 3)
    twins = {"a": masks["a"], "b": masks["a"]}
    params = {"a": params["a"], "b": params["a"]}
    found = rewire_jitted(params, scores, twins, 0.4, jax.random.key(0), "set")
    assert counts(found) == [30, 30]
    survivors = np.abs(params["a"]) >= np.sort(np.abs(params["a"]).ravel())[-18]
    assert np.all(found["a"][survivors]) and np.all(found["b"][survivors])
    assert not np.array_equal(found["a"], found["b"])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("prune_rate", [0.0, 0.005, 0.3, 1.0])
@pytest.mark.parametrize("density", [0.03, 0.1, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("shapes", [SHAPES, MANY, ONE], ids=["few", "many", "one"])
def test_rigl_equals_the_plain_oracle(shapes, density, prune_rate, seed):
    params, gradients, masks = make_case(shapes, density, seed)
    key = jax.random.key(0)
    found = rewire_jitted(params, gradients, masks, prune_rate, key, "rigl")
    expected = rigl(
        *(prunable(tree, masks) for tree in (params, gradients, masks)), prune_rate
    )
    for one, other in zip(prunable(found, masks), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_rigl_by_hand():
    params, masks = small_example()
    # a drops -1 of (4, -1, 3), since one and a half is one, b -.5 of (2, -.5); each
    # grows one where the gradient is largest, whatever the other layer's are.
    gradients = {
        "a": jnp.array([[90.0, 1.0, -3.0], [0.0, 2.0, -4.0]]),
        "b": jnp.array([0.1, 90.0, 0.0, 0.2, 0.3, -0.4]),
        "scale": jnp.array([100.0, 100.0]),
    }
    key = jax.random.key(0)
    found = rewire_jitted(params, gradients, masks, 0.5, key, "rigl")
    assert found["a"].tolist() == [[True, False, False], [False, True, True]]
    assert found["b"].tolist() == [False, True, False, False, False, True]
    assert found["scale"].tolist() is True


@pytest.mark.parametrize(
    ("method", "dropped"), [("rigl", 2), ("set", 2), ("sparse_momentum", 3)]
)
def test_what_is_no_whole_number_is_rounded_as_in_the_methods_own_codes(
    method, dropped
):
    """Of 7 weights 0.3 are dropped: 2.1."""
    params = {"a": jnp.concatenate([jnp.arange(1.0, 8.0), jnp.zeros(5)])}
    masks = {"a": params["a"] > 0}
    # All that is absent attracts more than what was there.
    scores = {"a": jnp.where(masks["a"], 0.0, jnp.arange(1.0, 13.0))}
    found = rewire_jitted(params, scores, masks, 0.3, jax.random.key(1), method)
    assert found["a"][:7].tolist() == [False] * dropped + [True] * (7 - dropped)
    assert counts(found) == [7]


def small_example():
    params = {
        "a": jnp.array([[4.0, 0.0, -1.0], [0.0, 3.0, 0.0]]),
        "b": jnp.array([0.0, 2.0, 0.0, -0.5, 0.0, 0.0]),
        "scale": jnp.array([1.0, 1.0]),
    }
    masks = {
        "a": jnp.array([[True, False, True], [False, True, False]]),
        "b": jnp.array([False, True, False, True, False, False]),
        "scale": jnp.array(True),
    }
    return params, masks


def test_a_small_example_by_hand():
    params, masks = small_example()
    # Mean |momentum| of active weights: a (1 + 1 + 1) / 3 = 1, b (3 + 3) / 2 = 3, so a
    # gets a quarter. Both drop half, rounded up: a drops 2 (-1 and 3), b drops 1 (-.5).
    # Of the 3 freed a gets floor(3 / 4) = 0, b gets 3: its largest |momentum| among
    # absent ones, of which the dropped -.5 is now one.
    scores = {
        "a": jnp.array([[1.0, 9.0, -1.0], [8.0, 1.0, 7.0]]),
        "b": jnp.array([-6.0, -3.0, 5.0, 3.0, 0.1, 2.0]),
        "scale": jnp.array([100.0, 100.0]),
    }
    found = rewire_jitted(params, scores, masks, 0.5, jax.random.key(0))
    assert found["a"].tolist() == [[True, False, False], [False, False, False]]
    assert found["b"].tolist() == [True, True, True, True, False, False]
    assert found["scale"].tolist() is True


def test_growth_sees_absent_weights():
    params, masks = small_example()
    # Active weights have a mean |momentum| of 1 in both layers, so each drops and grows
    # one. It is largest, with a negative sign, on one absent weight of each.
    scores = {
        "a": jnp.array([[3.0, 0.2, 0.0], [-9.0, 0.0, 0.1]]),
        "b": jnp.array([0.1, 2.0, 0.2, 0.0, 0.0, -9.0]),
        "scale": jnp.zeros(2),
    }
    found = rewire_jitted(params, scores, masks, 0.3, jax.random.key(0))
    assert not masks["a"][1, 0] and found["a"][1, 0]
    assert not masks["b"][5] and found["b"][5]
    # What comes in is zero, what went out is zeroed by applying the masks.
    updated = apply_masks(found, params)
    assert updated["a"][1, 0] == 0 and updated["b"][5] == 0
    assert updated["b"][3] == 0 and updated["b"][1] == 2


def test_a_dropped_weight_may_come_back_at_once():
    params = {"a": jnp.array([1.0, 0.1, 0.0, 0.0])}
    masks = {"a": jnp.array([True, True, False, False])}
    scores = {"a": jnp.array([1.0, 9.0, 0.5, 0.5])}
    found = rewire_jitted(params, scores, masks, 0.5, jax.random.key(0))
    assert found["a"].tolist() == [True, True, False, False]


def test_zero_momentum_everywhere_leaves_each_layer_its_own():
    params, scores, masks = make_case(SHAPES, 0.3, 4)
    scores = jax.tree.map(np.zeros_like, scores)
    found = rewire_jitted(params, scores, masks, 0.5, jax.random.key(0))
    assert counts(found) == counts(masks)


def test_a_layer_without_momentum_shrinks_but_keeps_its_last_weight():
    params, scores, masks = make_case(SHAPES, 0.1, 5)
    scores["narrow"]["kernel"][:] = 0
    scores["stem"]["kernel"][:] = 0
    for seed in range(12):
        masks = rewire_jitted(params, scores, masks, 0.9, jax.random.key(seed))
        params = apply_masks(masks, params)
    after = masks["narrow"]["kernel"].sum(), masks["stem"]["kernel"].sum()
    assert [int(count) for count in after] == [1, 1]
    assert sum(counts(masks)) == sum(counts(make_case(SHAPES, 0.1, 5)[2]))


def test_an_empty_layer_has_no_importance_and_spoils_nothing():
    params, scores, masks = make_case(SHAPES, 0.3, 6)
    masks["narrow"]["kernel"][:] = False
    params = apply_masks(masks, params)
    found = rewire_jitted(params, scores, masks, 0.5, jax.random.key(0))
    assert sum(counts(found)) == sum(counts(masks))
    expected = sparse_momentum(
        *(prunable(tree, masks) for tree in (params, scores, masks)), 0.5
    )
    assert counts(found) == [int(mask.sum()) for mask in expected]


def test_one_layer_of_overwhelming_momentum_is_filled_to_99_percent():
    shapes = {"a": (200,), "b": (1000,), "c": (1000,)}
    params, scores, masks = make_case(shapes, 0.4, 7)
    scores = {"a": scores["a"] * 1e6, "b": scores["b"], "c": scores["c"]}
    found = rewire_jitted(params, scores, masks, 0.5, jax.random.key(0))
    # a keeps 40 of 80 and gets 158 of its 160 zeros; b and c share the rest of the
    # 440 freed, 141 each up to rounding, on top of the 200 that each kept.
    first, second, third = counts(found)
    assert first == 198 and second + third == 682
    assert abs(second - third) <= 2


@pytest.mark.parametrize("active, dropped", [(90, 9), (81, 16), (80, 40), (100, 0)])
def test_a_nearly_dense_important_layer_drops_at_most_its_sparsity(active, dropped):
    masks = {"a": np.arange(100) < active, "b": np.arange(100) < 30}
    params = {
        name: np.float32(mask * np.arange(1, 101)) for name, mask in masks.items()
    }
    # Absent weights have no momentum, so that b takes back what both dropped.
    scores = {"a": np.float32(masks["a"]) * 9, "b": np.ones(100, np.float32)}
    scores["a"][:50] = 0.0
    found = rewire_jitted(params, scores, masks, 0.5, jax.random.key(0))
    kept_at_least = np.arange(100)[dropped:active]
    assert np.all(found["a"][kept_at_least])
    expected = sparse_momentum(
        *(prunable(tree, masks) for tree in (params, scores, masks)), 0.5
    )
    assert counts(found) == [int(mask.sum()) for mask in expected]


def test_no_prunable_layer_is_no_problem():
    masks = {"scale": jnp.array(True)}
    params = {"scale": jnp.ones(3)}
    assert rewire(params, params, masks, 0.5, jax.random.key(0)) is masks


def test_an_unknown_method_is_an_error():
    params, masks = small_example()
    message = "the method is 'sparse_momentun'; did you mean 'sparse_momentum'"
    with pytest.raises(ConfigError, match=message):
        rewire(params, params, masks, 0.5, jax.random.key(0), "sparse_momentun")
