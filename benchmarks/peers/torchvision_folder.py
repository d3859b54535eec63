"""Batches of a folder of images by torchvision, as it is usually done."""

from collections.abc import Generator
from pathlib import Path

import torch
from torch.utils.data import DataLoader, RandomSampler

try:
    import torchvision
except RuntimeError:
    # A torchvision that was built for another form of PyTorch misses the operators of
    # its compiled part, though by their names only: nothing here calls one.
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float least) -> Tensor")
    import torchvision


def batches(
    folder: Path, size: int, batch: int, workers: int
) -> Generator[torch.Tensor]:
    """Yields shuffled batches of views without end, uint8 [batch, 3, size, size].

    Pillow decodes; a random box is resized and mirrored at random. Nothing is made
    floating point: that would cost the workers more, and can be done on the device.

    Args:
        folder: with a folder for each class.
        size: pixels of each side.
        batch: images in a batch.
        workers: processes.
    """
    view = torchvision.transforms.Compose(
        [
            torchvision.transforms.RandomResizedCrop(size),
            torchvision.transforms.RandomHorizontalFlip(),
            torchvision.transforms.PILToTensor(),
        ]
    )
    data = torchvision.datasets.ImageFolder(folder, view)
    # One epoch that does not end: between epochs the workers would wait.
    order = RandomSampler(data, replacement=True, num_samples=10**6)
    for images, _ in DataLoader(data, batch, sampler=order, num_workers=workers):
        yield images
