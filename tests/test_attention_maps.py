"""The weights that a layer gives, against its own output and explicit loops."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alite_jax.data.augment import normalize
from alite_jax.data.specs import DATASETS
from alite_jax.errors import ConfigError
from alite_jax.models.resnet import create_model
from alite_jax.ops.window_weights import window_weights
from alite_jax.ops.windows import unfold
from alite_jax.pages.attention_maps import attention_maps


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("border", ["zero", "mask"])
def test_window_weights_equal_loops(border: str) -> None:
    height, width, heads, size, dim = 4, 5, 2, 3, 4
    q, k = drawn(1, height, width, heads, dim), 2 * drawn(1, height, width, heads, dim)
    rows, columns = drawn(size, dim // 2), 3 * drawn(size, dim // 2)
    found = jax.jit(partial(window_weights, border=border))(q, k, rows, columns)
    assert found.shape == (1, height, width, heads, size, size)
    for i, j, head in np.ndindex(height, width, heads):
        weights = np.zeros((size, size))
        for u, v in np.ndindex(size, size):
            a, b = i + u - 1, j + v - 1
            inside = 0 <= a < height and 0 <= b < width
            key = k[0, a, b, head] if inside else np.zeros(dim)
            position = np.concatenate([rows[u], columns[v]])
            if inside or border == "zero":
                weights[u, v] = np.exp(q[0, i, j, head] @ (key + position))
        weights /= weights.sum()
        np.testing.assert_allclose(found[0, i, j, head], weights, atol=1e-5)


@pytest.fixture
def network(models: None) -> tuple[nn.Module, Any]:
    """A network whose weights and statistics are noise around 1."""
    model = create_model("tiny_attention", num_classes=10, width=16, kernel_size=3)
    images = np.zeros((1, 8, 8, 1), np.float32)
    init = partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), images)
    return model, jax.tree.map(lambda leaf: 1 + 0.2 * drawn(*leaf.shape), shapes)


def test_maps_are_those_of_the_layer(network: tuple[Any, Any]) -> None:
    images = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 1), np.uint8)
    spec = DATASETS["digits"]
    maps = attention_maps(*network, images, spec, "stage1_block1/spatial")
    assert maps.shape == (2, 8, 8, 2, 3, 3)
    np.testing.assert_allclose(maps.sum((-2, -1)), 1, rtol=1e-5)
    assert np.ptp(maps) > 0.1
    # With the values, they give what the layer gives.
    model, variables = network

    @jax.jit
    def layers(variables: Any, images: Any) -> Any:
        seen = {}

        def look(following: Any, args: Any, kwargs: Any, context: Any) -> Any:
            result = following(*args, **kwargs)
            seen["/".join(context.module.path)] = args, result
            return result

        with nn.intercept_methods(look):
            model.apply(variables, normalize(images, spec.mean, spec.std), train=False)
        return seen["stage1_block1/spatial"], seen["stage1_block1/spatial/value"]

    ((inputs,), found), (_, kernel) = layers(variables, images)
    values = (inputs @ kernel).reshape(2, 8, 8, 2, 8)
    output = jnp.einsum("bijhuv,bijuvhd->bijhd", maps, unfold(values, 3))
    np.testing.assert_allclose(output.reshape(found.shape), found, atol=1e-4)


def test_a_layer_without_attention(network: tuple[Any, Any]) -> None:
    images = np.zeros((1, 8, 8, 1), np.uint8)
    with pytest.raises(ConfigError, match="no attention layer 'stage2_block1/spatial'"):
        attention_maps(*network, images, DATASETS["digits"], "stage2_block1/spatial")
