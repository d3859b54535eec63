"""Where a trained network looks: the attention weights of one of its layers."""

from collections.abc import Callable, Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import numpy as np

from alite_jax.data.augment import normalize
from alite_jax.data.specs import DatasetSpec
from alite_jax.errors import ConfigError, nearest
from alite_jax.models.layers import LocalSelfAttention, pointwise
from alite_jax.models.model import Model
from alite_jax.ops.window_weights import window_weights


def attention_maps(
    model: Model,
    variables: chex.ArrayTree,
    images: np.ndarray,
    spec: DatasetSpec,
    path: str,
) -> np.ndarray:
    """Returns the weights that a layer gives to the window of each pixel.

    Args:
        model: the network.
        variables: `params` and `batch_stats`.
        images: uint8 `[batch, height, width, channels]`.
        spec: of the data set, for its normalisation.
        path: of the layer, such as `"stage1_block1/spatial"`.

    Returns:
        `[batch, h, w, heads, kernel_size, kernel_size]`, float32; the last two sum up
        to 1. Map and heads are those of the layer.

    Raises:
        ConfigError: the network has no attention layer of this path.
    """
    layers: dict[str, tuple[LocalSelfAttention, jax.Array, Mapping[str, Any]]] = {}

    def look(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name == "__call__" and isinstance(module, LocalSelfAttention):
            name = "/".join(module.path)
            layers[name] = (module, args[0], module.variables["params"])
        return call(*args, **kwargs)

    @jax.jit  # Which leaves out what comes after the layer.
    def weights(variables: chex.ArrayTree, images: jax.Array) -> jax.Array:
        with nn.intercept_methods(look):
            inputs = normalize(images, spec.mean, spec.std)
            model.apply(variables, inputs, train=False)
        if path not in layers:
            raise ConfigError(
                f"the network has no attention layer {path!r}; {nearest(path, layers)}"
            )
        layer, maps, params = layers[path]
        rows, columns = params["row_embeddings"], params["column_embeddings"]
        queries, keys = (
            pointwise(maps, params[name]["kernel"], layer.dtype).reshape(
                *maps.shape[:-1], -1, 2 * rows.shape[1]
            )
            for name in ("query", "key")
        )
        return window_weights(queries, keys, rows, columns, border=layer.border)

    return np.asarray(weights(variables, images))
