"""Downloads and prepares data sets as TFDS folders in the array_record format.

A prepared data set is the folder `<data_dir>/<name>/<version>`. TFDS writes it under
another name and renames it when it is complete, so a folder of that name is whole
however the writing process ended, and several processes may prepare at once.
"""

import contextlib
import io
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from alite_jax.data.specs import dataset_spec
from alite_jax.errors import DataError

_FILE_FORMAT = "array_record"

# TFDS's ten attempts would take more than three minutes to find out that there is no
# network; these take some seconds.
_DOWNLOAD_RETRIES = 4

# What a person can fetch elsewhere and put into `manual_dir` instead of a download.
_ARCHIVES = {
    "cifar10": "cifar-10-binary.tar.gz",
    "cifar100": "cifar-100-binary.tar.gz",
    "tiny_imagenet": "tiny-imagenet-200.zip",
}


def data_dir(data_config: Any) -> pathlib.Path:
    """Returns the TFDS data directory: the config's, else TFDS_DATA_DIR, else ~'s."""
    chosen = data_config.data_dir or os.environ.get("TFDS_DATA_DIR")
    return _folder(chosen or "~/tensorflow_datasets")


def manual_dir(data_config: Any) -> pathlib.Path:
    """Returns the folder in which archives fetched by hand are looked for."""
    if data_config.manual_dir:
        return _folder(data_config.manual_dir)
    return data_dir(data_config) / "downloads" / "manual"


def _folder(text: str) -> pathlib.Path:
    """A path of this machine, or one such as gs://bucket, as which TFDS takes it."""
    if "://" in text:
        path: pathlib.Path = epath.Path(text)
        return path
    return pathlib.Path(text).expanduser()


def prepare_command(data_config: Any) -> str:
    """Returns the command line that prepares the data set of this configuration."""
    command = f"python launch.py --config=configs/{data_config.name}.py --job=prepare"
    for field in ("data_dir", "manual_dir"):
        if data_config[field]:
            command += f" --config.data.{field}={data_config[field]}"
    return command


def prepared_dir(data_config: Any) -> pathlib.Path | None:
    """Finds the prepared data set.

    Args:
        data_config: the `data` section of the configuration.

    Returns:
        The folder of the newest version in the data directory, None without any.

    Raises:
        DataError: there is such a folder, but TFDS never finished it, or it is in a
            file format that only TensorFlow reads.
    """
    versions = []
    for folder in (data_dir(data_config) / data_config.name).glob("*"):
        # Unfinished folders of TFDS are called incomplete.*.
        if folder.is_dir() and re.fullmatch(r"\d+\.\d+\.\d+", folder.name):
            versions.append((tuple(map(int, folder.name.split("."))), folder))
    if not versions:
        return None
    folder = max(versions)[1]
    for file in ("dataset_info.json", "features.json"):
        if not (folder / file).exists():
            raise DataError(
                f"the data set in {folder} is incomplete, it has no {file}; delete "
                f"that folder and run `{prepare_command(data_config)}`"
            )
    _check_file_format(folder, data_config)
    return folder


def _check_file_format(folder: pathlib.Path, data_config: Any) -> None:
    info = json.loads((folder / "dataset_info.json").read_text())
    # TFDS's default, which it does not write down.
    main_format = info.get("fileFormat", "tfrecord")
    if _FILE_FORMAT not in [main_format, *info.get("alternativeFileFormats", [])]:
        raise DataError(
            f"the data set in {folder} is stored as {main_format}, but only "
            f"{_FILE_FORMAT} can be read without TensorFlow; delete that folder, or "
            "set data.data_dir to another one, and run "
            f"`{prepare_command(data_config)}`"
        )


def prepare(data_config: Any) -> str:
    """Prepares a data set, or finds that it already is.

    `digits` is made from scikit-learn's copy, the CIFARs are downloaded by TFDS or read
    from `manual_dir`, and `tiny_imagenet` is read from `manual_dir`.

    Args:
        data_config: the `data` section of the configuration; `name`, `data_dir` and
            `manual_dir` are used.

    Returns:
        The folder of the prepared data set.

    Raises:
        ConfigError: there is no data set of that name.
        DataError: it cannot be downloaded, read or written.
    """
    name = dataset_spec(data_config.name).name
    prepared = prepared_dir(data_config)
    if prepared is not None:
        return str(prepared)
    import tensorflow_datasets as tfds

    download_config = tfds.download.DownloadConfig(
        manual_dir=manual_dir(data_config), try_download_gcs=False
    )
    try:
        builder = _builder_class(name)(
            data_dir=str(data_dir(data_config)), file_format=_FILE_FORMAT
        )
        # `digits` takes a second and is made unasked, so nobody needs to hear of it.
        quiet = _silence() if name == "digits" else contextlib.nullcontext()
        with quiet, _few_retries():
            builder.download_and_prepare(download_config=download_config)
    except DataError:
        raise
    except Exception as error:
        # Another process may have finished the same folder a moment before.
        prepared = prepared_dir(data_config)
        if prepared is not None:
            return str(prepared)
        raise DataError(_explain(error, data_config)) from error
    return str(builder.data_path)


def _builder_class(name: str) -> Any:
    # Imported here: each of these modules takes TFDS with it, which is slow.
    if name == "digits":
        from alite_jax.data.builders.digits import Digits

        return Digits
    if name == "tiny_imagenet":
        from alite_jax.data.builders.tiny_imagenet import TinyImagenet

        return TinyImagenet
    from alite_jax.data.builders import cifar

    return {"cifar10": cifar.Cifar10, "cifar100": cifar.Cifar100}[name]


def _explain(error: Exception, data_config: Any) -> str:
    """Returns one sentence on why preparing failed and what to do."""
    import requests
    from tensorflow_datasets.core.download import download_manager, util

    name = data_config.name
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, download_manager.NonMatchingChecksumError):
        return (
            f"the archive {_ARCHIVES[name]} is not the official one, its size or "
            f"checksum differs; remove it from {manual_dir(data_config)} if it is "
            f"there, and run `{prepare_command(data_config)}` again"
        )
    if isinstance(error, requests.RequestException | util.DownloadError):
        return (
            f"{name} cannot be downloaded ({type(error).__name__}); connect to the "
            f"network or put {_ARCHIVES[name]} into {manual_dir(data_config)}, then "
            f"run `{prepare_command(data_config)}`"
        )
    if isinstance(error, OSError):
        return (
            f"{name} cannot be written to {data_dir(data_config)} ({reason}); make "
            "room there or set data.data_dir to a folder that can be written"
        )
    return f"{name} cannot be prepared in {data_dir(data_config)}: {reason}"


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps TFDS from printing, and from drawing progress bars."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()


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
