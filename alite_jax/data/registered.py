"""Data sets that other packages register, loaded by a function of theirs."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from ml_collections import ConfigDict

from alite_jax.data.resize import BILINEAR, resize_and_crop
from alite_jax.data.specs import DATASETS, REGISTERED, DatasetSpec
from alite_jax.errors import ConfigError, DataError
from alite_jax.registry import Given, Registry

Part = Literal["train", "eval"]
Load = Callable[[Part], tuple[Any, ...]]

# Names that are no name of TFDS: sets known by heart, and registered ones.
KNOWN: Registry[DatasetSpec | Load | None] = Registry(
    "data set", "alite_jax.datasets", {**DATASETS, "folder": None}
)
# Fields that choose among prepared files.
_OF_FILES = ("folder", "label", "train_split", "eval_split")


def register_dataset(name: str) -> Callable[[Given], Given]:
    """A decorator that registers a data set for `data.name`.

    What is decorated is a function of `"train"` or `"eval"` that returns (images,
    labels), or (images, labels, class names): uint8 `[n, height, width, channels]`, all
    of one size with 1 or 3 channels; integers `[n]` from 0; texts by label. Without
    names there are as many classes as the training labels tell. The same examples must
    come at each call, in the same order.

    Args:
        name: by which a configuration knows the data set.

    Raises:
        ConfigError: something else has the name.

    Example:
        >>> @alite_jax.register_dataset("bright")
        ... def bright(split):
        ...     labels = np.arange({"train": 64, "eval": 32}[split]) % 2
        ...     images = np.full((len(labels), 8, 8, 1), 100, np.uint8)
        ...     images[labels == 1] += 100
        ...     return images, labels, ("dark", "bright")
        >>> alite_jax.get_config("digits", "data.name=bright").data.name
        'bright'
    """
    return KNOWN.register(name)


def find_dataset(name: str) -> Load | None:
    """Returns a registered data set's function, None for a name that is not registered.

    Raises:
        ConfigError: an entry point has the name, and cannot be loaded.
    """
    found = KNOWN.get(name)
    return None if isinstance(found, DatasetSpec) else found


def describe_registered(load: Load, data_config: ConfigDict) -> DatasetSpec:
    """Returns what a registered data set's training split tells of it.

    Args:
        load: its function, from `find_dataset`.
        data_config: the `data` section of the configuration.

    Raises:
        ConfigError: a field is set that a registered data set does not have.
        DataError: the function returns what is no data set.
    """
    name = data_config.name
    for field in _OF_FILES:
        if data_config[field]:
            raise ConfigError(
                f"data.{field} is {data_config[field]!r}, but {name} is a registered"
                " data set, whose function knows no such choice; leave it empty"
            )
    images, labels, class_names = _loaded(load, name, "train")
    classes = class_names or tuple(map(str, range(int(labels.max()) + 1)))
    if len(classes) < 2:
        raise DataError(
            f"{_place(name, 'train')} has one class alone, but at least two are told"
            " apart"
        )
    spec = DatasetSpec(
        name=name,
        num_classes=len(classes),
        image_shape=images.shape[1:],
        train_split="train",
        eval_split="eval",
        class_names=classes,
        resize=BILINEAR,
        prepared=REGISTERED,
    )
    _check_labels(labels, spec, "train")
    return spec


def load_registered(
    load: Load, data_config: ConfigDict, part: Part, spec: DatasetSpec
) -> tuple[np.ndarray, np.ndarray]:
    """Returns images, uint8 `[n, height, width, channels]`, and labels, int32 `[n]`.

    Args:
        load: the function of a registered data set.
        data_config: the `data` section of the configuration; images are resized to its
            `image_size` if that is set.
        part: `"train"` or `"eval"`.
        spec: of the data set.

    Raises:
        ConfigError: it is to be streamed.
        DataError: the function returns what is no such data set.
    """
    if data_config.loading == "stream":
        raise ConfigError(
            f"data.loading is 'stream', but {spec.name} is a registered data set, whose"
            " function returns all images at once; use 'memory' or 'auto'"
        )
    images, labels, _ = _loaded(load, spec.name, part)
    if images.shape[1:] != spec.image_shape:
        raise DataError(
            f"{_place(spec.name, part)} has images of shape {images.shape[1:]}, but the"
            f" data set was described with {spec.image_shape}; all must have one shape"
        )
    _check_labels(labels, spec, part)
    height, width, _ = spec.seen_shape(data_config.image_size)
    if images.shape[1:3] != (height, width):
        resized = [resize_and_crop(x, height, width, spec.resize) for x in images]
        images = np.stack(resized)
    return images, labels.astype(np.int32)


def _loaded(
    load: Load, name: str, part: Part
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Images, labels and the names of the classes, if there are any."""
    place, found = _place(name, part), load(part)
    if not isinstance(found, tuple) or len(found) not in (2, 3):
        raise DataError(
            f"{place} is {type(found).__name__}, not a tuple of images, labels and, if"
            " it likes, the names of the classes"
        )
    images, labels = map(np.asarray, found[:2])
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise DataError(
            f"{place} has images of {images.dtype} and shape {images.shape}, expected"
            " uint8 [n, height, width, channels] with 1 or 3 channels"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (len(images),):
        raise DataError(
            f"{place} has labels of {labels.dtype} and shape {labels.shape}, expected"
            f" integers, one for each of {len(images)} images"
        )
    if not images.size:
        raise DataError(f"{place} has no images")
    return images, labels, tuple(map(str, found[2])) if len(found) == 3 else ()


def _check_labels(labels: np.ndarray, spec: DatasetSpec, part: Part) -> None:
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= spec.num_classes:
        raise DataError(
            f"{_place(spec.name, part)} has labels from {least} to {most}, expected 0"
            f" to {spec.num_classes - 1}"
        )


def _place(name: str, part: Part) -> str:
    return f"what the registered data set {name!r} returns for {part!r}"
