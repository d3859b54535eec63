"""The prepared copy of a folder of images: found again, or written.

Beside the prepared data set lies `listings.json`: digests of the places, paths, sizes
and times of the folders that it was found to be the copy of, so that contents are read
only when one of those has changed.
"""

import contextlib
import json
from pathlib import Path

from ml_collections import ConfigDict

from alite_jax.data.folder import (
    BUILDER,
    Inspected,
    assign_splits,
    copy_name,
    inspect,
    listing_digest,
)
from alite_jax.data.folder_layout import ImageFile, list_images
from alite_jax.data.prepared import data_dir, prepared_dir, silenced
from alite_jax.errors import DataError, first_line
from alite_jax.paths import user_path

_LISTINGS = "listings.json"


def prepared_copy(data_config: ConfigDict, wanted: str = "") -> str:
    """Finds the copy of a folder as it is now, and writes it if there is none.

    Args:
        data_config: the `data` section of the configuration; `folder` and `data_dir`
            are used.
        wanted: if given, the only copy that is of use.

    Returns:
        Its name below the data directory.

    Raises:
        DataError: the folder cannot be used, has changed since the wanted copy was
            made, or the copy cannot be written.
    """
    root = user_path(data_config.folder)
    files = list_images(root)
    listing = listing_digest(root, files)
    name = _known(data_config, listing)
    if not name:
        inspected = inspect(root, files)
        name = f"{BUILDER}/{copy_name(files, inspected)}"
        if wanted in ("", name):
            if prepared_dir(data_config, name) is None:
                _write(data_config, name, root, files, inspected)
            _remember(data_config, name, listing)
    if wanted not in ("", name):
        raise DataError(f"the images in {root} are no longer the same")
    return name


def change_of(data_config: ConfigDict, prepared: str) -> str:
    """What is no longer as in a copy that a run was trained on; `""` if nothing is."""
    root = user_path(data_config.folder)
    if prepared_dir(data_config, prepared) is None:
        return ""  # There is nothing to keep to.
    try:
        files = list_images(root)
        listing = listing_digest(root, files)
        name = _known(data_config, listing)
        if not name:
            name = f"{BUILDER}/{copy_name(files, inspect(root, files))}"
            if name == prepared:
                _remember(data_config, name, listing)
    except DataError as error:
        return str(error)
    return "" if name == prepared else f"the images in {root} are no longer the same"


def _known(data_config: ConfigDict, listing: str) -> str:
    """The name of the copy of what is listed, `""` if that is not known."""
    for path in sorted((data_dir(data_config) / BUILDER).glob(f"*/{_LISTINGS}")):
        name = f"{BUILDER}/{path.parent.name}"
        if listing in _read(path) and prepared_dir(data_config, name):
            return name
    return ""


def _remember(data_config: ConfigDict, name: str, listing: str) -> None:
    path = data_dir(data_config) / name / _LISTINGS
    # Where it cannot be written, the images are read again the next time.
    with contextlib.suppress(OSError):
        path.write_text(json.dumps([*_read(path), listing]) + "\n")


def _read(path: Path) -> list[str]:
    with contextlib.suppress(OSError, ValueError):
        digests: list[str] = json.loads(path.read_text())
        return digests
    return []


def _write(
    data_config: ConfigDict,
    name: str,
    root: Path,
    files: list[ImageFile],
    inspected: list[Inspected],
) -> None:
    splits = assign_splits(root, files, inspected)
    # Imported here: importing TFDS takes longer than all the rest of this package.
    from alite_jax.data.builders.image_folder import builder_of

    place = data_dir(data_config) / name
    try:
        with silenced(progress=True):
            builder = builder_of(place.name, root, files, inspected, splits)
            builder(
                data_dir=str(place.parent), file_format="array_record"
            ).download_and_prepare()
    except Exception as error:  # array_record has errors of its own.
        # Another process may have finished the same copy a moment before.
        if prepared_dir(data_config, name) is None:
            raise DataError(
                f"the images of {root} cannot be copied to {place}"
                f" ({first_line(error)}); make room there or set data.data_dir to a"
                " folder that can be written"
            ) from error
