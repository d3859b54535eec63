"""One ResNet for teacher and student: blocks around a chosen operator.

A stem, then four stages of bottleneck blocks whose middle is either a 3x3 convolution
or local self-attention; ResNet-18 and 34 have basic blocks, of two convolutions. In the
CIFAR form the stem has stride 1, either a 3x3 convolution or attention, and no
max-pooling; in the ImageNet form it is a 7x7 convolution of stride 2 with a 3x3
max-pooling of stride 2. Attention runs at the resolution of its input; where a block
downsamples, a 2x2 average pooling follows directly (arXiv 1906.05909, section 3.2).
Everything else is the same for both.
"""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from alite_jax.errors import ConfigError, nearest
from alite_jax.models.blocks import BasicBlock, BlockWidths, Bottleneck, Operator
from alite_jax.models.layers import Conv3x3, LocalSelfAttention, max_pool
from alite_jax.models.stem import AttentionStem, ImageNetStem

BLOCKS = {
    18: (2, 2, 2, 2),
    26: (1, 2, 4, 1),
    34: (3, 4, 6, 3),
    38: (2, 3, 5, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
}
BASIC_DEPTHS = (18, 34)  # Of basic blocks; the others are of bottlenecks.
PAPER_DEPTHS = (26, 38, 50)  # Those with attention; the others are teachers.
STEMS = ("conv", "attention", "imagenet")
# What the field `stem` of a network may be; a teacher is convolutional.
STEM_CHOICES = {
    "teacher": ("conv", "imagenet", "auto"),
    "student": (*STEMS, "auto"),
}

# Options of `create_model` that are fields of the student's configuration; a teacher,
# which is convolutional, has the defaults.
STUDENT_OPTIONS = ("kernel_size", "heads", "border")

# Pruning leaves channels without any input, whose variance is 0: the gradients of their
# absent weights grow by 1 / sqrt(epsilon). With the customary 1e-5 they dwarf all
# others in the clipped norm, and training stalls.
NORM_EPSILON = 1e-3
# The fraction of BatchNorm's running statistics that a step keeps.
NORM_MOMENTUM = 0.9


@dataclass(frozen=True)
class ModelSpec:
    """What a model's name stands for.

    Attributes:
        depth: a key of `BLOCKS`.
        operators: `"conv"` or `"attention"` for each of the four stages.
    """

    depth: int
    operators: tuple[str, str, str, str]


_FAMILIES: dict[str, tuple[str, str, str, str]] = {
    "": ("conv", "conv", "conv", "conv"),
    "_attention": ("attention", "attention", "attention", "attention"),
    "_attention_conv1": ("conv", "attention", "attention", "attention"),
    "_attention_conv12": ("conv", "conv", "attention", "attention"),
}
MODELS: dict[str, ModelSpec] = {
    f"resnet{depth}{suffix}": ModelSpec(depth, operators)
    for depth in BLOCKS
    for suffix, operators in _FAMILIES.items()
    if depth in PAPER_DEPTHS or not suffix
}


def create_model(
    name: str,
    *,
    num_classes: int,
    width: int = 64,
    kernel_size: int = 7,
    heads: int = 8,
    border: str = "zero",
    attention: str = "auto",
    stem: str = "conv",
    axis_name: str | None = None,
    dtype: DTypeLike = jnp.float32,
    widths: tuple[BlockWidths, ...] | None = None,
) -> "ResNet":
    """Builds a model of the table `MODELS`.

    Args:
        name: such as `"resnet50"` or `"resnet26_attention_conv1"`.
        num_classes: size of the logits.
        width: channels of the stem; 64 in the paper.
        kernel_size: odd side of the attention window, in pixels.
        heads: the most attention heads a layer may have.
        border: `"zero"` or `"mask"`; see `local_attention`.
        attention: how it is computed, the method of `local_attention`.
        stem: `"conv"`, 3x3; `"attention"`, see `AttentionStem`; or `"imagenet"`, see
            `ImageNetStem`.
        axis_name: mapped axis over which BatchNorm shares its statistics in training.
        dtype: of the computation; parameters, statistics and logits are float32.
        widths: of each block in their order, for a compacted network.

    Raises:
        ConfigError: if there is no model of this name, or no such stem.
    """
    if name not in MODELS:
        raise ConfigError(f"models: unknown model {name!r}; {nearest(name, MODELS)}")
    if stem not in STEMS:
        raise ConfigError(f"models: unknown stem {stem!r}; {nearest(stem, STEMS)}")
    spec = MODELS[name]
    local = partial(
        LocalSelfAttention,
        kernel_size=kernel_size,
        heads=heads,
        border=border,
        method=attention,
    )
    spatial: dict[str, Operator] = {"conv": Conv3x3, "attention": local}
    stems: dict[str, Operator] = {
        "conv": Conv3x3,
        "attention": partial(AttentionStem, border=border),
        "imagenet": ImageNetStem,
    }
    return ResNet(
        blocks=BLOCKS[spec.depth],
        spatial=tuple(spatial[operator] for operator in spec.operators),
        num_classes=num_classes,
        width=width,
        stem=stems[stem],
        pool_stem=stem == "imagenet",
        axis_name=axis_name,
        dtype=dtype,
        widths=widths,
        block=BasicBlock if spec.depth in BASIC_DEPTHS else Bottleneck,
    )


class ResNet(nn.Module):
    """Stem, four stages of blocks, mean over the map, classifier.

    Attributes:
        blocks: how many each stage has.
        spatial: the spatial operator of each stage.
        num_classes: size of the logits.
        width: channels of the stem; stage s works with `width * 2**s`.
        stem: builds the stem from `features`, `dtype` and `name`.
        pool_stem: whether a 3x3 max-pooling of stride 2 follows it, after its BatchNorm
            and ReLU.
        axis_name: mapped axis over which BatchNorm shares its statistics in training.
        dtype: of the computation; parameters, statistics and logits are float32.
        widths: of each block in their order; None for those of the stages.
        block: `Bottleneck` or `BasicBlock`.
        epsilon: of BatchNorm; it is 1e-5 in PyTorch.
    """

    blocks: tuple[int, ...]
    spatial: tuple[Operator, ...]
    num_classes: int
    width: int = 64
    stem: Operator = Conv3x3
    pool_stem: bool = False
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32
    widths: tuple[BlockWidths, ...] | None = None
    block: type[Bottleneck] | type[BasicBlock] = Bottleneck
    epsilon: float = NORM_EPSILON

    @property
    def block_names(self) -> list[str]:
        """The names of the blocks, in their order."""
        return [
            f"stage{stage}_block{block}"
            for stage, blocks in enumerate(self.blocks, start=1)
            for block in range(1, blocks + 1)
        ]

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps normalised images to logits.

        Where the collection `intermediates` is asked for, it holds the output of every
        stage, `[batch, h, w, channels]`, as `stage1` and so on.

        Args:
            images: `[batch, height, width, channels]`, float.
            train: whether BatchNorm uses (and records) the batch's own statistics.

        Returns:
            logits: `[batch, num_classes]`, float32.
        """
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=NORM_MOMENTUM,
            epsilon=self.epsilon,
            axis_name=self.axis_name,
            dtype=self.dtype,
        )
        x = self.stem(features=self.width, dtype=self.dtype, name="stem")(images)
        x = nn.relu(norm(name="stem_norm")(x))
        if self.pool_stem:
            x = max_pool(x)
        names = iter(self.block_names)
        widths = iter(self.widths or [None] * sum(self.blocks))
        stages = zip(self.blocks, self.spatial, strict=True)
        for stage, (blocks, spatial) in enumerate(stages):
            for block in range(blocks):
                x = self.block(
                    features=self.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    spatial=spatial,
                    norm=norm,
                    dtype=self.dtype,
                    widths=next(widths),
                    name=next(names),
                )(x)
            self.sow("intermediates", f"stage{stage + 1}", x)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="classifier")(x)
