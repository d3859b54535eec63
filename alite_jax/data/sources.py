"""Data sets as the networks see them: described, and read or opened split by split."""

import dataclasses
from typing import Literal, TypeAlias

import numpy as np
from ml_collections import ConfigDict

from alite_jax.data.examples import Examples
from alite_jax.data.folder import folder_name
from alite_jax.data.images import decoding_threads
from alite_jax.data.prepare import find_or_prepare
from alite_jax.data.prepared import data_dir, image_and_label, read_builder
from alite_jax.data.registered import (
    describe_registered,
    find_dataset,
    load_registered,
)
from alite_jax.data.resize import BILINEAR
from alite_jax.data.specs import DATASETS, REGISTERED, DatasetSpec
from alite_jax.data.stream import Streamed, memory_available
from alite_jax.data.wordnet import readable
from alite_jax.errors import ConfigError

__all__ = [
    "Data",
    "Split",
    "class_names",
    "describe",
    "load_split",
    "measured",
    "shared_examples",
]

Array: TypeAlias = np.ndarray | Streamed

# Examples that a thread reads at a time; bounds what is held besides the result.
_CHUNK = 64
# Training images by which mean and deviation are measured.
_MEASURED = 4096


@dataclasses.dataclass(frozen=True)
class Split:
    """All the examples of a split, in the order of the prepared files.

    Both may be arrays in memory, or be read where they are indexed.

    Attributes:
        images: uint8 [n, height, width, channels].
        labels: int32 [n].
    """

    images: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set.

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


def describe(data_config: ConfigDict) -> DatasetSpec:
    """Returns what is known about a data set: by heart, or as TFDS has written it down.

    A registered one is loaded for it.

    Args:
        data_config: the `data` section of the configuration; `name`, `folder`, `label`
            and `data_dir` are used.

    Returns:
        Its specification; mean and deviation of a set that is not known by heart are
        not measured yet.

    Raises:
        ConfigError: there is no such data set, or no one label in it.
        DataError: it is not prepared, or damaged.
    """
    known = DATASETS.get(data_config.name)
    if known and not data_config.label and not data_config.folder:
        return known
    if load := find_dataset(data_config.name):
        return describe_registered(load, data_config)
    folder = find_or_prepare(data_config)
    builder = read_builder(folder, data_config)
    image, label = image_and_label(builder, data_config)
    classes = builder.info.features[label]
    if classes.num_classes < 2:
        raise ConfigError(
            f"{data_config.name} has one class of {label!r} alone, but at least two are"
            " told apart; use another data set, or another label with data.label"
        )
    named = {
        "num_classes": classes.num_classes,
        "class_names": tuple(readable(classes.names)),
    }
    if known:
        return dataclasses.replace(known, **named)
    height, width, channels = builder.info.features[image].shape
    train, evaluation = _splits(builder.info.splits)
    chosen = data_config.train_split and data_config.eval_split
    if builder.info.disable_shuffling and "[" in evaluation and not chosen:
        raise ConfigError(
            f"{data_config.name} has the one split {train.partition('[')[0]!r} in an"
            " order of its own, whose end may hold some classes only; set"
            " data.train_split and data.eval_split"
        )
    return DatasetSpec(
        name=folder_name(data_config) if data_config.folder else data_config.name,
        **named,
        image_shape=(height or 0, width or 0, 1 if channels == 1 else 3),
        train_split=train,
        eval_split=evaluation,
        resize=BILINEAR,
        prepared=folder.parent.relative_to(data_dir(data_config)).as_posix(),
    )


def _splits(names: dict[str, object]) -> tuple[str, str]:
    """The splits to train and to evaluate on, where nobody says."""
    train = "train" if "train" in names else next(iter(names))
    for evaluation in ("validation", "test"):
        if evaluation in names and evaluation != train:
            return train, evaluation
    # TFDS shuffles when it prepares, so the end is as good as any part.
    return f"{train}[:90%]", f"{train}[90%:]"


def measured(spec: DatasetSpec, train: Split) -> DatasetSpec:
    """Returns a specification with mean and deviation of the training images.

    They are those of at most 4,096 images, spread evenly over the split.
    """
    if spec.mean:
        return spec
    count = min(len(train), _MEASURED)
    chosen = np.arange(count) * len(train) // count
    levels = np.zeros((spec.image_shape[-1], 256), np.int64)
    for start in range(0, count, 256):
        images = train.images[chosen[start : start + 256]]
        for channel, counts in enumerate(levels):
            counts += np.bincount(images[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    shares = levels / levels.sum(axis=1, keepdims=True)
    mean = shares @ values
    deviation = np.sqrt(np.maximum(shares @ values**2 - mean**2, 0))
    # One grey level everywhere has no deviation to divide by.
    deviation = np.maximum(deviation, 1 / 255)
    return dataclasses.replace(
        spec,
        mean=tuple(mean.round(4).tolist()),
        std=tuple(deviation.round(4).tolist()),
    )


def class_names(
    data_config: ConfigDict, spec: DatasetSpec | None = None
) -> tuple[str, ...]:
    """Returns what the classes of a prepared data set are called, by label.

    Labels without names are called by their numbers, synset ids by their words.

    Raises:
        DataError: the data set is not there, or damaged.
    """
    spec = spec or describe(data_config)
    if spec.class_names:
        return spec.class_names
    builder = read_builder(find_or_prepare(data_config), data_config)
    numbers = map(str, range(spec.num_classes))
    names = getattr(builder.info.features["label"], "names", [*numbers])
    return tuple(readable(names))


def shared_examples(data_config: ConfigDict, spec: DatasetSpec) -> int:
    """Returns how many examples are both in the training and the evaluation split.

    Args:
        data_config: as for `load_split`, which must have read both splits.
        spec: of the data set.

    Returns:
        Their number; 0 for a registered data set, of which nobody knows.
    """
    if spec.prepared == REGISTERED:
        return 0
    folder = find_or_prepare(data_config, spec.prepared)
    builder = read_builder(folder, data_config)
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


def load_split(
    data_config: ConfigDict,
    split: Literal["train", "eval"],
    spec: DatasetSpec | None = None,
) -> Split:
    """Reads one split of the configured data set, or opens it to be read in parts.

    `digits` and folders of images are prepared on the way when they are not there yet;
    every other data set must have been prepared before.

    Args:
        data_config: the `data` section of the configuration; `name`, `folder`, `label`,
            `data_dir`, `train_split` or `eval_split`, `image_size` and `loading` are
            used.
        split: 'train' or 'eval'.
        spec: of the data set, if it has been described already.

    Returns:
        The images, resized to `image_size` if that is set, and their labels.

    Raises:
        ConfigError: the name, the label, the split string or the image size is wrong.
        DataError: the data set is missing, broken, in another file format, or holds
            images or labels that it must not hold.
    """
    spec = spec or describe(data_config)
    if load := find_dataset(data_config.name):
        return Split(*load_registered(load, data_config, split, spec))
    folder = find_or_prepare(data_config, spec.prepared)
    field = {"train": "train_split", "eval": "eval_split"}[split]
    examples = Examples(data_config, spec, folder, field)
    loading, size = data_config.loading, len(examples) * int(np.prod(examples.shape))
    if loading == "stream" or (loading == "auto" and 2 * size > memory_available()):
        return Split(
            Streamed(examples, "images", data_config.workers),
            Streamed(examples, "labels", data_config.workers),
        )
    images = np.empty((len(examples), *examples.shape), np.uint8)
    labels = np.empty(len(examples), np.int32)
    chunks = np.split(np.arange(len(examples)), range(_CHUNK, len(examples), _CHUNK))
    with decoding_threads() as threads:
        for numbers, found in zip(
            chunks, threads.map(examples.read, chunks), strict=True
        ):
            images[numbers], labels[numbers] = found
    return Split(images, labels)
