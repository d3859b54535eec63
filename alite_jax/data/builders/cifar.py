"""The stock TFDS builders of CIFAR-10 and CIFAR-100, made to work without TensorFlow.

Only the reading differs: TFDS unpacks the archive, opens its files and encodes the
images with TensorFlow; here the standard library and Pillow do it. The download, name,
version, features, keys and order are those of TFDS, so the prepared folder is the one
that `tfds.data_source` looks for.
"""

import pathlib
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.image_classification import cifar

from alite_jax.data.builders.encoding import encode_png
from alite_jax.errors import DataError

_IMAGE_BYTES = 3 * 32 * 32


class _WithoutTensorFlow:
    """Replaces what TFDS's CIFAR builders do with TensorFlow."""

    _cifar_info: cifar.CifarInfo
    info: tfds.core.DatasetInfo

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        layout = self._cifar_info
        archive = pathlib.Path(dl_manager.download(layout.url))
        for key, file in zip(layout.label_keys, layout.label_files, strict=True):
            text = _read_member(archive, layout.prefix + file).decode()
            self.info.features[key].names = text.split()
        return {
            "train": self._generate_examples("train_", archive, layout.train_files),
            "test": self._generate_examples("test_", archive, layout.test_files),
        }

    def _generate_examples(
        self, id_prefix: str, archive: pathlib.Path, files: list[str]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        label_keys = self._cifar_info.label_keys
        index = 0
        for file in files:
            data = _read_member(archive, self._cifar_info.prefix + file)
            for labels, image in _parse(data, len(label_keys), archive):
                example = dict(zip(label_keys, labels, strict=True))
                example["id"] = f"{id_prefix}{index:05d}"
                example["image"] = encode_png(image)
                yield index, example
                index += 1


# TFDS already holds builders of these names, so these two stay out of its registry.
# (The type checker does not see TFDS, hence not that its classes take the argument.)
class Cifar10(_WithoutTensorFlow, cifar.Cifar10, skip_registration=True):  # type: ignore[call-arg]
    """CIFAR-10 as TFDS defines it."""

    name = "cifar10"


class Cifar100(_WithoutTensorFlow, cifar.Cifar100, skip_registration=True):  # type: ignore[call-arg]
    """CIFAR-100 as TFDS defines it."""

    name = "cifar100"


def _read_member(archive: pathlib.Path, name: str) -> bytes:
    """Returns the content of one file of a tar archive."""
    try:
        with tarfile.open(archive) as opened:
            member = opened.extractfile(name)
            if member is None:
                raise KeyError(f"{name} is not a file")
            return member.read()
    except (tarfile.TarError, KeyError, EOFError, OSError, zlib.error) as error:
        raise DataError(
            f"{name} cannot be read from {archive} ({type(error).__name__}); delete "
            "that archive and prepare the data set again"
        ) from error


def _parse(
    data: bytes, num_labels: int, archive: pathlib.Path
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yields the labels and the uint8 [32, 32, 3] image of every record of a file."""
    size = num_labels + _IMAGE_BYTES
    if not data or len(data) % size:
        raise DataError(
            f"a file in {archive} has {len(data)} bytes, not a whole number of records "
            f"of {size} bytes; delete that archive and prepare the data set again"
        )
    for record in np.frombuffer(data, np.uint8).reshape(-1, size):
        # The three colours are stored one after the other.
        planes = record[num_labels:].reshape(3, 32, 32)
        image = np.ascontiguousarray(planes.transpose(1, 2, 0))
        yield record[:num_labels].tolist(), image
