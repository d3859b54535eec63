"""Small archives in the layout of the official ones, and small TFDS folders."""

import io
import pathlib
import tarfile
import zipfile
from typing import Any

import ml_collections
import numpy as np
from PIL import Image

from alite_jax.config import default_config
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
    config = default_config().data
    config.update({"name": "digits", "crop_padding": 0, "flip": False})
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

    features = {
        "image": tfds.features.Image(shape=(None, None, examples[0][0].shape[-1])),
        "label": np.int64,
    }
    content = [{"image": image, "label": label} for image, label in examples]
    write_set(folder, name, features, dict.fromkeys(splits, content), version)


def write_set(
    folder: pathlib.Path,
    name: str,
    features: dict[str, Any],
    splits: dict[str, list[dict[str, Any]]],
    version: str = "1.0.0",
    **info: Any,
) -> pathlib.Path:
    """Writes a TFDS folder of any features, without TensorFlow, and returns it.

    Args:
        folder: the data directory.
        name: of the data set, with its variant if any, as in `"birds/small"`.
        features: as for `tfds.features.FeaturesDict`.
        splits: the examples of each, in the order in which they will be read; uint8
            arrays of three axes become PNG files.
        version: of the data set.
        info: more of what `tfds.core.DatasetInfo` takes.
    """
    import tensorflow_datasets as tfds

    class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                **({"disable_shuffling": True} | info),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {
                split: self._generate_examples(examples)
                for split, examples in splits.items()
            }

        def _generate_examples(self, examples: list[dict[str, Any]]) -> Any:
            for i, example in enumerate(examples):
                yield (
                    i,
                    {
                        key: encode_png(value) if np.ndim(value) == 3 else value
                        for key, value in example.items()
                    },
                )

    Small.name, _, variant = name.partition("/")
    if variant:
        Small.BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=variant)]
    builder = Small(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return pathlib.Path(builder.data_path)


def write_images(root: pathlib.Path, files: dict[str, Any]) -> pathlib.Path:
    """Writes the files of a folder of images, and returns it.

    Args:
        root: the folder.
        files: path below it -> its bytes, an image of Pillow or a uint8 array, or the
            grey of one of 8x8 pixels.
    """
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            content = np.full((8, 8, 3), content, np.uint8)
        if isinstance(content, np.ndarray):
            content = Image.fromarray(content)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.save(path)
    return root
