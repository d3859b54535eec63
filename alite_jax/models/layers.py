"""Flax modules of the networks: pointwise and 3x3 convolution, local self-attention.

`Conv3x3` and `LocalSelfAttention` are the spatial operators of a block: both are built
with `features` and `stride`, and one can stand where the other stood.
"""

from functools import reduce
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from alite_jax.errors import ConfigError
from alite_jax.ops.backend import platform
from alite_jax.ops.local_attention import local_attention

_MIN_HEAD_DIM = 8  # what 8 heads leave of the paper's narrowest stage, 64 channels


class HeadDims(NamedTuple):
    """The widths of an attention layer.

    Attributes:
        heads: how many.
        qk: channels of a head's queries and keys, even: half of them see the row.
        value: channels of a head's values.
    """

    heads: int
    qk: int
    value: int


he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def heads_for(channels: int, heads: int) -> int:
    """The number of heads of a layer: `heads`, or fewer if they would be too narrow.

    Args:
        channels: the layer's channels.
        heads: the most heads wanted (8 in the paper).

    Returns:
        `heads`, reduced so that each keeps at least 8 channels.

    Raises:
        ConfigError: if that number does not divide `channels` into even parts.
    """
    fitting = max(1, min(heads, channels // _MIN_HEAD_DIM))
    if channels % fitting or (channels // fitting) % 2:
        raise ConfigError(
            f"attention: {fitting} heads do not divide {channels} channels into equal,"
            " even parts; choose student.width and student.heads so that they do"
            " (width 16, 32 or 64 with 8 heads works)"
        )
    return fitting


class Kernel(nn.Module):
    """A kernel by itself, for operations that are more than one product with it.

    Attributes:
        shape: of the kernel.
        initializer: called with a key, the shape and float32.
    """

    shape: tuple[int, ...]
    initializer: nn.initializers.Initializer = he_normal

    @nn.compact
    def __call__(self) -> jax.Array:
        """Returns the kernel, float32."""
        return self.param("kernel", self.initializer, self.shape, jnp.float32)


def pointwise(inputs: jax.Array, kernel: jax.Array, dtype: DTypeLike) -> jax.Array:
    """A 1x1 convolution without bias; on a CPU it is a matrix product.

    Args:
        inputs: `[batch, height, width, channels]`; the batch may be symbolic.
        kernel: `[channels, features]`.
        dtype: of the computation.

    Returns:
        `[batch, height, width, features]`, in `dtype`.
    """
    inputs, kernel = inputs.astype(dtype), kernel.astype(dtype)
    # On a CPU a convolution takes up to twenty times as long, and a product whose
    # pixels are not one axis twice as long: for the gradient of the kernel XLA
    # transposes a copy. For a GPU, XLA's Triton fusion cannot tile either product and
    # aborts the process (jax 0.10). A program with a free batch dimension is for any
    # device. LiteRT's converter (0.5.0) gives a product of one row the wrong rank.
    on_cpu = platform() == "cpu" and isinstance(inputs.shape[0], int)
    if on_cpu and inputs.size > inputs.shape[-1]:
        outputs = jnp.dot(inputs.reshape(-1, inputs.shape[-1]), kernel)
        return outputs.reshape(*inputs.shape[:-1], kernel.shape[1])
    return jax.lax.conv_general_dilated(
        inputs,
        kernel[None, None],
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


class Pointwise(nn.Module):
    """The layer of `pointwise`.

    Attributes:
        features: output channels.
        stride: keeps every `stride`-th row and column.
        dtype: of the computation; parameters are float32.
    """

    features: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps `[batch, height, width, channels]` to `[..., features]`."""
        if self.stride > 1:
            inputs = inputs[:, :: self.stride, :: self.stride]
        kernel = self.param(
            "kernel", he_normal, (inputs.shape[-1], self.features), jnp.float32
        )
        return pointwise(inputs, kernel, self.dtype)


def convolution(
    inputs: jax.Array, kernel: jax.Array, stride: int, dtype: DTypeLike
) -> jax.Array:
    """A convolution without bias, padded so that a stride of 1 keeps the sides.

    Args:
        inputs: `[batch, height, width, channels]`.
        kernel: `[size, size, channels, features]`, of an odd size.
        stride: of rows and columns.
        dtype: of the computation.

    Returns:
        `[batch, h, w, features]`, in `dtype`: sides over the stride, rounded up.
    """
    margin = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        inputs.astype(dtype),
        kernel.astype(dtype),
        window_strides=(stride, stride),
        padding=((margin, margin), (margin, margin)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def max_pool(maps: jax.Array) -> jax.Array:
    """The largest of 3x3 pixels with a stride of 2, padded by one pixel.

    Args:
        maps: `[batch, height, width, channels]`; the batch may be symbolic.

    Returns:
        `[batch, h, w, channels]`: half the sides, rounded up.
    """
    height, width = maps.shape[1:3]
    margin = (1, 1)
    padded = jnp.pad(maps, ((0, 0), margin, margin, (0, 0)), constant_values=-jnp.inf)
    # Not by XLA's own window, whose gradient is slow on CPUs.
    shifted = [
        padded[:, a : a + height : 2, b : b + width : 2]
        for a in range(3)
        for b in range(3)
    ]
    return reduce(jnp.maximum, shifted)


class Conv3x3(nn.Module):
    """A 3x3 convolution without bias, padded by one pixel.

    Attributes:
        features: output channels.
        stride: of rows and columns.
        dtype: of the computation; parameters are float32.
    """

    features: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps `[batch, height, width, channels]` to `[batch, h, w, features]`."""
        shape = (3, 3, inputs.shape[-1], self.features)
        kernel = self.param("kernel", he_normal, shape, jnp.float32)
        return convolution(inputs, kernel, self.stride, self.dtype)


class LocalSelfAttention(nn.Module):
    """Stand-alone local self-attention (arXiv 1906.05909, section 3).

    Dense projections to queries, keys and values without bias, no scale, no output
    projection; row and column embeddings are shared by the heads and start at
    N(0, 1 / head_dim). Attention runs at the resolution of the input; a
    stride of 2 appends a 2x2 average pooling.

    Attributes:
        features: output channels.
        stride: of the pooling that follows; 1 for none.
        kernel_size: odd side of the window, in pixels.
        heads: the most heads; see `heads_for`.
        border: `"zero"` or `"mask"`; see `local_attention`.
        method: how to compute it; see `local_attention`.
        dims: the widths of its heads, which may differ once weights were cut out;
            None makes `heads` equal parts of `features`.
        dtype: of the projections; logits and softmax are float32.
    """

    features: int
    stride: int = 1
    kernel_size: int = 7
    heads: int = 8
    border: str = "zero"
    method: str = "auto"
    dims: HeadDims | None = None
    dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def head_dims(self) -> HeadDims:
        """The widths of the heads."""
        if self.dims is not None:
            return self.dims
        heads = heads_for(self.features, self.heads)
        return HeadDims(heads, self.features // heads, self.features // heads)

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps `[batch, height, width, channels]` to `[batch, h, w, features]`."""
        heads, qk, value = self.head_dims()
        kernels = [
            Kernel((inputs.shape[-1], heads * dim), name=name)()
            for name, dim in (("query", qk), ("key", qk), ("value", value))
        ]
        # One product reads the input once, which counts where maps are small.
        maps = pointwise(inputs, jnp.concatenate(kernels, axis=1), self.dtype)
        parts = jnp.split(maps, (heads * qk, 2 * heads * qk), axis=-1)
        queries, keys, values = (
            part.reshape(*part.shape[:-1], heads, dim)
            for part, dim in zip(parts, (qk, qk, value), strict=True)
        )
        rows, columns = (
            self.param(
                name,
                nn.initializers.normal(qk**-0.5),
                (self.kernel_size, qk // 2),
                jnp.float32,
            ).astype(self.dtype)
            for name in ("row_embeddings", "column_embeddings")
        )
        # The operator wants one width; zeros change no product.
        width = max(qk, value + value % 2)
        queries, keys = (_widen_halves(maps, width) for maps in (queries, keys))
        output = local_attention(
            queries,
            keys,
            _widen(values, width),
            _widen(rows, width // 2),
            _widen(columns, width // 2),
            kernel_size=self.kernel_size,
            border=self.border,
            method=self.method,
        )
        output = output[..., :value].reshape(*inputs.shape[:-1], heads * value)
        if self.stride == 1:
            return output
        # The last window of an odd side is partial: its mean is over what is there.
        window = (self.stride, self.stride)
        return nn.avg_pool(output, window, window, "SAME", count_include_pad=False)


def _widen(array: jax.Array, width: int) -> jax.Array:
    """Appends zeros to the last axis."""
    missing = width - array.shape[-1]
    if missing == 0:
        return array
    return jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)])


def _widen_halves(maps: jax.Array, width: int) -> jax.Array:
    """Widens the half of the channels that sees the row, and the other, each."""
    if maps.shape[-1] == width:
        return maps
    halves = jnp.split(maps, 2, axis=-1)
    return jnp.concatenate([_widen(half, width // 2) for half in halves], axis=-1)
