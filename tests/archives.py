"""Small archives in the layout of the official ones, and small TFDS folders."""

import io
import pathlib
import tarfile
import zipfile
from typing import Any

import ml_collections
import numpy as np
from PIL import Image

from alite_jax.data.builders.encoding import encode_png

CIFAR_FILES = {
    "cifar10": {
        "folder": "cifar-10-batches-bin",
        "train": [f"data_batch_{i}.bin" for i in range(1, 6)],
        "test": ["test_batch.bin"],
    },
    "cifar100": {
        "folder": "cifar-100-binary",
        "train": ["train.bin"],
        "test": ["test.bin"],
    },
}


def cifar_archive(
    name: str, path: pathlib.Path, images_per_file: int = 4, cut: int = 0
) -> dict[str, dict[bytes, tuple[int, np.ndarray]]]:
    """Writes a CIFAR archive of random images.

    Args:
        name: 'cifar10' or 'cifar100'.
        path: the .tar.gz to write.
        images_per_file: how many records each file gets.
        cut: how many bytes to leave out at the end of each file.

    Returns:
        For each split, the id that TFDS gives to each example -> its label and image.
    """
    random = np.random.default_rng(0)
    layout = CIFAR_FILES[name]
    expected: dict[str, dict[bytes, tuple[int, np.ndarray]]] = {"train": {}, "test": {}}
    with tarfile.open(path, "w:gz") as archive:

        def add(file: str, data: bytes) -> None:
            entry = tarfile.TarInfo(f"{layout['folder']}/{file}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))

        if name == "cifar10":
            add("batches.meta.txt", _names("class", 10))
        else:
            add("coarse_label_names.txt", _names("coarse", 20))
            add("fine_label_names.txt", _names("fine", 100))
        for split in ("train", "test"):
            for file in layout[split]:
                records = b""
                for _ in range(images_per_file):
                    image = random.integers(0, 256, (32, 32, 3), np.uint8)
                    if name == "cifar10":
                        label = int(random.integers(10))
                        records += bytes([label])
                    else:
                        label = int(random.integers(100))
                        records += bytes([int(random.integers(20)), label])
                    records += image.transpose(2, 0, 1).tobytes()
                    key = f"{split}_{len(expected[split]):05d}".encode()
                    expected[split][key] = (label, image)
                add(file, records[: len(records) - cut])
    return expected


def tiny_imagenet_files(
    train_per_class: int = 2, num_classes: int = 200
) -> dict[str, bytes]:
    """Makes the files of a small Tiny-ImageNet: path below the top folder -> bytes.

    Image 0 of each class is grey, as some of the official ones are, the others colour.
    The wnids are listed in descending order, so that labels must come from sorting.
    """
    random = np.random.default_rng(0)
    wnids = [f"n{10_000_000 + 7 * i}" for i in range(num_classes)]
    files = {"wnids.txt": "\n".join(reversed(wnids)).encode() + b"\n"}
    annotations = []
    for label, wnid in enumerate(wnids):
        for i in range(train_per_class):
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = _jpeg(random, grey=i == 0)
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b""
        name = f"val_{num_classes - label}.JPEG"
        files[f"val/images/{name}"] = _jpeg(random, grey=False)
        annotations.append(f"{name}\t{wnid}\t0\t0\t63\t63")
    files["val/val_annotations.txt"] = "\n".join(annotations).encode() + b"\n"
    files["test/images/test_0.JPEG"] = _jpeg(random, grey=False)
    return files


def write_zip(files: dict[str, bytes], folder: pathlib.Path) -> None:
    """Writes `tiny-imagenet-200.zip` into a folder."""
    with zipfile.ZipFile(folder / "tiny-imagenet-200.zip", "w") as archive:
        for path, data in files.items():
            archive.writestr(f"tiny-imagenet-200/{path}", data)


def write_folder(files: dict[str, bytes], folder: pathlib.Path) -> None:
    """Writes `tiny-imagenet-200/` into a folder."""
    for path, data in files.items():
        target = folder / "tiny-imagenet-200" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def _jpeg(random: np.random.Generator, grey: bool) -> bytes:
    shape = (64, 64) if grey else (64, 64, 3)
    buffer = io.BytesIO()
    pixels = random.integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).save(buffer, format="JPEG")
    return buffer.getvalue()


def _names(prefix: str, count: int) -> bytes:
    return "".join(f"{prefix}_{i}\n" for i in range(count)).encode()


def data_config(**fields: Any) -> ml_collections.ConfigDict:
    """Returns the `data` section of a configuration, `digits` unless told otherwise."""
    config = ml_collections.ConfigDict(
        {
            "name": "digits",
            "data_dir": "",
            "manual_dir": "",
            "train_split": "",
            "eval_split": "",
            "batch_size": 32,
            "eval_batch_size": 32,
            "image_size": 0,
            "crop_padding": 0,
            "flip": False,
        }
    ).lock()
    config.update(fields)
    return config


def write_tfds(
    folder: pathlib.Path,
    name: str,
    version: str,
    examples: list[tuple[np.ndarray, int]],
    splits: tuple[str, ...] = ("train", "test"),
) -> None:
    """Writes a TFDS folder in which every split holds the given images and labels.

    Args:
        folder: the data directory.
        name: of the data set, whatever its real content looks like.
        version: of the data set.
        examples: uint8 images and labels, in the order in which they will be read.
        splits: names of the splits.
    """
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, examples[0][0].shape[-1])),
            "label": np.int64,
        }
    )

    class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self, features=features, disable_shuffling=True
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples() for split in splits}

        def _generate_examples(self) -> Any:
            for i, (image, label) in enumerate(examples):
                yield i, {"image": encode_png(image), "label": label}

    Small.name = name
    builder = Small(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
