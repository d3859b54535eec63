"""The blocks of a ResNet, around a spatial operator: bottlenecks and basic blocks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from alite_jax.models.layers import HeadDims, Pointwise

Operator = Callable[..., nn.Module]  # takes features, dtype, name; in blocks stride

EXPANSION = 4  # Of a bottleneck's channels.

# What the last BatchNorm of each block starts with, so that a block starts close to its
# shortcut. Attention multiplies gradients: with the customary 1, the gradient of a new
# dense student is fifty times as large as that of a convolutional one, and clipping it
# all but stops the training. With 0 (arXiv 1706.02677) the weights of a block have no
# gradient at first, by which masks would grow.
BRANCH_SCALE = 0.2
_branch_scale = nn.initializers.constant(BRANCH_SCALE)


@dataclass(frozen=True)
class BlockWidths:
    """The inner widths of one block, where they are not those of its stage.

    Attributes:
        reduce: channels that the spatial operator takes; in a basic block `features`.
        features: channels that it gives, in a basic block the first one.
        dims: of its heads, which have `features` values in all; None for a convolution.
    """

    reduce: int
    features: int
    dims: HeadDims | None = None


class Bottleneck(nn.Module):
    """Pointwise, spatial operator, pointwise (times 4), around a shortcut.

    Attributes:
        features: channels of the spatial operator; the block's output has 4 times as
            many.
        stride: of the spatial operator and the shortcut.
        spatial: builds the spatial operator from `features`, `stride` and `dtype`.
        norm: builds a BatchNorm from its name.
        dtype: of the computation.
        widths: inside, if not `features` throughout.
    """

    features: int
    stride: int
    spatial: Operator
    norm: Callable[..., nn.Module]
    dtype: DTypeLike = jnp.float32
    widths: BlockWidths | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps `[batch, height, width, channels]` to `[batch, h, w, 4 * features]`."""
        width = EXPANSION * self.features
        inside = self.widths or BlockWidths(self.features, self.features)
        # A convolution has no heads.
        options = {} if inside.dims is None else {"dims": inside.dims}
        pointwise = partial(Pointwise, dtype=self.dtype)
        x = pointwise(inside.reduce, name="reduce")(inputs)
        x = nn.relu(self.norm(name="reduce_norm")(x))
        x = self.spatial(
            features=inside.features,
            stride=self.stride,
            dtype=self.dtype,
            name="spatial",
            **options,
        )(x)
        x = nn.relu(self.norm(name="spatial_norm")(x))
        x = pointwise(width, name="expand")(x)
        x = self.norm(name="expand_norm", scale_init=_branch_scale)(x)
        return _add(self, inputs, x)


class BasicBlock(nn.Module):
    """Two spatial operators around a shortcut.

    Attributes:
        features: channels of the block's output.
        stride: of the first operator and the shortcut.
        spatial: builds an operator from `features`, `stride` and `dtype`.
        norm: builds a BatchNorm from its name.
        dtype: of the computation.
        widths: between the operators, if not `features`.
    """

    features: int
    stride: int
    spatial: Operator
    norm: Callable[..., nn.Module]
    dtype: DTypeLike = jnp.float32
    widths: BlockWidths | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps `[batch, height, width, channels]` to `[batch, h, w, features]`."""
        between = self.widths.features if self.widths else self.features
        spatial = partial(self.spatial, dtype=self.dtype)
        x = spatial(features=between, stride=self.stride, name="spatial1")(inputs)
        x = nn.relu(self.norm(name="spatial1_norm")(x))
        x = spatial(features=self.features, stride=1, name="spatial2")(x)
        x = self.norm(name="spatial2_norm", scale_init=_branch_scale)(x)
        return _add(self, inputs, x)


def _add(
    block: Bottleneck | BasicBlock, inputs: jax.Array, branch: jax.Array
) -> jax.Array:
    """Adds the shortcut to what the layers of a block have made of its inputs."""
    if inputs.shape != branch.shape:
        shortcut = Pointwise(
            branch.shape[-1], block.stride, block.dtype, name="shortcut"
        )
        inputs = block.norm(name="shortcut_norm")(shortcut(inputs))
    return nn.relu(inputs + branch)
