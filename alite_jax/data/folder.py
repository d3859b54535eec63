"""A folder of images as a prepared data set of its own: its contents and its splits.

It is written once, by a TFDS builder, as `<data_dir>/alite_folder/images_<digest>`,
whose digest stands for all paths and contents: another content is another data set, and
the same content is the same one, wherever the folder lies and whatever it is called.
"""

import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict
from tqdm import tqdm

from alite_jax.data.folder_layout import ImageFile
from alite_jax.data.images import decode_image, decoding_threads
from alite_jax.errors import DataError
from alite_jax.paths import user_path

BUILDER = "alite_folder"
# The share of each class that is evaluated on where the folder has no second split.
HELD_OUT = 0.2
_DIGITS = 12  # Of the digest that are part of a name.


@dataclass(frozen=True)
class Inspected:
    """What reading an image has told: its digest and its (height, width)."""

    digest: str
    size: tuple[int, int]


def folder_name(data_config: ConfigDict) -> str:
    """What people call the data set of a folder."""
    return user_path(data_config.folder).resolve().name or "folder"


def listing_digest(root: Path, files: Iterable[ImageFile]) -> str:
    """A digest of paths, sizes and times, which changes when a file does."""
    seen: list[tuple[str, ...] | tuple[str, int, int, int]] = [(str(root.absolute()),)]
    for file in files:
        try:
            status = (root / file.path).stat()
        except OSError:  # `inspect` says what is wrong with it.
            continue
        times = status.st_mtime_ns, status.st_ctime_ns
        seen.append((file.path, status.st_size, *times))
    return _digest(seen)


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def inspect(root: Path, files: list[ImageFile]) -> list[Inspected]:
    """Reads and decodes every image, with a progress bar.

    Raises:
        DataError: some cannot be read; says how many, and the first.
    """

    def look(file: ImageFile) -> Inspected | DataError:
        path = root / file.path
        try:
            content = path.read_bytes()
            height, width, _ = decode_image(io.BytesIO(content), 3, str(path)).shape
        except DataError as error:
            return error
        except OSError as error:
            return DataError(f"{path} cannot be opened ({error.strerror})")
        return Inspected(hashlib.sha256(content).hexdigest(), (height, width))

    with decoding_threads() as threads:
        results = list(
            tqdm(
                threads.map(look, files),
                f"reading {root.name}",
                total=len(files),
                leave=False,
                disable=None,  # Where nobody watches.
            )
        )
    errors = [result for result in results if isinstance(result, DataError)]
    if errors:
        raise DataError(
            f"{len(errors)} of the {len(files)} image files in {root} cannot be used,"
            f" repair or remove them: {errors[0]}"
            + (f"; the next is {errors[1]}" if len(errors) > 1 else "")
        )
    return [result for result in results if isinstance(result, Inspected)]


def assign_splits(
    root: Path, files: list[ImageFile], inspected: list[Inspected]
) -> list[str]:
    """Returns the split of each image, as the folder or the contents say.

    Without splits, the images of each class whose digests come first are held out:
    the same ones on every machine, and copies of one image always together.

    Raises:
        DataError: a class has one image alone, or an image is in two splits.
    """
    splits = [file.split for file in files]
    if not any(splits):
        held_out: set[tuple[str, str]] = set()
        for label in {file.label for file in files}:
            digests = sorted(
                {
                    found.digest
                    for file, found in zip(files, inspected, strict=True)
                    if file.label == label
                }
            )
            if len(digests) < 2:
                raise DataError(
                    f"the class {label!r} of {root} has one image alone, copies of it"
                    " aside, which cannot be trained on and held out; add others"
                )
            count = max(1, round(HELD_OUT * len(digests)))
            held_out |= {(label, digest) for digest in digests[:count]}
        splits = [
            "validation" if (file.label, found.digest) in held_out else "train"
            for file, found in zip(files, inspected, strict=True)
        ]
    _check_duplicates(root, files, inspected, splits)
    return splits


def _check_duplicates(
    root: Path, files: list[ImageFile], inspected: list[Inspected], splits: list[str]
) -> None:
    trained = {
        found.digest: file.path
        for file, found, split in zip(files, inspected, splits, strict=True)
        if split == "train"
    }
    shared = [
        (file.path, trained[found.digest])
        for file, found, split in zip(files, inspected, splits, strict=True)
        if split != "train" and found.digest in trained
    ]
    if shared:
        raise DataError(
            f"{len(shared)} image(s) of {root} would be evaluated on and trained on,"
            f" too: {shared[0][0]} is the same as {shared[0][1]}; remove one of each"
        )


def copy_name(files: list[ImageFile], inspected: list[Inspected]) -> str:
    """The name of the prepared data set, which stands for all paths and contents."""
    pairs = zip(files, inspected, strict=True)
    digest = _digest([(file.path, found.digest) for file, found in pairs])
    return f"images_{digest[:_DIGITS]}"
