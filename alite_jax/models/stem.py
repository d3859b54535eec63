"""The stems that are modules of their own; that of small images is a `Conv3x3`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from alite_jax.models.layers import Kernel, convolution, he_normal, heads_for
from alite_jax.ops.stem_attention import stem_attention


class ImageNetStem(nn.Module):
    """A 7x7 convolution of stride 2 without bias, padded by three pixels.

    BatchNorm, ReLU and a 3x3 max-pooling of stride 2 follow (`ResNet.pool_stem`), which
    leaves a quarter of the sides.

    Attributes:
        features: output channels.
        dtype: of the computation; parameters are float32.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps `[batch, height, width, channels]` to `[batch, h, w, features]`."""
        shape = (7, 7, images.shape[-1], self.features)
        kernel = self.param("kernel", he_normal, shape, jnp.float32)
        return convolution(images, kernel, 2, self.dtype)


class AttentionStem(nn.Module):
    """Attention over the pixels with a mixture of values (`stem_attention`).

    Same resolution in and out; BatchNorm and ReLU follow, as after a convolution.
    Embeddings have as many numbers as a head has channels. Those of rows and columns
    start at N(0, 1 / head_dim), those of the mixture at N(0, 1), so
    that the shares differ from place to place from the start.

    Attributes:
        features: output channels.
        kernel_size: side of the window in pixels (4 in the paper).
        mixtures: value kernels (4 in the public codes; the paper does not say).
        heads: the most heads (4 in the paper); see `heads_for`.
        border: `"zero"` or `"mask"`; see `stem_attention`.
        dtype: of the large products; parameters, logits and softmax are float32.
    """

    features: int
    kernel_size: int = 4
    mixtures: int = 4
    heads: int = 4
    border: str = "zero"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps `[batch, height, width, channels]` to `[..., features]`."""
        heads = heads_for(self.features, self.heads)
        size = self.features // heads
        shape = (images.shape[-1], self.features)
        # Each value kernel starts as if it were the only one.
        separate = nn.initializers.variance_scaling(
            2.0, "fan_out", "normal", batch_axis=0
        )
        kernels = [
            Kernel(shape, name="query")(),
            Kernel(shape, name="key")(),
            Kernel((self.mixtures, *shape), separate, name="value")(),
        ]
        positions = size**-0.5
        embeddings = [
            self.param(
                name, nn.initializers.normal(scale), (entries, size), jnp.float32
            )
            for name, entries, scale in (
                ("row_embeddings", self.kernel_size, positions),
                ("column_embeddings", self.kernel_size, positions),
                ("mixture_embeddings", self.mixtures, 1.0),
            )
        ]
        return stem_attention(
            images.astype(self.dtype),
            *kernels,
            *embeddings,
            heads=heads,
            border=self.border,
        )
