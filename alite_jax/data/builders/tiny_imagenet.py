"""TFDS builder of Tiny-ImageNet, from the official archive, which TFDS does not have.

`manual_dir` must hold `tiny-imagenet-200.zip` as Stanford's CS231N publishes it, or the
folder `tiny-imagenet-200` unpacked from it:

    tiny-imagenet-200/wnids.txt                      200 WordNet ids, one a line
    tiny-imagenet-200/train/<wnid>/images/<wnid>_<i>.JPEG
    tiny-imagenet-200/val/val_annotations.txt        file, wnid and box, tab-separated
    tiny-imagenet-200/val/images/val_<i>.JPEG

The label is the place of the wnid in sorted order. The official test images have no
labels and are left out.
"""

import collections
import io
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from alite_jax.data.builders.encoding import encode_png
from alite_jax.data.images import decode_image
from alite_jax.errors import DataError, first_line

_FOLDER = "tiny-imagenet-200"
_ARCHIVE = "tiny-imagenet-200.zip"
_NUM_CLASSES = 200
_SIZE = (64, 64)


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """Tiny-ImageNet: 200 classes of ImageNet, 64x64 pixels."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put {_ARCHIVE} into manual_dir."

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "200 classes of ImageNet at 64x64 pixels: 100,000 training and 10,000 "
                "validation images."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(*_SIZE, 3)),
                    "label": tfds.features.ClassLabel(num_classes=_NUM_CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        try:
            folder = pathlib.Path(dl_manager.manual_dir)
        except AssertionError as error:
            raise DataError(
                f"{_ARCHIVE} is missing: {first_line(error).split('. ')[0]}; "
                "create that folder and put the archive into it"
            ) from error
        files = _open(folder)
        wnids = sorted(files.text("wnids.txt").split())
        if len(wnids) != _NUM_CLASSES:
            raise DataError(
                f"wnids.txt in {files.origin} has {len(wnids)} classes, expected "
                f"{_NUM_CLASSES}; fetch {_ARCHIVE} again"
            )
        self.info.features["label"].names = wnids
        labels = {wnid: label for label, wnid in enumerate(wnids)}
        return {
            "train": _examples(files, _list_train(files, labels)),
            "validation": _examples(files, _list_validation(files, labels)),
        }

    def _generate_examples(self) -> Any:
        raise NotImplementedError("the splits above are generators already")


class _Files:
    """The files of the data set, by their path below the top folder."""

    def __init__(self, origin: pathlib.Path, paths: list[str], read: Callable):
        self.origin = origin
        self.paths = sorted(paths)
        self._read = read

    def bytes(self, path: str) -> bytes:
        try:
            return self._read(path)
        except (KeyError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"{path} of {self.origin} cannot be read ({error}); fetch {_ARCHIVE} "
                "again"
            ) from error

    def text(self, path: str) -> str:
        return self.bytes(path).decode()


def _open(folder: pathlib.Path) -> _Files:
    archive, unpacked = folder / _ARCHIVE, folder / _FOLDER
    if archive.exists():
        try:
            opened = zipfile.ZipFile(archive)
        except zipfile.BadZipFile as error:
            raise DataError(
                f"{archive} is not a complete zip archive ({error}); fetch it again"
            ) from error
        prefix = f"{_FOLDER}/"
        paths = [name.removeprefix(prefix) for name in opened.namelist()]
        return _Files(archive, paths, lambda path: opened.read(prefix + path))
    if unpacked.is_dir():
        paths = []
        for parent, _, names in os.walk(unpacked):
            parent_path = pathlib.Path(parent).relative_to(unpacked)
            paths += [(parent_path / name).as_posix() for name in names]
        return _Files(unpacked, paths, lambda path: (unpacked / path).read_bytes())
    raise DataError(
        f"neither {_ARCHIVE} nor the folder {_FOLDER} is in {folder}; put one of them "
        "there, or set data.manual_dir to the folder that has it"
    )


def _list_train(files: _Files, labels: dict[str, int]) -> list[tuple[str, int]]:
    """Returns the path and the label of every training image."""
    listed = []
    for path in files.paths:
        parts = path.split("/")
        if parts[0] == "train" and path.endswith(".JPEG") and parts[1] in labels:
            listed.append((path, labels[parts[1]]))
    counts = collections.Counter(label for _, label in listed)
    most = max(counts.values(), default=0)
    # Every class of the official set has the same number of images, so a difference
    # means that unpacking stopped half-way.
    for wnid, label in labels.items():
        if counts[label] != most or not most:
            raise DataError(
                f"{files.origin} is incomplete, class {wnid} has {counts[label]} "
                f"training images and others have {most}; unpack or fetch it again"
            )
    return listed


def _list_validation(files: _Files, labels: dict[str, int]) -> list[tuple[str, int]]:
    """Returns the path and the label of every validation image."""
    listed = []
    for line in files.text("val/val_annotations.txt").splitlines():
        name, wnid, *_ = line.split("\t")
        listed.append((f"val/images/{name}", labels[wnid]))
    missing = {path for path, _ in listed} - set(files.paths)
    if missing or not listed:
        raise DataError(
            f"{files.origin} is incomplete, it lacks {len(missing)} of the "
            f"{len(listed)} validation images; unpack or fetch it again"
        )
    return listed


def _examples(
    files: _Files, listed: list[tuple[str, int]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, label in listed:
        name = path.rsplit("/", 1)[1].removesuffix(".JPEG")
        image = _three_channels(files.bytes(path), path)
        yield name, {"id": name, "image": image, "label": label}


def _three_channels(encoded: bytes, path: str) -> bytes:
    """Returns a colour JPEG as it is, and any other image as PNG with three channels.

    About 2 in 100 of the official files are grey. TFDS keeps the bytes, and a grey JPEG
    read without TensorFlow has one channel.
    """
    try:
        pixels = decode_image(io.BytesIO(encoded), 3, path)
    except DataError as error:
        raise DataError(f"{error}; unpack or fetch {_ARCHIVE} again") from error
    height, width, _ = pixels.shape
    if (width, height) != _SIZE:
        raise DataError(
            f"{path} has {width}x{height} pixels, expected {_SIZE[0]}x{_SIZE[1]}; "
            f"use the official {_ARCHIVE}"
        )
    with Image.open(io.BytesIO(encoded)) as image:
        mode = image.mode
    return encoded if mode == "RGB" else encode_png(pixels)
