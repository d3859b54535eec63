"""Counting what a model costs, from the model itself: shapes traced, nothing allocated.

A MAC is one multiply-add. Weight MACs are those of the kernels; a fraction of a layer's
weights causes the same fraction of them. The attention core has no weights: for each
pixel and channel, `kernel_size**2` for `q . k`, as many for the weighted values, and
`kernel_size` for the factored `q . r`. Normalisation, pooling and additions are not
counted.
"""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from alite_jax.models.layers import Conv3x3, LocalSelfAttention, Pointwise
from alite_jax.sparsity.masks import count_nonzero, count_parameters, kept_entries
from alite_jax.trees import named_leaves


@dataclass(frozen=True)
class LayerMacs:
    """MACs of one layer for one image.

    Attributes:
        path: of the module, such as `"stage1_block1/spatial/query"`.
        weight: of its kernel.
        core: of its attention core.
    """

    path: str
    weight: int = 0
    core: int = 0


def layer_macs(model: nn.Module, image_shape: tuple[int, int, int]) -> list[LayerMacs]:
    """MACs of each layer for one image, in the order in which they run.

    Args:
        model: called with images `[1, *image_shape]` and `train=False`.
        image_shape: (height, width, channels).
    """
    layers: list[LayerMacs] = []

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        module = context.module
        if context.method_name != "__call__":
            return output
        path = "/".join(module.path)
        if isinstance(module, (Pointwise, Conv3x3, nn.Dense)):
            kernel = module.variables["params"]["kernel"]
            positions = math.prod(output.shape[1:-1])
            layers.append(LayerMacs(path, weight=positions * kernel.size))
        elif isinstance(module, LocalSelfAttention):
            pixels = math.prod(args[0].shape[1:-1])
            window = 2 * module.kernel_size**2 + module.kernel_size
            layers.append(LayerMacs(path, core=pixels * module.features * window))
        return output

    def run(key: jax.Array) -> Any:
        images = jnp.zeros((1, *image_shape))
        with nn.intercept_methods(record):
            return model.init(key, images, train=False)

    jax.eval_shape(run, jax.random.key(0))
    return layers


def network_cost(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    params: Any,
    masks: Any,
) -> dict[str, int]:
    """Size and compute of a network for one image.

    Args:
        model: see `layer_macs`.
        image_shape: (height, width, channels).
        params: its parameters, or their shapes.
        masks: of the structure of `params`.

    Returns:
        `parameters`: trained numbers, BatchNorm's scale and bias included.
        `nonzero_parameters`: mask entries that are on, plus all dense leaves.
        `macs`: of the dense network. `nonzero_macs`: with the MACs of absent weights
        left out; the attention core counts in full.
    """
    layers = layer_macs(model, image_shape)
    sizes = {path: leaf.size for path, leaf in named_leaves(params)}
    kept = {path: count for path, count in named_leaves(kept_entries(masks, params))}
    nonzero_macs = sum(
        layer.core + layer.weight * kept[kernel] // sizes[kernel]
        if (kernel := f"{layer.path}/kernel") in kept
        else layer.core
        for layer in layers
    )
    return {
        "parameters": count_parameters(params),
        "nonzero_parameters": count_nonzero(masks, params),
        "macs": sum(layer.weight + layer.core for layer in layers),
        "nonzero_macs": nonzero_macs,
    }
