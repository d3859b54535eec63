"""Reads a prepared TFDS data set into memory, checked and decoded."""

import dataclasses
import io
import pathlib
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from ml_collections import ConfigDict

from alite_jax.data.images import area_average, decode_image
from alite_jax.data.prepare import prepare
from alite_jax.data.prepared import (
    damaged,
    data_dir,
    first_line,
    manual_dir,
    prepare_command,
    prepared_dir,
    read_builder,
)
from alite_jax.data.specs import DATASETS, DatasetSpec, dataset_spec
from alite_jax.data.wordnet import readable
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


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set in memory.

    Attributes:
        spec: what is known about it.
        train: the examples to train on.
        evaluation: the examples to evaluate on, all of them used.
    """

    spec: DatasetSpec
    train: Split
    evaluation: Split

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) as the networks see them."""
        return self.train.images.shape[1:]


def class_names(data_config: ConfigDict) -> list[str]:
    """Returns what the classes of a prepared data set are called, by label.

    Labels without names are called by their numbers, synset ids by their words.

    Raises:
        DataError: the data set is not there, or damaged.
    """
    builder = read_builder(_find_or_prepare(data_config), data_config)
    numbers = map(str, range(dataset_spec(data_config.name).num_classes))
    return readable(getattr(builder.info.features["label"], "names", [*numbers]))


def shared_examples(data_config: ConfigDict) -> int:
    """Returns how many examples are both in the training and the evaluation split.

    Args:
        data_config: as for `load_split`, which must have read both splits.
    """
    builder = read_builder(_find_or_prepare(data_config), data_config)
    spec = dataset_spec(data_config.name)
    train, evaluation = (
        [
            (str(part.filename), part.skip, part.skip + part.take)
            for part in builder.info.splits[split].file_instructions
        ]
        for split in (
            data_config.train_split or spec.train_split,
            data_config.eval_split or spec.eval_split,
        )
    )
    return sum(
        max(0, min(stop, end) - max(start, begin))
        for file, start, stop in train
        for other, begin, end in evaluation
        if file == other
    )


def load_split(data_config: ConfigDict, split: Literal["train", "eval"]) -> Split:
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
        images[start : start + len(chunk)] = area_average(chunk, *shape[1:3])
    return Split(images, labels)


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


def _find_or_prepare(data_config: ConfigDict) -> pathlib.Path:
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


def _open(
    data_config: ConfigDict, folder: pathlib.Path, field: str, split_string: str
) -> Any:
    """Returns the TFDS data source of a split, its images left encoded."""
    import tensorflow_datasets as tfds

    builder = read_builder(folder, data_config)
    # Pillow decodes below: TFDS would prefer OpenCV, and warn where it is missing.
    decoders = {"image": tfds.decode.SkipDecoding()}
    try:
        source = builder.as_data_source(split_string, decoders=decoders)
        # TFDS gives a slice such as [60%:50%] a negative length, which len() refuses.
        len(source)
    except ValueError as error:
        if not data_config[field]:
            finding = f"it has no examples in its split {split_string!r}"
            raise damaged(folder, finding, data_config) from error
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
    source: Any, data_config: ConfigDict, folder: pathlib.Path
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yields the position of the first example and the examples, chunk by chunk."""
    for start in range(0, len(source), _CHUNK):
        indices = list(range(start, min(start + _CHUNK, len(source))))
        try:
            examples = source.__getitems__(indices)
        # array_record checks its own checksums and raises RuntimeError.
        except (RuntimeError, IndexError) as error:
            raise damaged(folder, first_line(error), data_config) from error
        yield start, examples


def _image(encoded: bytes, spec: DatasetSpec, place: str) -> np.ndarray:
    image = decode_image(io.BytesIO(encoded), spec.image_shape[-1], place)
    if image.shape != spec.image_shape:
        raise DataError(
            f"{place} is an image of shape {image.shape}, expected {spec.image_shape}; "
            "prepare the data set again in another data_dir"
        )
    return image


def _label(label: int, spec: DatasetSpec, place: str) -> int:
    if not 0 <= label < spec.num_classes:
        raise DataError(
            f"{place} has label {label}, expected 0 to {spec.num_classes - 1}; prepare "
            "the data set again in another data_dir"
        )
    return label
