"""Masks: structure, exact counts, and the rule that says what is prunable."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import network

from alite_jax.errors import ConfigError
from alite_jax.models.resnet import MODELS
from alite_jax.sparsity.distributions import layer_counts
from alite_jax.sparsity.masks import (
    apply_masks,
    count_nonzero,
    count_parameters,
    dense_masks,
    density,
    init_masks,
    is_prunable,
    kept_entries,
)
from alite_jax.trees import named_leaves

PARAMS = {
    "block": {
        "spatial": {
            "query": {"kernel": jnp.ones((6, 8))},
            "row_embeddings": jnp.ones((3, 2)),
        },
        "norm": {"scale": jnp.ones(8), "bias": jnp.ones(8)},
    },
    "classifier": {"kernel": jnp.ones((8, 10)), "bias": jnp.ones(10)},
    "stem": {"kernel": jnp.ones((3, 3, 3, 7))},
}
KERNELS = {
    "block/spatial/query/kernel": 48,
    "classifier/kernel": 80,
    "stem/kernel": 189,
}
DENSITIES = [0.001, 0.03, 0.05, 0.1, 0.3333, 0.5, 0.75, 0.99, 1.0]


def draw(key, kept, distribution="uniform"):
    return init_masks(key, PARAMS, kept, distribution)


@pytest.mark.parametrize("kept", DENSITIES)
def test_uniform_masks_keep_exact_counts(kept):
    masks = jax.jit(functools.partial(draw, kept=kept))(jax.random.key(0))
    assert jax.tree.structure(masks) == jax.tree.structure(PARAMS)
    shapes = dict(named_leaves(PARAMS))
    for path, mask in named_leaves(masks):
        assert mask.dtype == bool, path
        if path in KERNELS:
            assert mask.shape == shapes[path].shape, path
            assert mask.sum() == max(1, round(kept * KERNELS[path])), path
        else:
            assert mask.shape == () and bool(mask) is True, path


def test_erk_masks_keep_the_counts_of_the_distribution():
    masks = jax.jit(functools.partial(draw, kept=0.2, distribution="erk"))(
        jax.random.key(0)
    )
    shapes = [leaf.shape for path, leaf in named_leaves(PARAMS) if path in KERNELS]
    found = [int(mask.sum()) for path, mask in named_leaves(masks) if path in KERNELS]
    assert found == layer_counts(shapes, 0.2, "erk")
    assert sum(found) == round(0.2 * sum(KERNELS.values()))


def test_which_weights_stay_depends_on_the_key_and_the_layer():
    params = {name: {"kernel": jnp.ones((20, 20))} for name in "ab"}

    @jax.jit
    def draw(key):
        return init_masks(key, params, 0.3)

    first, again, other = (draw(jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first["a"]["kernel"], other["a"]["kernel"])
    assert not np.array_equal(first["a"]["kernel"], first["b"]["kernel"])
    # Each place is as likely as any other: half of 120 in each half, 5 sigma apart.
    assert 35 < first["a"]["kernel"][:10].sum() < 85


def test_shapes_suffice_to_draw_masks():
    shapes = jax.eval_shape(lambda: PARAMS)
    masks = jax.eval_shape(
        functools.partial(init_masks, params=shapes, density=0.5), jax.random.key(0)
    )
    assert masks["stem"]["kernel"].shape == (3, 3, 3, 7)
    assert masks["classifier"]["bias"].shape == ()


def test_masks_zero_what_is_absent_and_nothing_else():
    masks = {
        "kernel": jnp.array([[True, False], [False, True]]),
        "bias": jnp.array(True),
    }
    params = {"kernel": jnp.array([[1.0, jnp.nan], [3.0, 4.0]]), "bias": jnp.ones(2)}
    found = apply_masks(masks, params)
    assert found["kernel"].tolist() == [[1.0, 0.0], [0.0, 4.0]]
    assert found["bias"].tolist() == [1.0, 1.0]
    half = apply_masks(masks, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
    assert half["kernel"].dtype == jnp.bfloat16


def test_counting_by_hand():
    masks = {
        "kernel": np.array([[True, False], [False, False]]),
        "bias": np.array(True),
    }
    params = {"kernel": np.ones((2, 2)), "bias": np.ones(3)}
    assert count_parameters(params) == 7
    assert kept_entries(masks, params) == {"kernel": 1, "bias": 3}
    assert count_nonzero(masks, params) == 4
    assert density(masks) == 0.25


def test_dense_masks_keep_everything():
    masks = dense_masks(PARAMS)
    assert jax.tree.structure(masks) == jax.tree.structure(PARAMS)
    assert all(mask.shape == () and mask for mask in jax.tree.leaves(masks))
    assert count_nonzero(masks, PARAMS) == count_parameters(PARAMS)
    assert density(masks) == 1.0
    jax.tree.map(np.testing.assert_array_equal, apply_masks(masks, PARAMS), PARAMS)


PRUNABLE = re.compile(
    r"stem/kernel|classifier/kernel"
    r"|stage\d_block\d+/(reduce|expand|shortcut|spatial[12]?)/kernel"
    r"|stage\d_block\d+/spatial/(query|key|value)/kernel"
)
DENSE = re.compile(
    r"(.*/)?(stem|reduce|spatial[12]?|expand|shortcut)_norm/(scale|bias)|classifier/bias"
    r"|stage\d_block\d+/spatial/(row|column)_embeddings"
)


@pytest.mark.parametrize("name", MODELS)
def test_kernels_of_every_model_are_prunable_and_all_else_is_dense(name):
    for path, leaf in named_leaves(network(name)[1]):
        assert bool(PRUNABLE.fullmatch(path)) != bool(DENSE.fullmatch(path)), path
        assert is_prunable(path, leaf) == bool(PRUNABLE.fullmatch(path)), path


def test_the_first_rule_that_matches_decides():
    rules = (("^stem/", False), ("kernel$", True))
    assert not is_prunable("stem/kernel", jnp.ones(3), rules)
    assert is_prunable("classifier/kernel", jnp.ones(3), rules)


@pytest.mark.parametrize(
    ("path", "shape", "prunable"),
    [
        ("w1", (3, 4), True),
        ("blocks/0/attention/kernel", (8, 2, 4), True),
        ("conv/weight", (3, 3, 1, 8), True),
        ("layer/kernel/value", (3, 4), True),  # a variable of nnx
        ("patch_embed/kernel", (4, 4, 3, 8), True),
        ("upscale/kernel", (4, 8), True),
        ("kernel", (4,), False),
        ("attention/query/bias", (2, 4), False),
        ("pos_embedding", (1, 16, 8), False),
        ("pos_embed/value", (1, 16, 8), False),
        ("pos", (16, 8), False),
        ("cls_token", (1, 1, 8), False),
        ("cls", (1, 1, 8), False),
        ("relative_position_bias_table", (9, 2), False),
        ("batch_norm/offset", (1, 1, 1, 8), False),
        ("norm/gamma", (1, 8), False),
        ("tokens/embedding", (50, 8), False),
    ],
)
def test_arrays_from_rank_2_on_are_kernels_unless_their_name_says_otherwise(
    path, shape, prunable
):
    assert is_prunable(path, jnp.ones(shape)) == prunable
    assert not is_prunable(path, jnp.ones(shape, jnp.int32))


@pytest.mark.parametrize("path", ["block/gain", "kernels", "my_kernel", "kernel/extra"])
def test_a_parameter_without_a_rule_is_an_error(path):
    rules = ((r"(^|/)kernel$", True),)
    message = rf"no rule says whether parameter '{path}' of shape \(3, 4\) is prun"
    with pytest.raises(ConfigError, match=message):
        is_prunable(path, jnp.ones((3, 4)), rules)
    with pytest.raises(ConfigError, match=message):
        init_masks(jax.random.key(0), {path: jnp.ones((3, 4))}, 0.5, rules=rules)


@pytest.mark.parametrize("kept", [0.0, -0.5, 1.01, 30])
def test_a_density_outside_its_range_is_an_error(kept):
    with pytest.raises(ConfigError, match="the density is .*above 0 and at most 1"):
        init_masks(jax.random.key(0), PARAMS, kept)


def test_an_unknown_distribution_is_an_error():
    with pytest.raises(ConfigError, match="'erc'; did you mean 'erk'"):
        init_masks(jax.random.key(0), PARAMS, 0.5, "erc")


@pytest.mark.slow
@pytest.mark.parametrize("kept, millions", [(0.1, 0.858), (0.05, 0.445), (0.03, 0.280)])
def test_masks_of_the_whole_student_have_these_counts(kept, millions):
    _, params = network("resnet26_attention")
    masks = init_masks(jax.random.key(0), params, kept)
    found = count_nonzero(masks, params)
    named = named_leaves(params)
    kernels = [leaf.shape for path, leaf in named if is_prunable(path, leaf)]
    dense = sum(leaf.size for path, leaf in named if not is_prunable(path, leaf))
    assert found == dense + sum(layer_counts(kernels, kept, "uniform"))
    assert math.isclose(found / 1e6, millions, abs_tol=0.000501)
    assert math.isclose(density(masks), kept, rel_tol=1e-4)
