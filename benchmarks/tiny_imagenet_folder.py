"""Writes classes of the prepared Tiny-ImageNet as a folder of photographs.

    python -m benchmarks.tiny_imagenet_folder FOLDER [--classes=20] [--data_dir=...]

FOLDER/train/CLASS and FOLDER/val/CLASS get the JPEG files as they are stored. Classes
are spread evenly over the 200, so that they are the same ones each time.
"""

import argparse
from pathlib import Path

import tensorflow_datasets as tfds

from alite_jax.config import get_config
from alite_jax.data.prepare import find_or_prepare
from alite_jax.data.sources import class_names


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--data_dir", default="")
    options = parser.parse_args()
    data = get_config("tiny_imagenet", {"data.data_dir": options.data_dir}).data
    names = class_names(data)
    chosen = {names[i * 200 // options.classes] for i in range(options.classes)}
    builder = tfds.builder_from_directory(find_or_prepare(data))
    for split, called in (("train", "train"), ("validation", "val")):
        decoders = {"image": tfds.decode.SkipDecoding()}
        for example in builder.as_data_source(split, decoders=decoders):
            name = names[example["label"]]
            if name in chosen:
                place = options.folder / called / name
                place.mkdir(parents=True, exist_ok=True)
                file = place / f"{example['id'].decode()}.JPEG"
                file.write_bytes(example["image"])


if __name__ == "__main__":
    main()
