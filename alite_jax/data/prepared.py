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
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from alite_jax.data.specs import dataset_spec
from alite_jax.errors import DataError
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
    """Returns the command line that prepares the data set of this configuration."""
    command = f"python launch.py --config=configs/{data_config.name}.py --job=prepare"
    for field in ("data_dir", "manual_dir"):
        if data_config[field]:
            command += f" --config.data.{field}={shlex.quote(data_config[field])}"
    return command


def prepared_dir(data_config: ConfigDict) -> pathlib.Path | None:
    """Finds the prepared data set.

    Args:
        data_config: the `data` section of the configuration.

    Returns:
        The folder of the newest version in the data directory, None without any.

    Raises:
        DataError: there is such a folder, but TFDS never finished it, it is damaged, or
            it is in a file format that only TensorFlow reads.
    """
    versions = []
    for folder in (data_dir(data_config) / data_config.name).glob("*"):
        # Unfinished folders of TFDS are called incomplete.*.
        if re.fullmatch(r"\d+\.\d+\.\d+", folder.name):
            versions.append((tuple(map(int, folder.name.split("."))), folder))
    if not versions:
        return None
    folder = max(versions)[1]
    read_builder(folder, data_config)
    return folder


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
        TFDS's builder, whose features are those that `load_split` relies on.

    Raises:
        DataError: as for `prepared_dir`.
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
    formats = [builder.info.file_format, *builder.info.alternative_file_formats]
    if FILE_FORMAT not in [file_format.value for file_format in formats]:
        raise DataError(
            f"the data set in {folder} is stored as {formats[0].value}, but only "
            f"{FILE_FORMAT} can be read without TensorFlow; delete that folder, or "
            "set data.data_dir to another one, and run "
            f"`{prepare_command(data_config)}`"
        )
    finding = _wrong_content(builder, data_config.name)
    if finding:
        raise damaged(folder, finding, data_config)
    return builder


def _wrong_content(builder: Any, name: str) -> str:
    """What keeps this from being that data set, nothing if all is well."""
    from tensorflow_datasets import features as kinds

    if builder.name != name or not builder.info.splits:
        return f"dataset_info.json lists no splits of {name}"
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
    classes = dataset_spec(name).num_classes
    if label.num_classes != classes:
        return f"features.json has {label.num_classes} classes, expected {classes}"
    # TFDS calls classes by their numbers where it has no names: so it does for digits,
    # but an archive has names.
    if name in ARCHIVES and label.names == [str(number) for number in range(classes)]:
        return "the names of its classes, label.labels.txt, cannot be read"
    if len(label.names) != classes or len(set(label.names)) != classes:
        return f"label.labels.txt does not have {classes} different names"
    return ""


def first_line(error: Exception) -> str:
    """Returns the first line of what an error says, else its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
