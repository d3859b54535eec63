"""Downloads and prepares data sets as TFDS folders in the array_record format.

TFDS writes such a folder under another name and renames it when it is complete, so
several processes may prepare at once.
"""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from alite_jax.data.prepared import (
    ARCHIVES,
    FILE_FORMAT,
    data_dir,
    first_line,
    manual_dir,
    prepare_command,
    prepared_dir,
)
from alite_jax.data.specs import dataset_spec
from alite_jax.errors import DataError

# TFDS's ten attempts would take more than three minutes to find out that there is no
# network; these take some seconds.
_DOWNLOAD_RETRIES = 4


def prepare(data_config: ConfigDict) -> str:
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
            data_dir=str(data_dir(data_config)), file_format=FILE_FORMAT
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


def _explain(error: Exception, data_config: ConfigDict) -> str:
    """Returns one sentence on why preparing failed and what to do."""
    import requests
    from tensorflow_datasets.core.download import download_manager, util

    name, reason = data_config.name, first_line(error)
    if isinstance(error, download_manager.NonMatchingChecksumError):
        return (
            f"the archive {ARCHIVES[name]} is not the official one, its size or "
            f"checksum differs; remove it from {manual_dir(data_config)} if it is "
            f"there, and run `{prepare_command(data_config)}` again"
        )
    if isinstance(error, requests.RequestException | util.DownloadError):
        return (
            f"{name} cannot be downloaded ({type(error).__name__}); connect to the "
            f"network or put {ARCHIVES[name]} into {manual_dir(data_config)}, then "
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
