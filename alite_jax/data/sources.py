"""Reads a prepared TFDS data set into memory, checked and decoded."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from PIL import UnidentifiedImageError

from alite_jax.data.builders.encoding import decode
from alite_jax.data.prepare import (
    data_dir,
    manual_dir,
    prepare,
    prepare_command,
    prepared_dir,
)
from alite_jax.data.specs import DATASETS, DatasetSpec, dataset_spec
from alite_jax.errors import ConfigError, DataError

__all__ = ["DATASETS", "DatasetSpec", "Split", "dataset_spec", "load_split"]

# Records read at a time; only bounds how many undecoded ones are held.
_CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class Split:
    """All the examples of a split, in the order of the prepared files.

    Attributes:
        images: uint8 [n, height, width, channels].
        labels: int32 [n].
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def class_names(data_config: Any) -> list[str]:
    """Returns what the classes of a prepared data set are called, by label.

    Raises:
        DataError: the data set is not there.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(_find_or_prepare(data_config))
    names: list[str] = builder.info.features["label"].names
    return names


def load_split(data_config: Any, split: Literal["train", "eval"]) -> Split:
    """Reads one split of the configured data set into memory.

    `digits` is prepared on the way when it is not there yet; every other data set must
    have been prepared before.

    Args:
        data_config: the `data` section of the configuration; `name`, `data_dir`,
            `train_split` or `eval_split`, and `image_size` are used.
        split: 'train' or 'eval'.

    Returns:
        The images, reduced to `image_size` if that is set, and their labels.

    Raises:
        ConfigError: the name, the split string or the image size is wrong.
        DataError: the data set is missing, broken, in another file format, or holds
            images or labels that it must not hold.
    """
    spec = dataset_spec(data_config.name)
    factor = _reduction_factor(spec, data_config.image_size)
    field = {"train": "train_split", "eval": "eval_split"}[split]
    split_string = data_config[field] or getattr(spec, field)
    folder = _find_or_prepare(data_config)
    source = _open(data_config, folder, field, split_string)

    height, width, channels = spec.image_shape
    shape = (len(source), height // factor, width // factor, channels)
    images = np.empty(shape, np.uint8)
    labels = np.empty(len(source), np.int32)
    for start, examples in _read_chunks(source, data_config, folder):
        chunk = np.empty((len(examples), *spec.image_shape), np.uint8)
        for i, example in enumerate(examples):
            place = f"example {start + i} of {spec.name} split {split_string!r}"
            chunk[i] = _image(example["image"], spec, place)
            labels[start + i] = _label(example["label"], spec, place)
        images[start : start + len(chunk)] = box_average(chunk, factor)
    return Split(images, labels)


def box_average(images: np.ndarray, factor: int) -> np.ndarray:
    """Reduces images by averaging squares of pixels.

    Args:
        images: uint8 [n, height, width, channels].
        factor: side of the squares in pixels; divides height and width.

    Returns:
        uint8 [n, height / factor, width / factor, channels], exact averages rounded to
        the nearest integer, halves upwards.
    """
    if factor == 1:
        return images
    n, height, width, channels = images.shape
    squares = images.reshape(
        n, height // factor, factor, width // factor, factor, channels
    )
    area = factor * factor
    sums = squares.sum(axis=(2, 4), dtype=np.int64)
    return ((2 * sums + area) // (2 * area)).astype(np.uint8)


def _reduction_factor(spec: DatasetSpec, image_size: int) -> int:
    native = spec.image_shape[0]
    if image_size == 0:
        return 1
    if image_size < 0 or native % image_size:
        sizes = [str(size) for size in range(1, native + 1) if native % size == 0]
        raise ConfigError(
            f"data.image_size = {image_size} does not divide the {native} pixels of "
            f"{spec.name}; use 0 (no reduction) or one of {', '.join(sizes)}"
        )
    return native // image_size


def _find_or_prepare(data_config: Any) -> pathlib.Path:
    folder = prepared_dir(data_config)
    if folder is not None:
        return folder
    if data_config.name == "digits":
        return pathlib.Path(prepare(data_config))
    first = ""
    if data_config.name == "tiny_imagenet":
        first = f"put tiny-imagenet-200.zip into {manual_dir(data_config)}, then "
    raise DataError(
        f"{data_config.name} is not prepared in {data_dir(data_config)}; {first}run "
        f"`{prepare_command(data_config)}`, or set data.data_dir or TFDS_DATA_DIR to "
        "where it is"
    )


def _open(data_config: Any, folder: pathlib.Path, field: str, split_string: str) -> Any:
    """Returns the TFDS data source of a split, its images left encoded."""
    # Imported here: importing TFDS takes longer than all the rest of this package.
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    # Pillow decodes below: TFDS would prefer OpenCV, and warn where it is missing.
    decoders = {"image": tfds.decode.SkipDecoding()}
    try:
        source = builder.as_data_source(split_string, decoders=decoders)
        # TFDS gives a slice such as [60%:50%] a negative length, which len() refuses.
        len(source)
    except ValueError as error:
        sizes = ", ".join(
            f"{name!r} ({info.num_examples} examples)"
            for name, info in builder.info.splits.items()
        )
        raise ConfigError(
            f"data.{field} = {split_string!r} is not a split of {data_config.name} "
            f"with examples in it; its splits are {sizes}, and parts of them are "
            "written like 'train[:90%]' or 'train[:1000]'"
        ) from error
    return source


def _read_chunks(
    source: Any, data_config: Any, folder: pathlib.Path
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yields the position of the first example and the examples, chunk by chunk."""
    for start in range(0, len(source), _CHUNK):
        indices = list(range(start, min(start + _CHUNK, len(source))))
        try:
            examples = source.__getitems__(indices)
        # array_record checks its own checksums and raises RuntimeError.
        except (RuntimeError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"the data set in {folder} is incomplete or damaged ({reason}); delete "
                f"that folder and run `{prepare_command(data_config)}`"
            ) from error
        yield start, examples


def _image(encoded: bytes, spec: DatasetSpec, place: str) -> np.ndarray:
    try:
        image = decode(encoded)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{place} is not a readable image: {error}") from error
    if image.shape != spec.image_shape or image.dtype != np.uint8:
        raise DataError(
            f"{place} is a {image.dtype} image of shape {image.shape}, expected uint8 "
            f"{spec.image_shape}; prepare the data set again in another data_dir"
        )
    return image


def _label(label: int, spec: DatasetSpec, place: str) -> int:
    if not 0 <= label < spec.num_classes:
        raise DataError(
            f"{place} has label {label}, expected 0 to {spec.num_classes - 1}; prepare "
            "the data set again in another data_dir"
        )
    return label
