"""The ResNets of `alite_jax.models.resnet` and their joint step, in eager PyTorch.

Written as torch is usually written: NCHW, `nn.Conv2d` for pointwise layers too,
`torch.optim.SGD`. Modules bear the names of the Flax modules, so that copying weights
and masks is a change of spelling (`to_torch`). One thing differs: for its running
variance BatchNorm takes the unbiased estimate in torch, the biased one in Flax.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alite_jax.data.specs import DatasetSpec
from alite_jax.models.blocks import EXPANSION
from alite_jax.models.layers import heads_for
from alite_jax.models.resnet import BLOCKS, MODELS
from alite_jax.training.step import Objective
from alite_jax.trees import named_leaves
from benchmarks.peers.torch_attention import local_attention

_NAMES = dict(kernel="weight", scale="weight", mean="running_mean", var="running_var")

_pointwise = partial(nn.Conv2d, kernel_size=1, bias=False)
_conv3x3 = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
_norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.1)


class LocalSelfAttention(nn.Module):
    """Projections, local self-attention and, for a stride of 2, average pooling."""

    def __init__(self, channels: int, stride: int, kernel_size: int, heads: int):
        super().__init__()
        heads = heads_for(channels, heads)
        self.heads = (heads, channels // heads)
        self.query = _pointwise(channels, channels)
        self.key = _pointwise(channels, channels)
        self.value = _pointwise(channels, channels)
        shape, scale = (kernel_size, channels // heads // 2), (channels // heads) ** 0.5
        self.row_embeddings = nn.Parameter(torch.randn(shape) / scale)
        self.column_embeddings = nn.Parameter(torch.randn(shape) / scale)
        pool = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
        self.pool = pool if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[batch, channels, height, width]` to `[batch, channels, h, w]`."""
        layers = (self.query, self.key, self.value)
        maps = [layer(x).unflatten(1, self.heads) for layer in layers]
        x = local_attention(*maps, self.row_embeddings, self.column_embeddings)
        return self.pool(x.flatten(1, 2))


class Bottleneck(nn.Module):
    """Pointwise, 3x3 convolution or attention, pointwise, around a shortcut."""

    def __init__(self, inputs: int, features: int, stride: int, spatial: nn.Module):
        super().__init__()
        outputs = EXPANSION * features
        self.reduce = _pointwise(inputs, features)
        self.reduce_norm = _norm(features)
        self.spatial = spatial
        self.spatial_norm = _norm(features)
        self.expand = _pointwise(features, outputs)
        self.expand_norm = _norm(outputs)
        self.shortcut = self.shortcut_norm = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = _pointwise(inputs, outputs, stride=stride)
            self.shortcut_norm = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[batch, inputs, height, width]` to `[batch, 4 * features, h, w]`."""
        y = F.relu(self.reduce_norm(self.reduce(x)), inplace=True)
        y = F.relu(self.spatial_norm(self.spatial(y)), inplace=True)
        y = self.expand_norm(self.expand(y)).add_(self.shortcut_norm(self.shortcut(x)))
        return F.relu(y, inplace=True)


class ResNet(nn.Module):
    """Stem, stages of bottlenecks, mean over the map, classifier.

    Arguments are those of the Flax model and its layers; `operators` has `"conv"` or
    `"attention"` for each stage, `channels` is the number of those of the images.
    """

    def __init__(
        self,
        blocks: tuple[int, ...],
        operators: tuple[str, ...],
        *,
        num_classes: int,
        width: int = 64,
        kernel_size: int = 7,
        heads: int = 8,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.stem = _conv3x3(channels, width)
        self.stem_norm = _norm(width)
        inputs = width
        for stage, (count, operator) in enumerate(zip(blocks, operators, strict=True)):
            features = width * 2**stage
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                if operator == "attention":
                    spatial = LocalSelfAttention(features, stride, kernel_size, heads)
                else:
                    spatial = _conv3x3(features, features, stride=stride)
                name = f"stage{stage + 1}_block{block + 1}"
                self.add_module(name, Bottleneck(inputs, features, stride, spatial))
                inputs = EXPANSION * features
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Maps `[batch, channels, height, width]`, float32, to logits."""
        x = F.relu(self.stem_norm(self.stem(images)), inplace=True)
        for block in list(self.children())[2:-1]:
            x = block(x)
        return self.classifier(x.mean(dim=(2, 3)))


def create_model(name: str, **options: Any) -> ResNet:
    """Builds a model of alite_jax's table `MODELS`; `options` are those of `ResNet`."""
    return ResNet(BLOCKS[MODELS[name].depth], MODELS[name].operators, **options)


def to_torch(tree: Any) -> dict[str, Tensor]:
    """Copies a Flax tree (parameters, statistics, masks) under torch's names.

    Axes are torch's too. Scalars, the masks of what is never pruned, are left out.
    """
    tensors = {}
    for path, leaf in named_leaves(tree):
        *modules, name = path.split("/")
        array = np.asarray(leaf)
        if name == "kernel" and array.ndim > 0:
            array = np.moveaxis(array, (-1, -2), (0, 1))
            if array.ndim == 2 and modules != ["classifier"]:
                array = array[..., None, None]
        if array.ndim > 0:
            tensors[".".join([*modules, _NAMES.get(name, name)])] = torch.tensor(array)
    return tensors


def load_flax(model: ResNet, variables: Mapping[str, Any]) -> ResNet:
    """Copies the `params` and `batch_stats` of the same Flax network into `model`."""
    counters = {k: v for k, v in model.state_dict().items() if k.endswith("_tracked")}
    tensors = to_torch(variables["params"]) | to_torch(variables["batch_stats"])
    model.load_state_dict(tensors | counters)
    return model


def augment(images: Tensor, crop_padding: int, flip: bool) -> Tensor:
    """Crops and mirrors uint8 `[batch, height, width, channels]`; see alite_jax."""
    batch, height, width, _ = images.shape
    rows, columns = torch.arange(height)[None], torch.arange(width)[None]
    if flip:
        columns = torch.where(torch.rand(batch, 1) < 0.5, columns.flip(1), columns)
    if crop_padding:
        offsets = torch.randint(2 * crop_padding + 1, (2, batch, 1))
        rows, columns = rows + offsets[0], columns + offsets[1]
        images = F.pad(images, (0, 0, *[crop_padding] * 4))
    return images[torch.arange(batch)[:, None, None], rows[..., None], columns[:, None]]


class JointStep:
    """Teacher forward, student forward and backward, clipped SGD, masks.

    Without a teacher, or for `alpha` 0, the student trains on the labels alone. The
    optimizer has the fields of `configs/default.py`, its learning rate stays constant.
    `masks` are named as by `to_torch`; `crop_padding` 0 and no `flip` augment nothing.
    `memory_format` is that of the images, which the layers keep up.
    """

    def __init__(
        self,
        student: ResNet,
        teacher: ResNet | None,
        masks: Mapping[str, Tensor],
        *,
        objective: Objective,
        optimizer: Any,
        dataset: DatasetSpec,
        crop_padding: int = 4,
        flip: bool = True,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.student = student.train()
        self.teacher = teacher.eval() if teacher and objective.alpha > 0 else None
        self.masks = [(student.get_parameter(name), masks[name]) for name in masks]
        self.objective, self.clip_norm = objective, optimizer.clip_norm
        self.mean, self.std = torch.tensor(dataset.mean), torch.tensor(dataset.std)
        self.augment = partial(augment, crop_padding=crop_padding, flip=flip)
        self.memory_format = memory_format
        decays = (0, optimizer.weight_decay)
        groups = [{"params": [], "weight_decay": decay} for decay in decays]
        for name, parameter in student.named_parameters():
            is_kernel = name.endswith("weight") and parameter.ndim > 1
            groups[is_kernel]["params"].append(parameter)
        momentum = {"momentum": optimizer.momentum, "nesterov": optimizer.nesterov}
        self.optimizer = torch.optim.SGD(groups, optimizer.learning_rate, **momentum)

    def step(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Trains on uint8 `[batch, height, width, channels]`, int `[batch]`: loss."""
        views = (self.augment(torch.tensor(images)) / 255 - self.mean) / self.std
        views = views.permute(0, 3, 1, 2).contiguous(memory_format=self.memory_format)
        loss = self._loss(views, torch.tensor(labels, dtype=torch.long))
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip_norm > 0:
            nn.utils.clip_grad_norm_(self.student.parameters(), self.clip_norm)
        self.optimizer.step()
        with torch.no_grad():
            for parameter, mask in self.masks:
                parameter.mul_(mask)
        return loss.item()

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        goal, logits = self.objective, self.student(images)
        task = F.cross_entropy(logits, labels, label_smoothing=goal.label_smoothing)
        if self.teacher is None:
            return task
        with torch.no_grad():
            targets = F.log_softmax(self.teacher(images) / goal.temperature, dim=1)
        logits = F.log_softmax(logits / goal.temperature, dim=1)
        divergence = F.kl_div(logits, targets, reduction="batchmean", log_target=True)
        return (1 - goal.alpha) * task + goal.alpha * goal.temperature**2 * divergence
