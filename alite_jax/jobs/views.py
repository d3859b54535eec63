"""The job `views`: the training images as any other program can read them."""

import json
import os
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from alite_jax.data.augment import create_augmentation
from alite_jax.data.views import begin_digest, fixed_views, in_order
from alite_jax.errors import ConfigError, DataError
from alite_jax.jax_settings import job
from alite_jax.jobs.command import Command
from alite_jax.paths import user_path
from alite_jax.runs.data import load_data
from alite_jax.runs.folder import write_whole


def run(command: Command) -> None:
    """Writes the views and says where they are."""
    flags = command.flags
    folder = flags.out or command.workdir / "views"
    write_views(command.config(), folder, flags.views)
    print(f"images.npy, labels.npy and views.json are in {folder}")


@job
def write_views(
    config: ConfigDict, folder: str | os.PathLike[str], views: int = 4
) -> Path:
    """Writes fixed views of the training images, for a table of a teacher's logits.

    A run whose `teacher.logits` names the table shows its student these views and no
    others. The first is the image as it is, the others are augmented as the
    configuration says, from keys that do not depend on its seed.

    Args:
        config: from `alite_jax.get_config`; its section `data` is used.
        folder: gets `images.npy`, uint8 `[views, n, height, width, channels]`,
            `labels.npy`, int32 `[n]`, and `views.json`: the `digest` to store with the
            logits, the numbers above, `mean` and `std` of each channel in units of
            255, and `class_names`.
        views: of each image, at least one.

    Returns:
        The folder.

    Raises:
        AliteError: with one sentence, for example if there is no space.

    Example:
        >>> folder = alite_jax.write_views(config, workdir / "views", views=2)
        >>> np.load(folder / "images.npy", mmap_mode="r").shape
        (2, 64, 8, 8, 1)
    """
    if views < 1:
        raise ConfigError(f"views must be at least 1, found {views}")
    data, folder = load_data(config), user_path(folder)
    split, spec = data.train, data.spec
    see = jax.jit(partial(fixed_views, create_augmentation(config.data)))
    digest, labels = begin_digest(split, views, config.data), []
    shape = (views, *split.images.shape)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    description = folder / "views.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # It is the last to be there, so that none belongs to images half written.
        description.unlink(missing_ok=True)
        with (folder / "images.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            begin, start = file.tell(), 0
            for images, names in in_order(split):
                digest.update(images.data)
                labels.append(names)
                index = np.arange(start, start + len(images), dtype=np.int32)
                for view in range(views):
                    seen = see(images, index, np.full_like(index, view))
                    place = view * len(split) + start
                    file.seek(begin + place * images[0].nbytes)
                    file.write(np.asarray(seen).tobytes())
                start += len(images)
        np.save(folder / "labels.npy", np.concatenate(labels))
    except OSError as error:
        raise DataError(
            f"cannot write views to {folder} ({error.strerror}); choose another folder,"
            " or free some space"
        ) from error
    height, width, channels = data.image_shape
    described = {
        "digest": digest.hexdigest(),
        "dataset": spec.name,
        "views": views,
        "n": len(split),
        "height": height,
        "width": width,
        "channels": channels,
        "classes": spec.num_classes,
        "class_names": spec.class_names,
        "mean": spec.mean,
        "std": spec.std,
    }
    write_whole(description, json.dumps(described, indent=2) + "\n")
    return folder
