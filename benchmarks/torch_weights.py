"""Logits of torchvision's and timm's ResNets, and of ours with the same weights.

    python -m benchmarks.torch_weights tests/data

writes the small networks that the tests read, with the logits of `example_images`.
"""

import json
import sys
import tempfile
from itertools import product
from pathlib import Path

import jax
import numpy as np
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from alite_jax.models.resnet import NORM_EPSILON
from alite_jax.models.torch_weights import read_weights, to_safetensors
from benchmarks.timing import Row, Rows

DEPTHS = (18, 34, 50, 101)
SIDES = {"imagenet": 64, "conv": 32}
CLASSES = 10


@torch.no_grad()
def compare() -> Rows:
    """Compares random networks of each depth and stem, read and written.

    A row has the largest difference of a logit, as a fraction of the largest one, from
    torchvision's, from timm's, and from torchvision's with what ours has written.
    """
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        for seed, (depth, stem) in enumerate(product(DEPTHS, SIDES)):
            torch.manual_seed(seed)
            theirs = drawn(_torchvision(depth, stem), SIDES[stem])
            images = torch.randn(4, 3, SIDES[stem], SIDES[stem])
            wanted = theirs(images)
            safetensors.torch.save_file(theirs.state_dict(), file)
            model, variables, _ = read_weights(file)
            read = _logits(model, variables, images)
            of_timm = timm.create_model(f"resnet{depth}", num_classes=CLASSES).eval()
            _replace_stem(of_timm, stem)
            of_timm.load_state_dict(safetensors.torch.load_file(file))
            model = model.clone(epsilon=NORM_EPSILON)
            written = safetensors.torch.load(to_safetensors(model, variables, {}))
            other = _torchvision(depth, stem).eval()
            other.load_state_dict(written)
            errors = (
                _error(read, wanted),
                _error(read, of_timm(images)),
                _error(_logits(model, variables, images), other(images)),
            )
            rounding = _error(wanted, theirs.double()(images.double()))
            detail = f"torchvision's differ by {rounding:.2g} from those in float64"
            rows[f"weights_resnet{depth}_{stem}"] = Row.of(errors, "of max", detail)
    largest = max(row.high for row in rows.values())
    return rows | {"weights_largest": Row.one(largest, "of max", "of all rows")}


def drawn(model: ResNet, side: int) -> ResNet:
    """Draws BatchNorm's parameters, and images of that side for its statistics.

    The model, whose other weights are as it draws them, is then in evaluation mode.
    """
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.3)
        norm.momentum = 1.0  # Statistics are those of the last batch.
    model.train()(torch.randn(32, 3, side, side))
    return model.eval()


def example_images(stem: str) -> np.ndarray:
    """Two images by a formula, float32 `[2, side, side, 3]`."""
    side = {"imagenet": 20, "conv": 9}[stem]
    numbers = np.arange(2 * side * side * 3, dtype=np.float64)
    return np.sin(numbers**1.3).reshape(2, side, side, 3).astype(np.float32)


def main() -> None:
    """Writes the networks of the tests: width 2, a few blocks, both kinds and stems."""
    folder = Path(sys.argv[1])
    for block, blocks, stem in (
        (BasicBlock, (2, 1, 1, 1), "conv"),
        (Bottleneck, (1, 2, 1, 1), "imagenet"),
    ):
        torch.manual_seed(0)
        images = torch.tensor(example_images(stem)).permute(0, 3, 1, 2)
        with torch.no_grad():
            model = drawn(_small(block, blocks, stem), images.shape[-1])
            logits = model(images).tolist()
        metadata = {"format": "pt", "logits": json.dumps(logits)}
        file = folder / f"torchvision_{block.__name__.lower()}.safetensors"
        safetensors.torch.save_file(model.state_dict(), file, metadata)


def _small(block: type[nn.Module], blocks: tuple[int, ...], stem: str) -> ResNet:
    """A network of 2 channels in its first stage, which torchvision fixes at 64.

    Its layers are made by torchvision's own methods.
    """
    model = ResNet(block, [1, 1, 1, 1], num_classes=3)
    model.conv1 = nn.Conv2d(3, 2, 7, stride=2, padding=3, bias=False)
    model.bn1 = nn.BatchNorm2d(2)
    model.inplanes = 2
    for stage, count in enumerate(blocks):
        stride = 1 if stage == 0 else 2
        layer = model._make_layer(block, 2 * 2**stage, count, stride)
        setattr(model, f"layer{stage + 1}", layer)
    model.fc = nn.Linear(model.inplanes, 3)
    _replace_stem(model, stem)
    return model


def _torchvision(depth: int, stem: str) -> ResNet:
    model = getattr(torchvision.models, f"resnet{depth}")(num_classes=CLASSES)
    _replace_stem(model, stem)
    return model


def _replace_stem(model: nn.Module, stem: str) -> None:
    """Gives a network for ImageNet the stem for small images, if that is wanted."""
    if stem == "conv":
        features = model.conv1.out_channels
        model.conv1 = nn.Conv2d(3, features, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()


def _logits(model: object, variables: object, images: Tensor) -> np.ndarray:
    apply = jax.jit(lambda images: model.apply(variables, images, train=False))
    return np.asarray(apply(images.permute(0, 2, 3, 1).numpy()))


def _error(found: Tensor | np.ndarray, wanted: Tensor) -> float:
    difference = np.abs(np.asarray(found) - wanted.numpy())
    return float(difference.max() / np.abs(wanted.numpy()).max())


if __name__ == "__main__":
    main()
