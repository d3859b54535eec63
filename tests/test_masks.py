"""Masks: structure, exact counts, and the rule that says what is prunable."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
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
    masks = quick_jit(functools.partial(draw, kept=kept))(jax.random.key(0))
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
    masks = quick_jit(functools.partial(draw, kept=0.2, distribution="erk"))(
        jax.random.key(0)
    )
    shapes = [leaf.shape for path, leaf in named_leaves(PARAMS) if path in KERNELS]
    found = [int(mask.sum()) for path, mask in named_leaves(masks) if path in KERNELS]
    assert found == layer_counts(shapes, 0.2, "erk")
    assert sum(found) == round(0.2 * sum(KERNELS.values()))


def test_which_weights_stay_depends_on_the_key_and_the_layer():
    params = {name: {"kernel": jnp.ones((20, 20))} for name in "ab"}

    @quick_jit
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
    r"|stage\d_block\d/(reduce|expand|shortcut|spatial)/kernel"
    r"|stage\d_block\d/spatial/(query|key|value)/kernel"
)
DENSE = re.compile(
    r"(.*/)?(stem|reduce|spatial|expand|shortcut)_norm/(scale|bias)|classifier/bias"
    r"|stage\d_block\d/spatial/(row|column)_embeddings"
)


@pytest.mark.parametrize("name", MODELS)
def test_kernels_of_every_model_are_prunable_and_all_else_is_dense(name):
    for path, leaf in named_leaves(network(name)[1]):
        assert bool(PRUNABLE.fullmatch(path)) != bool(DENSE.fullmatch(path)), path
        assert is_prunable(path) == bool(PRUNABLE.fullmatch(path)), path
        assert is_prunable(path) == (leaf.ndim > 1 and "embeddings" not in path), path


def test_the_first_rule_that_matches_decides():
    rules = (("^stem/", False), ("kernel$", True))
    assert not is_prunable("stem/kernel", rules)
    assert is_prunable("classifier/kernel", rules)


@pytest.mark.parametrize("path", ["block/gain", "kernels", "my_kernel", "kernel/extra"])
def test_a_parameter_without_a_rule_is_an_error(path):
    with pytest.raises(ConfigError, match=f"parameter '{path}' is prunable; add"):
        is_prunable(path)
    with pytest.raises(ConfigError, match="add a .pattern, prunable. pair"):
        init_masks(jax.random.key(0), {path: jnp.ones(3)}, 0.5)


@pytest.mark.parametrize("kept", [0.0, -0.5, 1.01, 30])
def test_a_density_outside_its_range_is_an_error(kept):
    with pytest.raises(ConfigError, match="student.density is .*above 0 and at most 1"):
        init_masks(jax.random.key(0), PARAMS, kept)


def test_an_unknown_distribution_is_an_error():
    with pytest.raises(ConfigError, match="'erc'; did you mean 'erk'"):
        init_masks(jax.random.key(0), PARAMS, 0.5, "erc")


def nonzero_parameters(name, classes, kernel_size, kept):
    """What `count_nonzero` says of uniform masks, from shapes alone."""
    named = named_leaves(network(name, classes, kernel_size=kernel_size)[1])
    kernels = [leaf.shape for path, leaf in named if is_prunable(path)]
    dense = sum(leaf.size for path, leaf in named if not is_prunable(path))
    return dense + sum(layer_counts(kernels, kept, "uniform"))


# Teacher and student: non-zeros in millions, and how many times fewer than ResNet-50's
# parameters, at a density of 10, 5 and 3 %.
TABLE = [
    ("resnet26_attention", 10, 3, ".857 27.4 .444 53.0 .279 84.4"),
    ("resnet26_attention", 10, 7, ".858 27.4 .445 52.9 .280 84.1"),
    ("resnet26_attention_conv1", 10, 3, ".860 27.4 .445 52.8 .279 84.2"),
    ("resnet26_attention_conv1", 10, 7, ".860 27.3 .446 52.7 .280 83.9"),
    ("resnet26_attention_conv12", 10, 7, ".880 26.7 .456 51.6 .286 82.2"),
    ("resnet38_attention", 10, 3, "1.252 18.8 .647 36.3 .405 58.0"),
    ("resnet38_attention", 10, 7, "1.253 18.8 .649 36.3 .407 57.8"),
    ("resnet38_attention_conv1", 10, 7, "1.258 18.7 .651 36.1 .408 57.6"),
    ("resnet50_attention", 10, 3, "1.647 14.3 .851 27.6 .532 44.2"),
    ("resnet50_attention", 10, 7, "1.649 14.3 .853 27.6 .534 44.0"),
    ("resnet50_attention_conv1", 10, 7, "1.656 14.2 .856 27.5 .536 43.9"),
    ("resnet26_attention", 100, 7, ".877 27.0 .454 52.2 .285 83.1"),
    ("resnet26_attention_conv1", 100, 7, ".879 27.0 .455 52.1 .286 82.9"),
    ("resnet38_attention", 100, 7, "1.272 18.6 .658 36.0 .412 57.5"),
    ("resnet50_attention", 100, 7, "1.667 14.2 .862 27.5 .540 43.9"),
    ("resnet26_attention", 200, 7, ".897 26.7 .465 51.5 .291 82.0"),
    ("resnet26_attention_conv1", 200, 7, ".900 26.6 .466 51.3 .292 81.8"),
    ("resnet38_attention", 200, 7, "1.292 18.5 .668 35.8 .419 57.1"),
    ("resnet50_attention", 200, 7, "1.688 14.2 .872 27.4 .546 43.8"),
]


@pytest.mark.parametrize("name, classes, kernel_size, printed", TABLE)
def test_kept_parameters_of_the_paper_sized_students(
    name, classes, kernel_size, printed
):
    numbers = [float(number) for number in printed.split()]
    teacher = count_parameters(network("resnet50", classes)[1])
    for kept, millions, ratio in zip(
        (0.1, 0.05, 0.03), numbers[::2], numbers[1::2], strict=True
    ):
        found = nonzero_parameters(name, classes, kernel_size, kept)
        # To the last digit printed, and a hair for halves.
        assert math.isclose(found / 1e6, millions, abs_tol=0.000501), kept
        assert math.isclose(teacher / found, ratio, abs_tol=0.0501), kept


@pytest.mark.slow
@pytest.mark.parametrize("kept, millions", [(0.1, 0.858), (0.05, 0.445), (0.03, 0.280)])
def test_masks_of_the_whole_student_have_these_counts(kept, millions):
    _, params = network("resnet26_attention")
    masks = init_masks(jax.random.key(0), params, kept)
    found = count_nonzero(masks, params)
    assert found == nonzero_parameters("resnet26_attention", 10, 7, kept)
    assert math.isclose(found / 1e6, millions, abs_tol=0.000501)
    assert math.isclose(density(masks), kept, rel_tol=1e-4)
