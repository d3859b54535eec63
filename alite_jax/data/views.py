"""Fixed views of the training images: the same in every run, and for other programs."""

import hashlib
import json
from collections.abc import Callable, Generator

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alite_jax.data.augment import Augmentation
from alite_jax.data.pipeline import eval_batches
from alite_jax.data.sources import Split

Batch = dict[str, jax.Array]

_BATCH = 256  # Images that are read, or looked at, at a time.
_FIELDS = {  # Of the configuration's section `data`, by `data.view`.
    "crop": ("view", "crop_padding", "flip"),
    "resized_crop": ("view", "crop_area", "crop_aspect", "flip"),
}


def fixed_views(
    augment: Augmentation, images: jax.Array, index: jax.Array, view: jax.Array
) -> jax.Array:
    """Views that depend on the image's place in the split and the view's number alone.

    Args:
        augment: see `alite_jax.data.augment.create_augmentation`.
        images: uint8 `[batch, height, width, channels]`.
        index: of each image in the training split, int32 `[batch]`.
        view: its number, int32 `[batch]`; 0 is the image as it is.

    Returns:
        uint8 `[batch, height, width, channels]`.
    """
    # Of no seed, and of one kind whatever JAX's default is.
    fixed = jax.random.key(0, impl="threefry2x32")

    def one(image: jax.Array, index: jax.Array, view: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(fixed, view), index)
        return jnp.where(view == 0, image, augment(key, image[None])[0])

    return jax.vmap(one)(images, index, view)


def make_view_step(augment: Augmentation) -> Callable[[Batch], Batch]:
    """Builds the step that gives a batch's images as its `index` and `view` say.

    It is a program of its own, so that nothing around it changes how it rounds: the
    student sees what another program was given, byte for byte.
    """

    def view_step(batch: Batch) -> Batch:
        images = fixed_views(augment, batch["image"], batch["index"], batch["view"])
        return {**batch, "image": images}

    return view_step


def in_order(split: Split) -> Generator[tuple[np.ndarray, np.ndarray]]:
    """Yields all images with their labels, in the split's order, in parts."""
    for batch in eval_batches(split, _BATCH, num_shards=1):
        count = int(batch["weight"].sum())
        yield batch["image"][0, :count], batch["label"][0, :count]


def begin_digest(split: Split, views: int, data_config: ConfigDict) -> "hashlib._Hash":
    """The digest of a split's fixed views, into which its images are still to come.

    Args:
        split: the examples.
        views: number of views of each.
        data_config: the configuration's section `data`; its augmentation counts where
            there is more than one view.
    """
    names = _FIELDS[data_config.view] if views > 1 else ()
    settings = {name: data_config[name] for name in names}
    described = {"shape": split.images.shape, "views": views, **settings}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode())


def views_digest(split: Split, views: int, data_config: ConfigDict) -> str:
    """The whole digest, for which all images are read; see `begin_digest`."""
    digest = begin_digest(split, views, data_config)
    for images, _ in in_order(split):
        digest.update(images.data)
    return digest.hexdigest()
