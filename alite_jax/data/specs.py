"""The data sets that this project knows, and what it relies on about each of them."""

import dataclasses

from alite_jax.errors import ConfigError, nearest


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """What the rest of the project may assume about a data set.

    Attributes:
        name: the TFDS name, also the folder's name in the data directory.
        num_classes: labels are the integers from 0 to `num_classes - 1`.
        image_shape: (height, width, channels) of every stored image, uint8.
        train_split: the TFDS split to train on.
        eval_split: the TFDS split to evaluate on.
        mean: mean of each channel of the training images, in units of 255.
        std: standard deviation of each channel, in units of 255.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]
    train_split: str
    eval_split: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


# The CIFAR constants are the published ones of the official training images. Those of
# tiny_imagenet are the ones in common use for all 100,000 training images at 64x64.
# Those of digits are computed from its 1,297 training images (a test does it again).
DATASETS = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="digits",
            num_classes=10,
            image_shape=(8, 8, 1),
            train_split="train",
            eval_split="test",
            mean=(0.3061,),
            std=(0.3765,),
        ),
        DatasetSpec(
            name="cifar10",
            num_classes=10,
            image_shape=(32, 32, 3),
            train_split="train",
            eval_split="test",
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
        ),
        DatasetSpec(
            name="cifar100",
            num_classes=100,
            image_shape=(32, 32, 3),
            train_split="train",
            eval_split="test",
            mean=(0.5071, 0.4865, 0.4409),
            std=(0.2673, 0.2564, 0.2762),
        ),
        DatasetSpec(
            name="tiny_imagenet",
            num_classes=200,
            image_shape=(64, 64, 3),
            train_split="train",
            eval_split="validation",
            mean=(0.4802, 0.4481, 0.3975),
            std=(0.2770, 0.2691, 0.2821),
        ),
    )
}


def dataset_spec(name: str) -> DatasetSpec:
    """Returns what is known about a data set.

    Args:
        name: one of the names in `DATASETS`.

    Returns:
        Its specification.

    Raises:
        ConfigError: there is no data set of that name.
    """
    if name not in DATASETS:
        raise ConfigError(f"data.name = {name!r} is unknown; {nearest(name, DATASETS)}")
    return DATASETS[name]
