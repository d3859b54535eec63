"""TFDS builder of `digits`: the handwritten digits that scikit-learn carries.

1,797 images of 8x8 pixels with grey levels 0 to 16, scaled here to 0 to 255. The UCI
source has no split of its own in scikit-learn's copy, so a fixed one is made: 50 images
of each class are the test split (500), the other 1,297 the training split.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from alite_jax.data.builders.encoding import encode_png

_TEST_PER_CLASS = 50
_SPLIT_SEED = 0


class Digits(tfds.core.GeneratorBasedBuilder):
    """Handwritten digits, 8x8 grey pixels, ten classes, without any download."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "The 1,797 handwritten digits of scikit-learn's load_digits, 8x8 "
                "pixels, grey levels scaled from 0..16 to 0..255. The test split holds "
                "50 images of each class, chosen by a fixed seed."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        # Imported here because reading a prepared `digits` does not need scikit-learn.
        from sklearn import datasets

        grey, labels = datasets.load_digits(return_X_y=True)
        # Grey levels are 0 to 16: exact integers, rounded to the nearest of 255.
        images = (np.rint(grey).astype(np.int64) * 255 + 8) // 16
        images = images.astype(np.uint8).reshape(-1, 8, 8, 1)
        in_test = _test_indices(labels)
        return {
            "train": _examples(images, labels, ~in_test),
            "test": _examples(images, labels, in_test),
        }

    def _generate_examples(self) -> Any:
        raise NotImplementedError("the splits above are generators already")


def _test_indices(labels: np.ndarray) -> np.ndarray:
    """Returns a bool array that is True for the test images, 50 of each class."""
    # RandomState, not default_rng: NumPy promises that its stream never changes, so
    # every machine makes the same split.
    random = np.random.RandomState(_SPLIT_SEED)
    in_test = np.zeros(len(labels), bool)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        in_test[random.permutation(members)[:_TEST_PER_CLASS]] = True
    return in_test


def _examples(
    images: np.ndarray, labels: np.ndarray, chosen: np.ndarray
) -> Iterator[tuple[int, dict[str, Any]]]:
    for index in np.flatnonzero(chosen).tolist():
        yield (
            index,
            {
                "id": f"digits_{index:04d}",
                "image": encode_png(images[index]),
                "label": int(labels[index]),
            },
        )
