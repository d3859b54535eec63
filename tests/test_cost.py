"""Costs against numbers worked out beforehand, layer by layer and in total."""

import functools
import math

import flax.linen as nn
import jax
import numpy as np
import pytest
from networks import network

from alite_jax.analysis import cost as cost_module
from alite_jax.analysis.cost import layer_macs, network_cost
from alite_jax.models.layers import Conv3x3, LocalSelfAttention, Pointwise
from alite_jax.sparsity.distributions import layer_counts
from alite_jax.sparsity.masks import dense_masks, is_prunable

CIFAR = (32, 32, 3)
TINY_IMAGENET = (64, 64, 3)


@functools.cache
def layer_macs_of(name, classes, kernel_size, image_shape):
    model, _ = network(name, classes, kernel_size=kernel_size)
    return layer_macs(model, image_shape)


def macs(name, classes=10, kernel_size=7, image_shape=CIFAR):
    layers = layer_macs_of(name, classes, kernel_size, image_shape)
    return sum(x.weight for x in layers), sum(x.core for x in layers)


def deep_ones_slow(rows):
    """Marks deep students, which take longest to trace and add least."""
    return [
        pytest.param(*row, marks=pytest.mark.slow)
        if row[0].startswith(("resnet38", "resnet50_attention"))
        else row
        for row in rows
    ]


def uniform_masks(params, density):
    """Masks of exact counts; which weights they keep does not matter here."""

    def mask(path, leaf):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        if not is_prunable(path):
            return np.ones((), bool)
        (count,) = layer_counts([leaf.shape], density, "uniform")
        mask = np.zeros(leaf.size, bool)
        mask[:count] = True
        return mask.reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(mask, params)


# GMAC of the dense network, as printed.
DENSE = [
    ("resnet50", 10, 7, CIFAR, "1.298"),
    ("resnet50", 100, 7, CIFAR, "1.298"),
    ("resnet50", 200, 7, TINY_IMAGENET, "5.192"),
    ("resnet26", 10, 7, CIFAR, ".727"),
    ("resnet26", 100, 7, CIFAR, ".728"),
    ("resnet26", 200, 7, TINY_IMAGENET, "2.910"),
    ("resnet38", 10, 7, CIFAR, "1.013"),
    ("resnet38", 100, 7, CIFAR, "1.013"),
    ("resnet38", 200, 7, TINY_IMAGENET, "4.051"),
    ("resnet26_attention", 100, 7, CIFAR, ".679"),
    ("resnet26_attention_conv1", 100, 7, CIFAR, ".697"),
    ("resnet38_attention", 100, 7, CIFAR, ".877"),
    ("resnet50_attention", 100, 7, CIFAR, "1.074"),
    ("resnet26_attention", 200, 7, TINY_IMAGENET, "2.716"),
    ("resnet26_attention_conv1", 200, 7, TINY_IMAGENET, "2.789"),
    ("resnet38_attention", 200, 7, TINY_IMAGENET, "3.506"),
    ("resnet50_attention", 200, 7, TINY_IMAGENET, "4.296"),
]


@pytest.mark.parametrize(
    "name, classes, kernel_size, image_shape, gmacs", deep_ones_slow(DENSE)
)
def test_dense_macs(name, classes, kernel_size, image_shape, gmacs):
    found = sum(macs(name, classes, kernel_size, image_shape))
    assert math.isclose(found / 1e9, float(gmacs), abs_tol=0.000501)


# CIFAR-10: GMAC, the core's share of it, and how many times fewer MACs than ResNet-50's
# the network has dense and at a density of 10, 5 and 3 %.
STUDENTS = [
    ("resnet26_attention", 3, ".647", 1, "2.01 18.1 32.5 47.9"),
    ("resnet26_attention", 7, ".679", 6, "1.91 12.5 18.1 22.1"),
    ("resnet26_attention_conv1", 3, ".671", None, "1.93 17.8 32.6 49.0"),
    ("resnet26_attention_conv1", 7, ".697", 5, "1.86 13.1 19.7 24.7"),
    ("resnet26_attention_conv12", 7, ".693", 2, "1.87 15.6 26.3 36.3"),
    ("resnet38_attention", 3, ".834", None, "1.56 14.0 25.1 36.9"),
    ("resnet38_attention", 7, ".876", 6, "1.48 9.6 13.9 16.8"),
    ("resnet38_attention_conv1", 7, ".913", 4, "1.42 10.3 15.7 20.0"),
    ("resnet50_attention", 3, "1.021", None, "1.27 11.4 20.4 30.0"),
    ("resnet50_attention", 7, "1.074", 6, "1.21 7.8 11.2 13.6"),
    ("resnet50_attention_conv1", 7, "1.129", 4, "1.15 8.5 13.1 16.8"),
]


@pytest.mark.parametrize(
    "name, kernel_size, gmacs, core_percent, ratios", deep_ones_slow(STUDENTS)
)
def test_macs_of_students(name, kernel_size, gmacs, core_percent, ratios, monkeypatch):
    weight, core = macs(name, 10, kernel_size)
    assert math.isclose((weight + core) / 1e9, float(gmacs), abs_tol=0.000501)
    if core_percent is not None:
        assert abs(100 * core / (weight + core) - core_percent) < 0.51
    teacher = sum(macs("resnet50"))
    model, params = network(name, 10, kernel_size=kernel_size)
    layers = layer_macs_of(name, 10, kernel_size, CIFAR)
    monkeypatch.setattr(cost_module, "layer_macs", lambda *_: layers)  # not again
    for density, printed in zip((None, 0.1, 0.05, 0.03), ratios.split(), strict=True):
        masks = uniform_masks(params, density) if density else dense_masks(params)
        cost = network_cost(model, CIFAR, params, masks)
        assert cost["macs"] == weight + core
        half_a_digit = 0.51 * 10.0 ** -len(printed.split(".")[1])
        ratio = teacher / cost["nonzero_macs"]
        assert math.isclose(ratio, float(printed), abs_tol=half_a_digit), density


def test_layers_by_hand():
    class Small(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = Conv3x3(4, name="conv")(x)
            x = LocalSelfAttention(8, stride=2, kernel_size=3, name="attention")(x)
            x = Pointwise(6, stride=2, name="pointwise")(x)
            return nn.Dense(10, name="classifier")(x.mean(axis=(1, 2)))

    found = {x.path: (x.weight, x.core) for x in layer_macs(Small(), (8, 12, 3))}
    assert found == {
        "conv": (96 * 9 * 3 * 4, 0),
        # Projections and core at the resolution of the input, before the pooling.
        "attention/query": (96 * 4 * 8, 0),
        "attention/key": (96 * 4 * 8, 0),
        "attention/value": (96 * 4 * 8, 0),
        "attention": (0, 96 * 8 * (9 + 9 + 3)),
        # 4 x 6 pixels after the pooling, of which every other row and column is left.
        "pointwise": (2 * 3 * 8 * 6, 0),
        "classifier": (6 * 10, 0),
    }


def test_every_kernel_is_counted_once_and_in_order():
    model, params = network("resnet26_attention_conv1", width=8)
    paths = [layer.path for layer in layer_macs(model, CIFAR)]
    assert len(paths) == len(set(paths))
    kernels = {
        path.removesuffix("/kernel")
        for path, _ in (
            (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        )
        if path.endswith("/kernel")
    }
    cores = {path for path in paths if path not in kernels}
    assert kernels <= set(paths)
    assert all(path.endswith("/spatial") for path in cores) and len(cores) == 7
    assert paths[0] == "stem" and paths[-1] == "classifier"


@pytest.fixture
def small():
    return network("resnet26_attention_conv1", kernel_size=3, width=8)


def test_without_pruning_nothing_is_saved(small):
    model, params = small
    for masks in (dense_masks(params), uniform_masks(params, 1.0)):
        cost = network_cost(model, CIFAR, params, masks)
        assert cost["nonzero_macs"] == cost["macs"]
        assert cost["nonzero_parameters"] == cost["parameters"]
        assert all(type(value) is int for value in cost.values())


@pytest.mark.parametrize(
    "path, macs_of_a_weight",
    [
        (("stem",), 32 * 32),
        (("stage1_block1", "spatial"), 32 * 32),
        (("stage2_block1", "spatial", "key"), 32 * 32),
        (("stage2_block1", "expand"), 16 * 16),
        (("stage3_block1", "shortcut"), 8 * 8),
        (("classifier",), 1),
    ],
)
def test_an_absent_weight_saves_its_own_macs_only(small, path, macs_of_a_weight):
    model, params = small
    masks = uniform_masks(params, 1.0)
    leaf = functools.reduce(lambda tree, key: tree[key], path, masks)["kernel"]
    leaf.reshape(-1)[:5] = False
    cost = network_cost(model, CIFAR, params, masks)
    assert cost["macs"] - cost["nonzero_macs"] == 5 * macs_of_a_weight
    assert cost["parameters"] - cost["nonzero_parameters"] == 5


def test_the_attention_core_is_never_saved(small):
    model, params = small
    masks = jax.tree.map(np.zeros_like, uniform_masks(params, 1.0))
    cost = network_cost(model, CIFAR, params, masks)
    assert cost["nonzero_macs"] == sum(x.core for x in layer_macs(model, CIFAR)) > 0
