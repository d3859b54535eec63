"""Finds prepared data sets, and finds what is wrong with them.

A prepared data set is the folder `<data_dir>/<name>/<version>`. TFDS writes it under
another name and renames it when it is complete, so a folder of that name is whole
however the writing process ended, unless it was copied in part or damaged later.
"""

import contextlib
import io
import json
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from alite_jax.data.specs import DATASETS
from alite_jax.errors import ConfigError, DataError, first_line
from alite_jax.paths import is_url, user_path

FILE_FORMAT = "array_record"

# What a person can fetch elsewhere and put into `manual_dir` instead of a download.
ARCHIVES = {
    "cifar10": "cifar-10-binary.tar.gz",
    "cifar100": "cifar-100-binary.tar.gz",
    "tiny_imagenet": "tiny-imagenet-200.zip",
}


def data_dir(data_config: ConfigDict) -> pathlib.Path:
    """Returns the TFDS data directory: the config's, else TFDS_DATA_DIR, else ~'s."""
    chosen = data_config.data_dir or os.environ.get("TFDS_DATA_DIR")
    return _folder(chosen or "~/tensorflow_datasets")


def manual_dir(data_config: ConfigDict) -> pathlib.Path:
    """Returns the folder in which archives fetched by hand are looked for."""
    if data_config.manual_dir:
        return _folder(data_config.manual_dir)
    return data_dir(data_config) / "downloads" / "manual"


def _folder(text: str) -> pathlib.Path:
    """A path of this machine, or one such as gs://bucket, as which TFDS takes it."""
    if is_url(text):
        path: pathlib.Path = epath.Path(text)
        return path
    return user_path(text)


def prepare_command(data_config: ConfigDict) -> str:
    """Returns the command that prepares the data set of this configuration.

    It works in a checkout as well as where the package is installed.
    """
    name, folder = data_config.name, data_config.folder
    config = name if name in DATASETS else f"tfds:{name}"
    if folder:
        config = f"folder:{folder}"
    command = f"python -m alite_jax prepare --config={shlex.quote(config)}"
    for field in ("data_dir", "manual_dir"):
        if data_config[field]:
            command += f" --config.data.{field}={shlex.quote(data_config[field])}"
    return command


def prepared_dir(data_config: ConfigDict, name: str) -> pathlib.Path | None:
    """Finds a prepared data set.

    Args:
        data_config: the `data` section of the configuration.
        name: of the data set below the data directory, such as `"cifar10"`. One that
            TFDS knows in several variants may be written with its variant, as in
            `"imagenette/320px-v2"`, and must be where several are prepared.

    Returns:
        The folder of the newest version in the data directory, None without any.

    Raises:
        ConfigError: several variants of it are prepared.
    """
    place = data_dir(data_config) / name
    versions = _versions(place)
    if not versions and "/" not in name:
        variants = [folder for folder in sorted(place.glob("*")) if _versions(folder)]
        if len(variants) > 1:
            names = ", ".join(f"{name}/{folder.name}" for folder in variants)
            raise ConfigError(
                f"data.name = {name!r} is prepared in several variants; use one of"
                f" {names}"
            )
        versions = _versions(variants[0]) if variants else []
    return max(versions)[1] if versions else None


def _versions(place: pathlib.Path) -> list[tuple[tuple[int, ...], pathlib.Path]]:
    # Unfinished folders of TFDS are called incomplete.*.
    return [
        (tuple(map(int, folder.name.split("."))), folder)
        for folder in place.glob("*")
        if re.fullmatch(r"\d+\.\d+\.\d+", folder.name)
    ]


def damaged(folder: pathlib.Path, finding: str, data_config: ConfigDict) -> DataError:
    """Returns the error that says of a prepared folder what is wrong with it."""
    return DataError(
        f"the data set in {folder} is incomplete or damaged ({finding}); delete that "
        f"folder and run `{prepare_command(data_config)}`"
    )


def read_builder(folder: pathlib.Path, data_config: ConfigDict) -> Any:
    """Reads what TFDS has written down about a data set.

    Args:
        folder: of the prepared data set.
        data_config: the `data` section of the configuration.

    Returns:
        TFDS's builder.

    Raises:
        DataError: TFDS never finished it, or it is damaged or another data set.
    """
    for file in ("dataset_info.json", "features.json"):
        try:
            content = json.loads((folder / file).read_text("utf-8"))
        except FileNotFoundError as error:
            raise damaged(folder, f"it has no {file}", data_config) from error
        except (OSError, ValueError, RecursionError) as error:
            finding = f"{file} cannot be read: {first_line(error)}"
            raise damaged(folder, finding, data_config) from error
        if not isinstance(content, dict):
            raise damaged(folder, f"{file} holds no JSON object", data_config)
    # Imported here: importing TFDS takes longer than all the rest of this package.
    import tensorflow_datasets as tfds

    try:
        # TFDS prints when it looks for TensorFlow, as it does for some damage.
        with contextlib.redirect_stdout(io.StringIO()):
            builder = tfds.builder_from_directory(folder)
    except Exception as error:  # What it raises for damage is not documented.
        raise damaged(folder, first_line(error), data_config) from error
    finding = _wrong_content(builder, data_config)
    if finding:
        raise damaged(folder, finding, data_config)
    return builder


def image_and_label(builder: Any, data_config: ConfigDict) -> tuple[str, str]:
    """Returns the names of the features that are the image and its label.

    The label is `data.label` if that is given, else `label`, or what TFDS calls the
    target, or the only class label there is.

    Args:
        builder: from `read_builder`.
        data_config: the `data` section of the configuration.

    Raises:
        ConfigError: there is no such label, or none or several that it might be.
        DataError: there is no image.
    """
    if data_config.name in DATASETS and not data_config.label:
        return "image", "label"
    from tensorflow_datasets import features as kinds

    features = builder.info.features
    named = dict(features) if isinstance(features, kinds.FeaturesDict) else {}
    images = [name for name, kind in named.items() if isinstance(kind, kinds.Image)]
    labels = [
        name for name, kind in named.items() if isinstance(kind, kinds.ClassLabel)
    ]
    inputs, target = (builder.info.supervised_keys or ("", ""))[:2]
    image = next((name for name in ("image", inputs) if name in images), "")
    if not image and len(images) == 1:
        image = images[0]
    if not image:
        raise DataError(
            f"{data_config.name} has no feature that is its image, but only"
            f" {', '.join(sorted(named))}; use a data set for classification"
        )
    if data_config.label:
        if data_config.label not in labels:
            raise ConfigError(
                f"data.label = {data_config.label!r} is no class label of"
                f" {data_config.name}; it has {', '.join(sorted(labels)) or 'none'}"
            )
        return image, data_config.label
    label = next((name for name in ("label", target) if name in labels), "")
    if not label and len(labels) == 1:
        label = labels[0]
    if not label:
        found = (
            f"several class labels ({', '.join(sorted(labels))}): choose one with"
            " data.label"
            if labels
            else "no class label of a whole image, but only"
            f" {', '.join(sorted(set(named) - {image})) or 'the image'}: use a data set"
            " for classification"
        )
        raise ConfigError(f"{data_config.name} has {found}")
    return image, label


def _wrong_content(builder: Any, data_config: ConfigDict) -> str:
    """What keeps this from being that data set, nothing if all is well."""
    from tensorflow_datasets import features as kinds

    name = data_config.name
    known = name in DATASETS
    if not builder.info.splits or (known and builder.name != name):
        return f"dataset_info.json lists no splits of {name}"
    if not known:
        return ""
    features = builder.info.features
    named = dict(features) if isinstance(features, kinds.FeaturesDict) else {}
    image, label = named.get("image"), named.get("label")
    if not isinstance(image, kinds.Image):
        return "features.json has no image"
    if not isinstance(label, kinds.Tensor) or label.shape != ():
        return "features.json has no label"
    if not np.issubdtype(label.np_dtype, np.integer):
        return f"features.json has labels of type {np.dtype(label.np_dtype)}"
    if not isinstance(label, kinds.ClassLabel):
        return ""
    classes = DATASETS[name].num_classes
    if label.num_classes != classes:
        return f"features.json has {label.num_classes} classes, expected {classes}"
    # TFDS calls classes by their numbers where it has no names: so it does for digits,
    # but an archive has names.
    if name in ARCHIVES and label.names == [str(number) for number in range(classes)]:
        return "the names of its classes, label.labels.txt, cannot be read"
    if len(label.names) != classes or len(set(label.names)) != classes:
        return f"label.labels.txt does not have {classes} different names"
    return ""


@contextlib.contextmanager
def silenced(progress: bool = False) -> Iterator[None]:
    """Keeps TFDS from printing, and from drawing progress bars where nobody watches.

    Args:
        progress: whether bars are drawn where somebody does.
    """
    import tensorflow_datasets as tfds

    if not (progress and sys.stderr.isatty()):
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
