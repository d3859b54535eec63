"""How images lie in a folder, one folder for each class, with or without splits.

FOLDER/CLASS/image.jpg
FOLDER/train/CLASS/image.jpg, FOLDER/val/CLASS/image.jpg
"""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from alite_jax.errors import DataError

# What the folder of a split may be called, and TFDS's name for it.
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
# Formats by which Pillow names files that it cannot decode: measurements and films.
_NO_IMAGES = {"BUFR", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
# Photographs that Pillow alone cannot decode, not to be left out unseen.
_OF_PHONES = {".heic", ".heif"}


@dataclass(frozen=True)
class ImageFile:
    """An image of a folder.

    Attributes:
        path: below the folder, with slashes.
        split: TFDS's name of its split, `""` where the folder has none.
        label: its class.
    """

    path: str
    split: str
    label: str


def list_images(root: Path) -> list[ImageFile]:
    """Finds the images of a folder, sorted by path.

    A class's images may lie deeper in its folder. What begins with a dot, and what
    Pillow knows no format for, is passed over.

    Raises:
        DataError: there is no such folder, it cannot be read, its layout is another, or
            a class is empty, alone, or in one split only.
    """
    try:
        if not root.is_dir():
            found = "is a file, not a folder" if root.exists() else "does not exist"
            raise DataError(f"data.folder is {root}, which {found}")
        splits = _splits(root)
        places = {name: root / name for name in splits} or {"": root}
        classes = {name: _folders(place) for name, place in places.items()}
        files = [
            ImageFile(path.relative_to(root).as_posix(), splits.get(name, ""), label)
            for name, place in places.items()
            for label in classes[name]
            for path in _images_of_class(place / label)
        ]
    except OSError as error:
        raise DataError(
            f"{error.filename or root} cannot be read ({error.strerror}), but it is in"
            " data.folder"
        ) from error
    _check_classes(root, classes)
    _check_names(root, files)
    if len(places) == 1:  # The only split is cut in two.
        files = [ImageFile(file.path, "", file.label) for file in files]
    return sorted(files, key=lambda file: file.path)


def _splits(root: Path) -> dict[str, str]:
    """TFDS's name of the split that each folder is, empty where they are classes.

    Raises:
        DataError: they may be either, or are no complete set of splits.
    """
    below = _folders(root)
    splits = {name: _SPLITS[name.lower()] for name in below if name.lower() in _SPLITS}
    others = [name for name in below if name not in splits]
    train = [name for name, split in splits.items() if split == "train"]
    # `train` may be a class, too: then there are images in it, not classes.
    of_class = [name for name in train if find_images(root / name, deep=False)]
    if others and (of_class or not train):
        return {}
    if splits and (of_class or not train):
        found = f"{of_class[0]} with images" if of_class else "no folder train"
        raise DataError(
            f"{root} has the folders {', '.join(splits)}, which are called like splits,"
            f" but {found}; put the images of each class into a folder of its own, as"
            " in train/CLASS/image.jpg"
        )
    for split, count in Counter(splits.values()).items():
        if count > 1:
            names = [name for name in splits if splits[name] == split]
            raise DataError(
                f"{root} has {count} folders for the split {split!r}:"
                f" {', '.join(names)}; leave one of them there"
            )
    for name in others:
        if splits and find_images(root / name):
            raise DataError(
                f"{root} has the folders {', '.join(splits)}, which are splits, but"
                f" {name} beside them has images, too; move it into a split, or out of"
                " that folder"
            )
    return splits


def _folders(place: Path) -> list[str]:
    return sorted(
        entry.name
        for entry in os.scandir(place)
        if entry.is_dir() and not _is_hidden(entry.name)
    )


def _is_hidden(name: str) -> bool:
    """Whether systems made it for themselves."""
    return name.startswith((".", "__MACOSX", "@eaDir"))


def _images_of_class(place: Path) -> list[Path]:
    paths = find_images(place)
    if not paths:
        raise DataError(
            f"{place} holds no image, but each folder in {place.parent} is a class;"
            " remove it or put images into it"
        )
    return paths


def find_images(place: Path, deep: bool = True) -> list[Path]:
    """The files in a folder that are images by their names.

    Args:
        place: the folder.
        deep: whether also those in its folders, and what links lead to.

    Raises:
        OSError: a folder cannot be read.
    """
    extensions = _OF_PHONES | {
        extension
        for extension, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in _NO_IMAGES
    }
    found, seen = [], set()
    walk = os.walk(place, onerror=_raise, followlinks=True)
    for parent, folders, names in walk:
        real = os.path.realpath(parent)
        # A link may lead to what has been seen, or back up for ever.
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if deep and not _is_hidden(name)]
        found += [
            Path(parent, name)
            for name in names
            if not _is_hidden(name) and os.path.splitext(name)[1].lower() in extensions
        ]
    return found


def _raise(error: OSError) -> None:
    raise error


def _check_classes(root: Path, classes: dict[str, list[str]]) -> None:
    every = {label for labels in classes.values() for label in labels}
    if len(every) < 2:
        found = f"only the class {min(every)!r}" if every else "no folder of a class"
        raise DataError(
            f"{root} holds {found}, but at least two are told apart: put the images of"
            " each class into a folder of its own, as in FOLDER/CLASS/image.jpg"
        )
    for split, labels in classes.items():
        if not labels:
            raise DataError(
                f"{root / split} holds no folder of a class, but is a split by its"
                " name; put its images into folders of classes, or move it elsewhere"
            )
        missing = sorted(every - set(labels))
        if missing:
            raise DataError(
                f"{root / split} has no images of the class {missing[0]!r}, which"
                f" another split has ({len(missing)} such class(es)); every split must"
                " have every class"
            )


def _check_names(root: Path, files: list[ImageFile]) -> None:
    """Raises a DataError for names that TFDS could not give back."""
    for file in files:
        label = file.label
        if "\n" in label or label != label.strip():
            raise DataError(
                f"the class {label!r} of {root} begins or ends with a space, or has a"
                " line break in its name; rename its folder"
            )
        try:
            file.path.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"the name of {file.path!r} in {root} is not UTF-8; rename it"
            ) from error
