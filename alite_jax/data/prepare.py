"""Finds prepared data sets, and makes them: downloaded, read from a folder, converted.

TFDS writes such a folder under another name and renames it when it is complete, so
several processes may prepare at once.
"""

import contextlib
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from alite_jax.data.folder_copy import prepared_copy
from alite_jax.data.prepared import (
    ARCHIVES,
    FILE_FORMAT,
    data_dir,
    manual_dir,
    prepare_command,
    prepared_dir,
    read_builder,
    silenced,
)
from alite_jax.data.registered import find_dataset
from alite_jax.data.specs import DATASETS
from alite_jax.data.tfrecord import convert
from alite_jax.errors import AliteError, ConfigError, DataError, first_line, nearest

# TFDS's ten attempts would take more than three minutes to find out that there is no
# network; these take some seconds.
_DOWNLOAD_RETRIES = 4
_EXPLANATION = 600  # Characters of an error of TFDS that are told.


def prepare(data_config: ConfigDict) -> str:
    """Prepares a data set, or finds that it already is.

    `digits` is made from scikit-learn's copy, the CIFARs are downloaded by TFDS or read
    from `manual_dir`, `tiny_imagenet` is read from `manual_dir`, a folder of images is
    copied, and what else TFDS knows by name, it downloads.

    Args:
        data_config: the `data` section of the configuration; `name`, `folder`,
            `data_dir` and `manual_dir` are used.

    Returns:
        The folder of the prepared data set.

    Raises:
        ConfigError: there is no data set of that name, or it is a registered one.
        DataError: it cannot be downloaded, read or written.
    """
    if find_dataset(data_config.name):
        raise ConfigError(
            f"{data_config.name} is a registered data set, which its function loads;"
            " there is nothing to prepare"
        )
    if found := _find(data_config, ""):
        return str(found)
    import tensorflow_datasets as tfds

    download_config = tfds.download.DownloadConfig(
        manual_dir=manual_dir(data_config), try_download_gcs=False
    )
    try:
        builder = _builder(data_config)
        # `digits` takes a second and is made unasked, so nobody needs to hear of it.
        quiet = data_config.name == "digits"
        with silenced() if quiet else contextlib.nullcontext(), _few_retries():
            builder.download_and_prepare(download_config=download_config)
    except AliteError:
        raise
    except Exception as error:
        # Another process may have finished the same folder a moment before.
        if found := _find(data_config, ""):
            return str(found)
        raise DataError(_explain(error, data_config)) from error
    return str(builder.data_path)


def find_or_prepare(data_config: ConfigDict, prepared: str = "") -> pathlib.Path:
    """Finds a prepared data set; `digits` and folders of images are prepared unasked.

    Args:
        data_config: the `data` section of the configuration.
        prepared: its name below the data directory, where that is known already.

    Returns:
        Its folder, which holds array_record files.

    Raises:
        ConfigError: there is no data set of that name.
        DataError: it is not prepared, or damaged.
    """
    folder = _find(data_config, prepared)
    if folder is not None:
        return folder
    name = data_config.name
    if name == "digits":
        return pathlib.Path(prepare(data_config))
    _check_exists(name, data_config)
    first = ""
    if name == "tiny_imagenet":
        first = f"put {ARCHIVES[name]} into {manual_dir(data_config)}, then "
    raise DataError(
        f"{name} is not prepared in {data_dir(data_config)}; {first}run "
        f"`{prepare_command(data_config)}`, or set data.data_dir or TFDS_DATA_DIR to "
        "where it is"
    )


def _find(data_config: ConfigDict, prepared: str) -> pathlib.Path | None:
    """The prepared folder, None without one; what is a tfrecord is converted."""
    if (data_config.name == "folder") != bool(data_config.folder):
        raise ConfigError(
            f"data.name is {data_config.name!r} and data.folder is"
            f" {data_config.folder!r}: a folder of images is called 'folder', as"
            " --config=configs/folder.py:PATH does, and nothing else has one"
        )
    folder = prepared_dir(data_config, prepared) if prepared else None
    if folder is None and data_config.folder:
        try:
            copy = prepared_copy(data_config, prepared)
        except DataError as error:
            if not prepared:
                raise
            raise DataError(
                f"the copy {prepared} of the images that this run was trained on is no"
                f" longer in {data_dir(data_config)}, and not to be made again: {error}"
            ) from error
        folder = prepared_dir(data_config, copy)
    if folder is None and not data_config.folder:
        folder = prepared_dir(data_config, data_config.name)
    if folder is not None:
        builder = read_builder(folder, data_config)
        if FILE_FORMAT not in _formats(builder):
            convert(folder, builder)
    return folder


def _formats(builder: Any) -> list[str]:
    kinds = [builder.info.file_format, *builder.info.alternative_file_formats]
    return [kind.value for kind in kinds]


def _check_exists(name: str, data_config: ConfigDict) -> None:
    """Raises a ConfigError if neither this project nor TFDS knows the name."""
    import tensorflow_datasets as tfds

    known = {*DATASETS, *tfds.list_builders(with_community_datasets=False)}
    if name.partition("/")[0] not in known:
        known |= {path.name for path in data_dir(data_config).glob("[!.]*")}
        raise ConfigError(
            f"data.name = {name!r} is unknown to TFDS, and not in"
            f" {data_dir(data_config)}; {_few(nearest(name, known))}"
        )


def _few(names: str) -> str:
    """A hint that does not list the hundreds of names of TFDS."""
    return names if names.startswith("did you mean") else f"such as {list(DATASETS)}"


def _builder(data_config: ConfigDict) -> Any:
    """TFDS's builder of a data set, which must exist."""
    # Imported here: each of these modules takes TFDS with it, which is slow.
    name = data_config.name
    options = {"data_dir": str(data_dir(data_config)), "file_format": FILE_FORMAT}
    if name == "digits":
        from alite_jax.data.builders.digits import Digits

        return Digits(**options)
    if name == "tiny_imagenet":
        from alite_jax.data.builders.tiny_imagenet import TinyImagenet

        return TinyImagenet(**options)
    if name in DATASETS:
        from alite_jax.data.builders import cifar

        builders = {"cifar10": cifar.Cifar10, "cifar100": cifar.Cifar100}
        return builders[name](**options)
    import tensorflow_datasets as tfds

    _check_exists(name, data_config)
    return tfds.builder(name, try_gcs=False, **options)


def _explain(error: Exception, data_config: ConfigDict) -> str:
    """Returns one sentence on why preparing failed and what to do."""
    import requests
    from tensorflow_datasets.core.download import download_manager, util

    name, reason = data_config.name, first_line(error)
    archive = ARCHIVES.get(name, "its archive")
    if isinstance(error, ImportError):
        found = re.search(r"No module named '(\w+)", str(error))
        module = found[1] if found else (error.name or "tensorflow").partition(".")[0]
        return (
            f"TFDS needs the package {module} to prepare {name}; `pip install {module}`"
            f" for this one step and run `{prepare_command(data_config)}` again"
        )
    if isinstance(error, download_manager.NonMatchingChecksumError):
        return (
            f"{archive} is not the official one, its size or "
            f"checksum differs; remove it from {manual_dir(data_config)} if it is "
            f"there, and run `{prepare_command(data_config)}` again"
        )
    if isinstance(error, requests.RequestException | util.DownloadError):
        return (
            f"{name} cannot be downloaded ({type(error).__name__}); connect to the "
            f"network or put {archive} into {manual_dir(data_config)}, then "
            f"run `{prepare_command(data_config)}`"
        )
    if isinstance(error, OSError):
        return (
            f"{name} cannot be written to {data_dir(data_config)} ({reason}); make "
            "room there or set data.data_dir to a folder that can be written"
        )
    # Such as what to download by hand, or the variants that there are.
    whole = " ".join(str(error).split())[:_EXPLANATION] or reason
    return f"{name} cannot be prepared in {data_dir(data_config)}: {whole}"


@contextlib.contextmanager
def _few_retries() -> Iterator[None]:
    """Lets TFDS's downloads fail soon; it has no option for that."""
    from tensorflow_datasets.core.download import downloader

    retries = downloader.MAX_RETRIES
    downloader.MAX_RETRIES = _DOWNLOAD_RETRIES
    try:
        yield
    finally:
        downloader.MAX_RETRIES = retries
