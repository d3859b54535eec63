"""Networks as other people write them, small."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx


class ViT(nn.Module):
    """Patches, a class token, position embeddings, LayerNorm, dropout."""

    num_classes: int
    features: int = 16
    depth: int = 1

    @nn.compact
    def __call__(self, images: jax.Array, deterministic: bool) -> jax.Array:
        x = nn.Conv(self.features, (2, 2), strides=(2, 2), name="patches")(images)
        x = x.reshape(len(x), -1, self.features)
        token = self.param("cls_token", nn.initializers.zeros, (1, 1, self.features))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, x.shape[-1])), x], 1)
        shape = (1, *x.shape[1:])
        x = x + self.param("pos_embedding", nn.initializers.normal(0.02), shape)
        for _ in range(self.depth):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(2)(y, y)
            y = nn.Dense(2 * self.features)(nn.LayerNorm()(x))
            y = nn.Dropout(0.1)(nn.gelu(y), deterministic=deterministic)
            x = x + nn.Dense(self.features)(y)
        return nn.Dense(self.num_classes)(nn.LayerNorm()(x)[:, 0])


class Mixer(nnx.Module):
    """MLP-Mixer of one block, in nnx, with BatchNorm and dropout."""

    def __init__(self, num_classes: int, rngs: nnx.Rngs) -> None:
        self.patches = nnx.Conv(1, 8, (2, 2), strides=(2, 2), rngs=rngs)
        self.tokens = nnx.List([nnx.Linear(16, 16, rngs=rngs) for _ in range(2)])
        self.channels = nnx.Linear(8, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.classifier = nnx.Linear(8, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.patches(images)
        x = x.reshape(len(x), -1, 8)
        for layer in self.tokens:
            x = x + nnx.gelu(layer(x.swapaxes(1, 2))).swapaxes(1, 2)
        x = self.dropout(self.norm(x + nnx.gelu(self.channels(x))))
        return self.classifier(x.mean(axis=1))


class Plain(nn.Module):
    """No argument but the images, and no statistics."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(16)(images.reshape(len(images), -1)))
        return nn.Dense(self.num_classes)(x)


class Counting(nn.Module):
    """BatchNorm told by `use_running_average`, and a collection of its own."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, *, use_running_average: bool) -> jax.Array:
        calls = self.variable("calls", "count", lambda: jnp.zeros(()))
        if not use_running_average and not self.is_initializing():
            calls.value += 1
        x = nn.Conv(8, (3, 3))(x)
        x = nn.BatchNorm(use_running_average=use_running_average)(x)
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))


class Pair(nn.Module):
    """Two outputs, which is one too many."""

    @nn.compact
    def __call__(self, images: jax.Array) -> Any:
        x = nn.Dense(10)(images.reshape(len(images), -1))
        return x, x
