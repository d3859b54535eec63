"""Weights of ResNets under the names of torchvision, which timm uses too.

torchvision's ResNet and the one here are the same network: the stride of a bottleneck
is in its 3x3 convolution, and convolutions have no biases. Three things differ: names,
the order of axes (`[out, in, height, width]` there, `[height, width, in, out]` or
`[in, out]` here), and BatchNorm's epsilon, 1e-5 there. What is read has that epsilon;
what is written has the difference added to its running variances.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from alite_jax.errors import CheckpointError, ConfigError
from alite_jax.models.blocks import BasicBlock, Bottleneck
from alite_jax.models.layers import Conv3x3
from alite_jax.models.resnet import ResNet
from alite_jax.models.stem import ImageNetStem
from alite_jax.models.weight_files import Arrays, read_arrays
from alite_jax.trees import named_leaves, nested

TORCH_EPSILON = 1e-5

# What torchvision calls our modules and arrays.
_MODULES = {
    "stem": "conv1",
    "stem_norm": "bn1",
    "reduce": "conv1",
    "reduce_norm": "bn1",
    "spatial": "conv2",
    "spatial_norm": "bn2",
    "expand": "conv3",
    "expand_norm": "bn3",
    "spatial1": "conv1",
    "spatial1_norm": "bn1",
    "spatial2": "conv2",
    "spatial2_norm": "bn2",
    "shortcut": "downsample.0",
    "shortcut_norm": "downsample.1",
    "classifier": "fc",
}
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# The stem with a convolution of this side, and whether pooling follows.
_STEMS = {3: (Conv3x3, False), 7: (ImageNetStem, True)}

_Shape = tuple[int, ...]


class TorchWeights(NamedTuple):
    """A ResNet from a file.

    Attributes:
        model: the network, with PyTorch's epsilon.
        variables: its `params` and `batch_stats`, float32 NumPy arrays.
        metadata: the strings in the header of a safetensors file.
    """

    model: ResNet
    variables: dict[str, chex.ArrayTree]
    metadata: dict[str, str]


def read_weights(path: Path) -> TorchWeights:
    """Reads the state of a ResNet of torchvision or timm.

    What network it is follows from the file: kind and number of blocks, width, stem
    (7x7 with pooling or 3x3 without), channels of the images and number of classes. A
    prefix that all names have in common, such as `module.`, is taken off.

    Args:
        path: a `.safetensors` or `.npz`; see `read_arrays`.

    Raises:
        CheckpointError: the file cannot be read, or its arrays are not those of such a
            ResNet; names all that are missing, left over, of another shape or not
            finite.
    """
    stored, metadata = read_arrays(path)
    arrays = _without_prefix(stored)
    model, channels = _infer(path, arrays)
    init = partial(model.init, train=False)
    images = jax.ShapeDtypeStruct((1, 1, 1, channels), jnp.float32)
    leaves = named_leaves(jax.eval_shape(init, jax.random.key(0), images))
    shapes = {place: leaf.shape for place, leaf in leaves}
    names = {place: _torch_name(place) for place in shapes}
    wanted = {names[place]: _torch_shape(place, shapes[place]) for place in shapes}
    faults = _faults(arrays, wanted)
    if faults:
        kind = "basic blocks" if model.block is BasicBlock else "bottlenecks"
        blocks = " + ".join(map(str, model.blocks))
        raise CheckpointError(
            f"{path} does not hold the weights of a ResNet of torchvision or timm, of"
            f" which one of {blocks} {kind} is nearest: {'; '.join(faults)}"
        )
    variables = {
        place: _from_torch(place, arrays[names[place]]).reshape(shape)
        for place, shape in shapes.items()
    }
    return TorchWeights(model, nested(variables), metadata)


def to_safetensors(
    model: ResNet,
    variables: Mapping[str, chex.ArrayTree],
    metadata: Mapping[str, str],
) -> bytes:
    """Writes a convolutional ResNet so that torchvision's computes the same logits.

    Args:
        model: the network.
        variables: its `params` and `batch_stats`; absent weights are zeros.
        metadata: what the header says besides that the format is PyTorch's.

    Returns:
        A safetensors file of float32 arrays; `read_weights` reads it, too.

    Raises:
        ConfigError: the network has attention or was compacted, which no ResNet of
            torchvision has.
    """
    stem = model.stem, model.pool_stem
    if stem not in _STEMS.values() or any(op is not Conv3x3 for op in model.spatial):
        raise ConfigError(
            "weights: a network with attention has no counterpart in torchvision; write"
            " those of a convolutional one, such as a teacher"
        )
    if model.widths is not None:
        raise ConfigError(
            "weights: a compacted network has no counterpart in torchvision; write"
            " those of the network before it was compacted"
        )
    arrays = {}
    collections = {kind: variables[kind] for kind in ("params", "batch_stats")}
    for place, leaf in named_leaves(collections):
        array = _to_torch(place, np.asarray(leaf, np.float64))
        if place.endswith("/var"):
            array = array + (model.epsilon - TORCH_EPSILON)
        # In the order of its axes, for safetensors copies the memory as it lies.
        arrays[_torch_name(place)] = np.ascontiguousarray(array, np.float32)
    return safetensors.numpy.save(arrays, {**metadata, "format": "pt"})


def _torch_name(place: str) -> str:
    """`layer1.0.conv1.weight` for `params/stage1_block1/reduce/kernel`."""
    _, *block, module, leaf = place.split("/")
    prefix = ""
    if block:
        stage, number = block[0].removeprefix("stage").split("_block")
        prefix = f"layer{stage}.{int(number) - 1}."
    return f"{prefix}{_MODULES[module]}.{_LEAVES[leaf]}"


def _to_torch(place: str, array: np.ndarray) -> np.ndarray:
    """A view of an array with its axes as PyTorch has them."""
    if not place.endswith("/kernel"):
        return array
    array = np.moveaxis(array, (-1, -2), (0, 1))
    is_pointwise = array.ndim == 2 and "/classifier/" not in place
    return array[..., None, None] if is_pointwise else array


def _from_torch(place: str, array: np.ndarray) -> np.ndarray:
    """The opposite of `_to_torch`, but for the axes of a single pixel."""
    if not place.endswith("/kernel"):
        return array
    return np.ascontiguousarray(np.moveaxis(array, (0, 1), (-1, -2)))


def _torch_shape(place: str, shape: _Shape) -> _Shape:
    return _to_torch(place, np.broadcast_to(np.float32(0), shape)).shape


def _without_prefix(arrays: Arrays) -> Arrays:
    """Takes off what stands before `layer1.` and in front of all names."""
    prefix = os.path.commonprefix(list(arrays)).rpartition(".")[0] + "."
    if not any(name.startswith(f"{prefix}layer1.") for name in arrays):
        return arrays
    return {name.removeprefix(prefix): array for name, array in arrays.items()}


def _infer(path: Path, arrays: Arrays) -> tuple[ResNet, int]:
    """The network that a file is of, and the channels of its images.

    What cannot be told, as an array is missing or no kernel, is as in the ResNets of
    ImageNet, so that all that is missing can be named.
    """
    shapes = {name: array.shape for name, array in arrays.items()}
    for name, shape in shapes.items():
        if re.match(r"conv1\.\d", name):
            raise _other(path, name, shape, "a stem of several convolutions")
        before = shapes.get(name.replace(".conv2.", ".conv1."), ())
        kernels = name.endswith(".conv2.weight") and len(before) == len(shape) == 4
        if kernels and shape[1] < before[0]:
            raise _other(path, name, shape, "grouped convolutions")
    width, channels, _, side = _kernel(shapes, "conv1.weight", (64, 3, 7, 7))
    if side not in _STEMS:
        shape = shapes["conv1.weight"]
        raise _other(path, "conv1.weight", shape, "a stem of neither 7x7 nor 3x3")
    stem, pool = _STEMS[side]
    blocks = set(re.findall(r"^(layer\d+)\.(\d+)\.", "\n".join(arrays), re.MULTILINE))
    stages = Counter(stage for stage, _ in sorted(blocks)) or {"layer1": 1}
    bottlenecks = any(re.match(r"layer\d+\.\d+\.conv3\.", name) for name in arrays)
    model = ResNet(
        blocks=tuple(stages.values()),
        spatial=(Conv3x3,) * len(stages),
        num_classes=_kernel(shapes, "fc.weight", (1000, 512))[0],
        width=width,
        stem=stem,
        pool_stem=pool,
        block=Bottleneck if bottlenecks else BasicBlock,
        epsilon=TORCH_EPSILON,
    )
    return model, channels


def _kernel(shapes: Mapping[str, _Shape], name: str, usual: _Shape) -> _Shape:
    """The shape of a kernel, or the usual one if there is none or it is no kernel."""
    shape = shapes.get(name, usual)
    return shape if len(shape) == len(usual) and all(shape) else usual


def _other(path: Path, name: str, shape: _Shape, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {name}, of shape {list(shape)}, shows {what}, which no ResNet here"
        " has; take the weights of a ResNet-18, 34, 50 or 101 as torchvision has it"
    )


def _faults(arrays: Arrays, wanted: Mapping[str, _Shape]) -> list[str]:
    """What is wrong with the arrays of a file, a phrase for each kind of fault.

    Args:
        arrays: of the file.
        wanted: the names and shapes that they should have.
    """
    common = sorted(name for name in wanted if name in arrays)
    shapes = {name: (arrays[name].shape, wanted[name]) for name in common}
    # Without these, lengths are only supposed.
    known = all(
        name in shapes and len(shapes[name][0]) == len(shapes[name][1])
        for name in ("conv1.weight", "fc.weight")
    )
    faults = {
        "it lacks": sorted(name for name in wanted if name not in arrays),
        "it has besides": sorted(name for name in arrays if name not in wanted),
        "of another shape are": [
            f"{name} ({list(found)}, not {list(right)})"
            for name, (found, right) in shapes.items()
            if (found != right if known else len(found) != len(right))
        ],
        "not finite are values of": [
            name for name in common if not np.isfinite(arrays[name]).all()
        ],
    }
    return [f"{what} {', '.join(names)}" for what, names in faults.items() if names]
