"""The layers of a network as its own trace shows them: shapes only, nothing allocated.

What follows is how this project's networks are counted; any other one is by its
products (`alite_jax.counting.products`).

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
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from alite_jax.counting.layer import Layer, Shape
from alite_jax.counting.products import trace_products
from alite_jax.models.blocks import BasicBlock, Bottleneck
from alite_jax.models.layers import Kernel, LocalSelfAttention
from alite_jax.models.model import Model, Variables
from alite_jax.models.resnet import ResNet
from alite_jax.models.stem import AttentionStem
from alite_jax.trees import nested


def trace_layers(
    model: Model,
    image_shape: tuple[int, int, int],
    variables: Variables | None = None,
) -> list[Layer]:
    """The layers that have parameters, in the order in which they finish.

    Args:
        model: a network of this project, or any other: called with images
            `[1, *image_shape]` and `train=False`. See `trace_products` for what is
            different about its layers.
        image_shape: (height, width, channels).
        variables: `params` and `batch_stats`, or their shapes, of a network that is not
            this project's; those that it would draw, when left out.
    """
    if isinstance(model, ResNet):
        return trace_modules(model, image_shape)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    if variables is None:
        init = partial(model.init, train=False)
        variables = jax.eval_shape(init, jax.random.key(0), images)
    statistics = variables.get("batch_stats", {})

    def forward(params: chex.ArrayTree, images: jax.Array) -> chex.ArrayTree:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), statistics)
        weights = {"params": params, "batch_stats": zeros}
        logits: chex.ArrayTree = model.apply(weights, images, train=False)
        return logits

    return trace_products(forward, variables["params"], image_shape)


def trace_modules(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Layer]:
    """As `trace_layers`, of a network that is built from this project's modules."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return _trace(model, images, train=False)[0]


def total_macs(model: Model, image_shape: tuple[int, int, int]) -> int:
    """MACs of a whole dense network for one image; see `trace_layers`."""
    layers = trace_layers(model, image_shape)
    return sum(layer.weight + layer.core for layer in layers)


def parameter_shapes(model: Model, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The parameters as `jax.ShapeDtypeStruct`, in nested dicts; see `trace_layers`."""
    shapes = {
        path: jax.ShapeDtypeStruct(shape, jnp.float32)
        for layer in trace_layers(model, image_shape)
        for path, shape in layer.parameters.items()
    }
    return nested(shapes)


_Traced = tuple[list[Layer], jax.ShapeDtypeStruct]


def _trace(traced: nn.Module, inputs: jax.ShapeDtypeStruct, **options: Any) -> _Traced:
    """The layers of a module, their paths from there on, and what it returns."""
    layers: list[Layer] = []
    in_block = False

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal in_block
        module = context.module
        # What is in a block is for the trace of that block, which comes by here, too.
        if in_block or context.method_name != "__call__":
            return call(*args, **kwargs)
        path = "/".join(module.path)
        if path and isinstance(module, Bottleneck | BasicBlock):
            block = _Block(_identity(module), module.clone(parent=None))
            in_block = True
            maps = jax.ShapeDtypeStruct(args[0].shape, args[0].dtype)
            inside, output = _trace_block(block, maps)
            in_block = False
            layers.extend(replace(x, path=f"{path}/{x.path}") for x in inside)
            return jnp.zeros(output.shape, output.dtype)
        output = call(*args, **kwargs)
        layers.extend(_layers_of(module, path, args, output))
        return output

    run = partial(traced.init_with_output, **options)
    with nn.intercept_methods(record):
        output, _ = jax.eval_shape(run, jax.random.key(0), inputs)
    return layers, output


@dataclass(frozen=True)
class _Block:
    """A block as the key of a cache: equal to those of equal layers."""

    identity: Hashable
    module: Bottleneck | BasicBlock = field(compare=False)


# The search for widths traces hundreds of networks that differ in one or two blocks.
@lru_cache(maxsize=1024)
def _trace_block(block: _Block, inputs: jax.ShapeDtypeStruct) -> _Traced:
    return _trace(block.module, inputs)


def _identity(block: Bottleneck | BasicBlock) -> Hashable:
    """Equal for blocks of equal layers."""

    def by_value(operator: Any) -> Hashable:
        if isinstance(operator, partial):
            return operator.func, operator.args, tuple(operator.keywords.items())
        return operator

    operators = by_value(block.spatial), by_value(block.norm)
    sizes = block.features, block.widths, block.stride, block.dtype
    return type(block), sizes, operators


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
        yield replace(layer, products=_products(_pixels(output), own["kernel"]))
    else:
        yield layer


def _projections(path: str, params: Any, pixels: int) -> Iterator[Layer]:
    """The kernels of a layer of attention, which multiplies them itself."""
    for name in ("query", "key", "value"):
        shape = params[name]["kernel"].shape
        yield Layer(f"{path}/{name}", {"kernel": shape}, _products(pixels, shape))


def _products(pixels: int, kernel: Shape) -> dict[str, int]:
    return {"kernel": pixels * math.prod(kernel)}


def _pixels(maps: Any) -> int:
    """Of one image, of `[batch, height, width, channels]`; 1 without these axes."""
    return math.prod(maps.shape[1:-1])
