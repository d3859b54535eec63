"""Where a trained network looks: the attention weights of one of its layers."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from alite_jax.data.augment import normalize
from alite_jax.data.specs import DatasetSpec
from alite_jax.errors import ConfigError, nearest
from alite_jax.models.layers import LocalSelfAttention
from alite_jax.ops.window_weights import window_weights


def attention_maps(
    model: nn.Module,
    variables: Any,
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
    layers: dict[str, tuple[LocalSelfAttention, jax.Array, jax.Array]] = {}
    projections: dict[str, jax.Array] = {}

    def look(following: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = following(*args, **kwargs)
        name = "/".join(context.module.path)
        if context.method_name == "__call__":
            if isinstance(context.module, LocalSelfAttention):
                found = context.module.variables["params"]
                embeddings = found["row_embeddings"], found["column_embeddings"]
                layers[name] = (context.module, *embeddings)
            elif name.rpartition("/")[2] in ("query", "key"):
                projections[name] = result
        return result

    inputs = normalize(jnp.asarray(images), spec.mean, spec.std)
    with nn.intercept_methods(look):
        model.apply(variables, inputs, train=False)
    if path not in layers:
        raise ConfigError(
            f"the network has no attention layer {path!r}; {nearest(path, layers)}"
        )
    layer, rows, columns = layers[path]
    head_dim = 2 * rows.shape[1]
    queries, keys = (
        array.reshape(*array.shape[:-1], -1, head_dim)
        for array in (projections[f"{path}/query"], projections[f"{path}/key"])
    )
    weights = window_weights(queries, keys, rows, columns, border=layer.border)
    return np.asarray(weights)
