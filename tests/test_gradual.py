"""Gradual magnitude pruning: counts by hand, masks against a plain oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chex import assert_trees_all_equal
from compiling import full_jit
from references import gradual

from alite_jax.errors import ConfigError
from alite_jax.sparsity.distributions import layer_counts
from alite_jax.sparsity.gradual import gradual_counts, prune
from alite_jax.sparsity.schedules import RewiringSteps

# Whether the weights of all layers compete with one another.
GRADUAL = {"gradual": False, "gradual_global": True}
SHAPES = [(3, 3, 4, 5), (2, 3), (12, 31), (40,)]
SIZES = [180, 6, 372, 40]
CHANGES = RewiringSteps(total=10, every=2).remaining()  # after steps 2, 4, 6 and 8


@functools.partial(jax.jit, static_argnames="method")
def prune_jitted(params, masks, counts, method):
    return prune(params, masks, counts, method)


def make_params(seed):
    """Weights of very unequal layers with ties, and a leaf that stays dense."""
    rng = np.random.default_rng(seed)
    params = {
        f"layer{n}": np.float32(
            10.0 ** rng.uniform(-1, 1) * rng.normal(size=shape).round(1)
        )
        for n, shape in enumerate(SHAPES)
    }
    return params | {"scale": np.ones(5, np.float32)}


def dense(params):
    masks = {name: np.ones(leaf.shape, bool) for name, leaf in params.items()}
    return masks | {"scale": np.ones((), bool)}


def flat(tree):
    return [np.ravel(tree[f"layer{n}"]) for n in range(len(SHAPES))]


def test_counts_by_hand():
    # The layers of 100 and 10 go to 20 and 2. After steps 2, 4, 6 and 8 (the last),
    # 27/64, 8/64, 1/64 and 0 of the 80 and 8 are still there.
    counts = gradual_counts([(10, 10), (10,)], 0.2, "uniform", CHANGES)
    assert counts.tolist() == [[54, 5], [30, 3], [21, 2], [20, 2]]
    assert counts.dtype == np.int32


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
@pytest.mark.parametrize("density", [0.03, 0.25, 0.9, 1.0])
def test_counts_fall_to_exactly_those_of_the_distribution(density, distribution):
    steps = RewiringSteps(total=1000, every=7, stop_fraction=0.7)
    counts = gradual_counts(SHAPES, density, distribution, steps.remaining())
    assert len(counts) == 100
    assert counts[-1].tolist() == layer_counts(SHAPES, density, distribution)
    assert np.all(np.diff(counts, axis=0) <= 0) and np.all(counts <= SIZES)
    kept = counts.sum(axis=1) / sum(SIZES)
    final = kept[-1]
    wanted = final + (1 - final) * (1 - np.arange(1, 101) / 100) ** 3
    np.testing.assert_allclose(kept, wanted, atol=len(SIZES) / 2 / sum(SIZES))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("distribution", ["uniform", "erk"])
@pytest.mark.parametrize("method", GRADUAL)
def test_masks_equal_the_plain_oracle(method, distribution, seed):
    params = make_params(seed)
    masks, expected = dense(params), flat(dense(params))
    table = gradual_counts(SHAPES, 0.1, distribution, CHANGES)
    for counts in table:
        masks = prune_jitted(params, masks, counts, method)
        expected = gradual(flat(params), expected, counts, everywhere=GRADUAL[method])
        for found, wanted in zip(flat(masks), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
        assert masks["scale"]
        assert sum(mask.sum() for mask in flat(masks)) == counts.sum()
        params = jax.tree.map(lambda m, p: np.where(m, p, 0), masks, params)
        # What is left goes on moving, but nothing that is gone comes back.
        params = jax.tree.map(lambda p: np.float32(p[::-1] + 0.01), params)


def test_weights_by_hand():
    params = {"a": jnp.array([0.1, -9.0, 8.0, 7.0]), "b": jnp.array([[0.3], [-0.2]])}
    masks = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
    counts = jnp.array([2, 1])
    layers = prune_jitted(params, masks, counts, "gradual")
    assert layers["a"].tolist() == [False, True, True, False]
    assert layers["b"].tolist() == [[True], [False]]
    # b keeps its largest weight, which is smaller than any of the 7, 8 and 9.
    counts = jnp.array([3, 0])
    everywhere = prune_jitted(params, masks, counts, "gradual_global")
    assert everywhere["a"].tolist() == [False, True, True, False]
    assert everywhere["b"].tolist() == [[True], [False]]


@pytest.mark.parametrize("method", GRADUAL)
def test_an_absent_weight_never_comes_back(method):
    params = {"a": jnp.array([5.0, 4.0, 3.0, 2.0]), "b": jnp.array([1.0, 2.0])}
    masks = {
        "a": jnp.array([False, True, False, True]),
        "b": jnp.array([True, False]),
    }
    found = prune_jitted(params, masks, jnp.array([4, 2]), method)
    assert_trees_all_equal(found, masks)


@pytest.mark.parametrize("method", GRADUAL)
def test_jit_changes_nothing(method):
    params = make_params(0)
    masks, counts = dense(params), jnp.array([20, 3, 200, 5])
    masks = jax.tree.map(jnp.asarray, masks)
    compiled = full_jit(functools.partial(prune, method=method))(params, masks, counts)
    found = prune(params, masks, counts, method)
    assert_trees_all_equal(found, compiled)


def test_no_prunable_layer_is_no_problem():
    masks = {"scale": jnp.array(True)}
    assert prune({"scale": jnp.ones(3)}, masks, jnp.zeros(0, int)) is masks


def test_an_unknown_method_is_an_error():
    with pytest.raises(ConfigError, match="'gradul'; did you mean 'gradual'"):
        prune({}, {}, jnp.zeros(0), "gradul")
