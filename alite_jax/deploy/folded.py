"""A network in evaluation form, for runtimes that take operations as they come.

BatchNorm is folded into the kernel before it: its scale into the output channels (of
attention, into those of the values), the rest becomes a bias. Attention takes
`block_attention`. Everything else is the network's own.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from alite_jax.data.augment import normalize
from alite_jax.data.specs import DatasetSpec
from alite_jax.deploy.block_attention import block_attention
from alite_jax.models.layers import LocalSelfAttention, Pointwise
from alite_jax.models.resnet import ResNet
from alite_jax.ops.relative_positions import leading

# How 1x1 convolutions are written: as products of matrices or as what they are. No
# runtime likes the same for all networks.
POINTWISE = ("product", "convolution")


def folded(
    model: ResNet, variables: Mapping[str, Any], spec: DatasetSpec, pointwise: str
) -> Callable[[jax.Array], jax.Array]:
    """Returns the network as a function of uint8 images, `[batch, height, width, c]`.

    It gives float32 logits, `[batch, classes]`, and computes in float32.

    Args:
        model: teacher or student.
        variables: its `params` and `batch_stats`, numpy arrays; constants from here on.
        spec: of the data set, by which images are normalised.
        pointwise: one of `POINTWISE`.
    """
    model = model.clone(dtype=jnp.float32)
    params = _fold(variables["params"], variables["batch_stats"], model.epsilon)

    def intercept(
        next_call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        module = context.module
        if context.method_name != "__call__":
            return next_call(*args, **kwargs)
        if isinstance(module, nn.BatchNorm):
            return args[0]
        own = module.variables.get("params", {})
        if isinstance(module, Pointwise):
            return _pointwise(args[0], own, module.stride, pointwise)
        if isinstance(module, LocalSelfAttention):
            outputs = _attention(args[0], own, module)
        else:
            outputs = next_call(*args, **kwargs)
        return outputs + _bias(own, outputs.ndim) if _BIAS in own else outputs

    def forward(images: jax.Array) -> jax.Array:
        inputs = normalize(images, spec.mean, spec.std)
        with nn.intercept_methods(intercept):
            return jnp.asarray(model.apply({"params": params}, inputs, train=False))

    return forward


# Beside the kernel that a BatchNorm was folded into. No module has one of this name.
_BIAS = "folded_bias"


def _fold(params: Any, statistics: Any, epsilon: float) -> dict[str, Any]:
    """Parameters without BatchNorms: `NAME_norm` becomes part of `NAME`."""
    smaller: dict[str, Any] = {}
    for name, own in params.items():
        norm = f"{name}_norm"
        if norm in params:
            deviation = np.sqrt(statistics[norm]["var"] + epsilon)
            scale = params[norm]["scale"] / deviation
            bias = params[norm]["bias"] - statistics[norm]["mean"] * scale
            smaller[name] = {**_scaled(own, scale), _BIAS: bias}
        elif name in statistics and not name.endswith("_norm"):
            smaller[name] = _fold(own, statistics[name], epsilon)
        elif not name.endswith("_norm"):
            smaller[name] = own
    return smaller


def _scaled(own: Any, scale: np.ndarray) -> dict[str, Any]:
    """The parameters of an operator whose output channels are multiplied by `scale`."""
    if "kernel" in own:
        return {**own, "kernel": own["kernel"] * scale}
    return {**own, "value": {"kernel": own["value"]["kernel"] * scale}}


def _bias(own: Any, ndim: int) -> np.ndarray:
    return leading(np.asarray(own[_BIAS]), ndim)


def _pointwise(inputs: jax.Array, own: Any, stride: int, written: str) -> jax.Array:
    if written == "convolution":
        outputs = jax.lax.conv_general_dilated(
            inputs,
            own["kernel"][None, None],
            window_strides=(stride, stride),
            padding="VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return outputs + _bias(own, outputs.ndim)
    if stride > 1:
        inputs = inputs[:, ::stride, ::stride]
    # With its bias while it is a matrix, which is one operation for most runtimes.
    pixels = inputs.reshape(-1, inputs.shape[-1])
    outputs = jnp.dot(pixels, own["kernel"]) + _bias(own, 2)
    return outputs.reshape(*inputs.shape[:-1], -1)


def _attention(inputs: jax.Array, own: Any, module: LocalSelfAttention) -> jax.Array:
    heads, qk, value = module.head_dims()
    kernels = [own[name]["kernel"] for name in ("query", "key", "value")]
    pixels = inputs.reshape(-1, inputs.shape[-1])
    maps = jnp.dot(pixels, np.concatenate(kernels, axis=1))
    queries, keys, values = (
        part.reshape(*inputs.shape[:-1], heads, dim)
        for part, dim in zip(
            jnp.split(maps, (heads * qk, 2 * heads * qk), axis=-1),
            (qk, qk, value),
            strict=True,
        )
    )
    outputs = block_attention(
        queries,
        keys,
        values,
        own["row_embeddings"],
        own["column_embeddings"],
        border=module.border,
    )
    outputs = outputs.reshape(*inputs.shape[:-1], heads * value)
    return _pooled(outputs, module.stride)


def _pooled(maps: jax.Array, stride: int) -> jax.Array:
    """The mean of each window of `stride` pixels; at an odd side, of what is there."""
    batch, height, width, channels = maps.shape
    if stride == 1:
        return maps
    if height % stride == 0 and width % stride == 0:
        shape = (batch, height // stride, stride, width // stride, stride, channels)
        return jnp.mean(maps.reshape(shape), axis=(2, 4))
    window = (stride, stride)
    return nn.avg_pool(
        maps,
        window_shape=window,
        strides=window,
        padding="SAME",
        count_include_pad=False,
    )
