"""The layers of a network as its own trace shows them: shapes only, nothing allocated.

A MAC is one multiply-add, and MACs follow from what a layer is, not from how it is
computed. Weight MACs are those of the kernels; a fraction of a kernel's weights causes
the same fraction of them. An attention core has no weights that could be absent. For
each pixel and channel it takes, in local self-attention, `kernel_size**2` for `q . k`,
as many for the weighted values, and `kernel_size` for the factored `q . r`; in the
attention stem, whose side is `kernel_size`, `kernel_size**2` for `q . k`, as many for
the weighted values, and for each of its mixtures as many again to mix the values.
Normalisation, activations, pooling and additions have no MACs.
"""

import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from alite_jax.models.layers import Kernel, LocalSelfAttention
from alite_jax.models.resnet import Bottleneck
from alite_jax.models.stem import AttentionStem


@dataclass(frozen=True)
class Layer:
    """What one layer is and does for one image.

    Attributes:
        path: of the module, such as `"stage1_block1/spatial/query"`.
        shapes: of its own parameters, by name, such as `{"kernel": (64, 64)}`.
        weight: MACs of its kernel.
        core: MACs of its attention core.
        outputs: elements of its output, 0 for a part of another layer.
    """

    path: str
    shapes: dict[str, tuple[int, ...]]
    weight: int = 0
    core: int = 0
    outputs: int = 0


# What blocks hold and the shape that they return, by `_identity`. A block met before,
# in this or in another network, is not traced again.
_blocks: dict[Hashable, tuple[tuple[Layer, ...], jax.ShapeDtypeStruct]] = {}


def trace_layers(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Layer]:
    """The layers that have parameters, in the order in which they finish.

    Args:
        model: called with images `[1, *image_shape]` and `train=False`.
        image_shape: (height, width, channels).
    """
    layers: list[Layer] = []

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        path = "/".join(module.path)
        if not isinstance(module, Bottleneck):
            output = call(*args, **kwargs)
            layers.extend(_layers_of(module, path, args, output))
            return output
        key = _identity(module, args[0].shape)
        if key in _blocks:
            inside, shape = _blocks[key]
            layers.extend(replace(x, path=f"{path}/{x.path}") for x in inside)
            return jnp.zeros(shape.shape, shape.dtype)
        start = len(layers)
        output = call(*args, **kwargs)
        _blocks[key] = (
            tuple(replace(x, path=x.path[len(path) + 1 :]) for x in layers[start:]),
            jax.ShapeDtypeStruct(output.shape, output.dtype),
        )
        return output

    def run() -> Any:
        images = jnp.zeros((1, *image_shape))
        with nn.intercept_methods(record):
            return model.init(jax.random.key(0), images, train=False)

    jax.eval_shape(run)
    return layers


def total_macs(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """MACs of a whole dense network for one image; see `trace_layers`."""
    layers = trace_layers(model, image_shape)
    return sum(layer.weight + layer.core for layer in layers)


def _identity(block: Bottleneck, input_shape: tuple[int, ...]) -> Hashable:
    """Equal for blocks of equal layers."""

    def by_value(operator: Any) -> Hashable:
        if isinstance(operator, partial):
            return operator.func, operator.args, tuple(operator.keywords.items())
        return operator

    operators = by_value(block.spatial), by_value(block.norm)
    widths = block.features, block.widths
    return widths, block.stride, block.dtype, operators, input_shape


def _layers_of(
    module: nn.Module, path: str, inputs: tuple[Any, ...], output: Any
) -> Iterator[Layer]:
    """The layer that a module is, if it has parameters of its own."""
    params = module.variables.get("params", {})
    own = {k: v.shape for k, v in params.items() if not isinstance(v, Mapping)}
    if not own or isinstance(module, Kernel):  # The latter is counted where it is used.
        return
    layer = Layer(path, own, outputs=output.size)
    pixels = _pixels(inputs[0])
    if isinstance(module, LocalSelfAttention):
        for projection in _projections(path, params, pixels):
            features = projection.shapes["kernel"][-1]
            yield replace(projection, outputs=pixels * features)
        heads, qk, value = module.head_dims()
        window = module.kernel_size**2
        products = qk * (window + module.kernel_size) + value * window
        yield replace(layer, core=pixels * heads * products)
    elif isinstance(module, AttentionStem):
        yield from _projections(path, params, pixels)
        window = (2 + module.mixtures) * module.kernel_size**2
        yield replace(layer, core=pixels * module.features * window)
    elif "kernel" in own:
        yield replace(layer, weight=_pixels(output) * math.prod(own["kernel"]))
    else:
        yield layer


def _projections(path: str, params: Any, pixels: int) -> Iterator[Layer]:
    """The kernels of a layer of attention, which multiplies them itself."""
    for name in ("query", "key", "value"):
        shape = params[name]["kernel"].shape
        yield Layer(
            f"{path}/{name}", {"kernel": shape}, weight=pixels * math.prod(shape)
        )


def _pixels(maps: Any) -> int:
    """Of one image, of `[batch, height, width, channels]`; 1 without these axes."""
    return math.prod(maps.shape[1:-1])
