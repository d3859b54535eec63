"""TFDS builder of a folder of images; the files are stored byte for byte."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from alite_jax.data.folder import Inspected
from alite_jax.data.folder_layout import ImageFile


class ImageFolder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """One folder's images; a subclass made by `builder_of` says which."""

    VERSION = tfds.core.Version("1.0.0")
    root: Path
    files: list[ImageFile]
    splits: list[str]
    size: tuple[int, int]

    def _info(self) -> tfds.core.DatasetInfo:
        height, width = (side or None for side in self.size)
        labels = sorted({file.label for file in self.files})
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"The images of the folder {self.root.name}.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(height, width, 3)),
                    "label": tfds.features.ClassLabel(names=labels),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        return {split: self._generate_examples(split) for split in set(self.splits)}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for file, own in zip(self.files, self.splits, strict=True):
            if own == split:
                content = (self.root / file.path).read_bytes()
                example = {"id": file.path, "image": content, "label": file.label}
                yield file.path, example


def builder_of(
    name: str,
    root: Path,
    files: list[ImageFile],
    inspected: list[Inspected],
    splits: list[str],
) -> type[ImageFolder]:
    """Returns the builder of one folder.

    Args:
        name: of the prepared data set.
        root: the folder.
        files: its images.
        inspected: what is known about each.
        splits: TFDS's name of each one's split.
    """
    sizes = {found.size for found in inspected}
    content = {
        "name": name,
        "root": root,
        "files": files,
        "splits": splits,
        # 0 where images differ.
        "size": sizes.pop() if len(sizes) == 1 else (0, 0),
        "__module__": __name__,
    }
    return type("ImageFolderOf", (ImageFolder,), content, skip_registration=True)
