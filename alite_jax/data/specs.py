"""What the project relies on about a data set, and the four sets it knows by heart."""

import dataclasses

from alite_jax.data.resize import AREA
from alite_jax.errors import ConfigError

REGISTERED = "registered"


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """What the rest of the project may assume about a data set.

    Attributes:
        name: what people call it.
        num_classes: labels are the integers from 0 to `num_classes - 1`.
        image_shape: (height, width, channels) of every stored image, uint8; height and
            width are 0 where the images differ.
        train_split: the TFDS split to train on.
        eval_split: the TFDS split to evaluate on.
        mean: mean of each channel of the training images, in units of 255; empty until
            it is measured.
        std: standard deviation of each channel, in units of 255; the same.
        class_names: what the classes are called, by label; empty until it is read.
        resize: how an image of another size is made; see `middle_square`.
        prepared: the folder of the prepared data set below the data directory, without
            its version; a TFDS name such as `"cifar10"` or `"imagenette/320px-v2"`.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]
    train_split: str
    eval_split: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    class_names: tuple[str, ...] = ()
    resize: str = AREA
    prepared: str = ""

    def seen_shape(self, image_size: int) -> tuple[int, int, int]:
        """(height, width, channels) of the images that the networks see.

        Args:
            image_size: pixels of each side, 0 for the native size.

        Raises:
            ConfigError: there is no one native size.
        """
        height, width, channels = self.image_shape
        if not image_size and not (height and width):
            raise ConfigError(
                f"data.image_size = 0 keeps the native size, but the images of"
                f" {self.name} have several; set it to the pixels of one side, for"
                " example 224"
            )
        return image_size or height, image_size or width, channels


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
