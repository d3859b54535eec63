"""Augmentation and normalisation of batches, on the device.

Pure functions of static shapes, meant to run inside the jitted train step: batches
travel to the device as uint8, a quarter of the bytes.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from ml_collections import ConfigDict

VIEWS = ("crop", "resized_crop")  # What `data.view` may be.

Constants = tuple[tuple[float, ...], tuple[float, ...]]  # Means and deviations.

# By which networks of other people want their images, of each channel, in units of 255;
# one number is for all channels.
NORMALIZATIONS: dict[str, Constants] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "unit": ((0.0,), (1.0,)),
    "symmetric": ((0.5,), (0.5,)),
}

# Takes a key and images, and the shard and its number as `augment` does.
Augmentation = Callable[..., jax.Array]


def create_augmentation(data_config: ConfigDict) -> Augmentation:
    """The augmentation of a configuration, whose section `data` this is."""
    if data_config.view == "crop":
        padding = data_config.crop_padding
        return partial(augment, crop_padding=padding, flip=data_config.flip)
    return partial(
        resized_crop,
        area=data_config.crop_area,
        aspect=data_config.crop_aspect,
        flip=data_config.flip,
    )


def unchanged(key: jax.Array, images: jax.Array, **_: jax.Array | int) -> jax.Array:
    """No augmentation."""
    return images


def augment(
    key: jax.Array,
    images: jax.Array,
    *,
    crop_padding: int,
    flip: bool,
    shard: jax.Array | int = 0,
    num_shards: int = 1,
) -> jax.Array:
    """Crops and mirrors each image at random.

    Every image is padded with `crop_padding` black pixels on each side and cut back to
    its size at a random place; then one in two is mirrored left to right. An image's
    view depends on its place in the whole batch, not on the cut into shards.

    Args:
        key: the randomness; the same key gives the same crops and flips.
        images: uint8 [batch, height, width, channels].
        crop_padding: pixels of padding, 0 for no cropping.
        flip: whether to mirror.
        shard: which part of the whole batch the images are, counted from 0.
        num_shards: equal parts of the whole batch.

    Returns:
        uint8 [batch, height, width, channels].
    """
    images = _checked(images)
    batch, height, width, _ = images.shape
    whole = batch * num_shards
    crop_key, flip_key = jax.random.split(key)
    rows = jnp.arange(height)[None, :]
    columns = jnp.arange(width)[None, :]
    if flip:
        mirrored = _of_shard(_coins(flip_key, whole), shard, batch)
        columns = jnp.where(mirrored, columns[:, ::-1], columns)
    if crop_padding:
        most = 2 * crop_padding + 1
        offsets = jax.random.randint(crop_key, (whole, 2), 0, most, jnp.int32)
        offsets = _of_shard(offsets, shard, batch)
        rows = rows + offsets[:, :1]
        columns = columns + offsets[:, 1:]
        pad = (crop_padding, crop_padding)
        images = jnp.pad(images, ((0, 0), pad, pad, (0, 0)))
    # One gather for the crop and the flip of the whole batch: on CPU more than twice as
    # fast as a dynamic slice per image.
    return _pixels(images, rows, columns)


class Boxes(NamedTuple):
    """Upright boxes in images, in pixels from the upper left corner; fractions allowed.

    Each is float32 `[batch, 1]`.
    """

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


def resized_crop(
    key: jax.Array,
    images: jax.Array,
    *,
    area: float,
    aspect: float,
    flip: bool,
    shard: jax.Array | int = 0,
    num_shards: int = 1,
) -> jax.Array:
    """Enlarges a random box of each image to its size and mirrors it at random.

    As torchvision's RandomResizedCrop, but for how boxes are drawn that fit; see
    `random_boxes`.

    Args:
        key: the randomness; the same key gives the same boxes and flips.
        images: uint8 [batch, height, width, channels].
        area: see `random_boxes`.
        aspect: see `random_boxes`.
        flip: whether to mirror one in two.
        shard: as for `augment`.
        num_shards: as for `augment`.

    Returns:
        uint8 [batch, height, width, channels], rounded.
    """
    images = _checked(images)
    batch, *sides, _ = images.shape
    whole = batch * num_shards
    box_key, flip_key = jax.random.split(key)
    draws = jax.random.uniform(box_key, (whole, 4), jnp.float32)
    draws = _of_shard(draws, shard, batch)
    rows, columns = sample_points(random_boxes(draws, sides, area, aspect), sides)
    if flip:
        mirrored = _of_shard(_coins(flip_key, whole), shard, batch)
        columns = jnp.where(mirrored, columns[:, ::-1], columns)
    return interpolate(images, rows, columns)


def random_boxes(
    draws: jax.Array, sides: Sequence[int], area: float, aspect: float
) -> Boxes:
    """Turns uniform numbers into boxes that lie in the image.

    The area is uniform in [area, 1] and the logarithm of the aspect ratio in that of
    [1 / aspect, aspect], as far as a box of this area and ratio fits in the image. So
    each draw gives a box; torchvision draws both anew, up to ten times, until it fits.
    In an image that is longer than all these ratios allow, a large box has the ratio
    nearest to them that fits.

    Args:
        draws: float32 [batch, 4], in [0, 1).
        sides: (height, width) of the images.
        area: smallest area, as a fraction of the image's, in (0, 1].
        aspect: largest ratio of width to height, and the other way round; at least 1.
    """
    height, width = sides
    in_area, in_ratio, down, right = jnp.split(draws, 4, axis=1)
    share = area + (1 - area) * in_area
    # Logarithms of ratios; those between the first two fit.
    middle, most = math.log(width / height), math.log(aspect)
    lowest, highest = middle + jnp.log(share), middle - jnp.log(share)
    low, high = (jnp.clip(end, lowest, highest) for end in (-most, most))
    ratio = low + (high - low) * in_ratio
    side = jnp.sqrt(share * (height * width))
    heights = jnp.minimum(side * jnp.exp(-ratio / 2), height)
    widths = jnp.minimum(side * jnp.exp(ratio / 2), width)
    return Boxes(down * (height - heights), right * (width - widths), heights, widths)


def sample_points(boxes: Boxes, sides: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """Where in an image the pixels lie that a box is enlarged to.

    Args:
        boxes: in the image.
        sides: (height, width) of the image and of the result.

    Returns:
        Rows [batch, height] and columns [batch, width] of the centres, float32; those
        of the image's pixels are the whole numbers from 0 to the side less 1.
    """

    def along(start: jax.Array, length: jax.Array, side: int) -> jax.Array:
        centres = jnp.arange(side, dtype=jnp.float32)[None, :] + 0.5
        return jnp.clip(start + centres * (length / side) - 0.5, 0, side - 1)

    return (
        along(boxes.top, boxes.height, sides[0]),
        along(boxes.left, boxes.width, sides[1]),
    )


def interpolate(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Images at points between their pixels, bilinear.

    A box is never larger than the image that it is enlarged to, so there is nothing to
    smooth, and four pixels make a new one: on CPU gathering these is several times as
    fast as `jax.image.scale_and_translate` or products with matrices of weights.

    Args:
        images: uint8 [batch, height, width, channels].
        rows: float32 [batch, h], between the first row and the last.
        columns: float32 [batch, w], between the first column and the last.

    Returns:
        uint8 [batch, h, w, channels], rounded.
    """

    def neighbours(points: jax.Array, side: int) -> tuple[jax.Array, ...]:
        before = jnp.floor(points)
        first = before.astype(jnp.int32)
        return first, jnp.minimum(first + 1, side - 1), points - before

    upper, lower, down = neighbours(rows, images.shape[1])
    left, right, across = neighbours(columns, images.shape[2])
    down, across = down[:, :, None, None], across[:, None, :, None]

    def between(rows: jax.Array) -> jax.Array:
        start, end = (_pixels(images, rows, c) for c in (left, right))
        return (1 - across) * start + across * end

    values = (1 - down) * between(upper) + down * between(lower)
    return jnp.round(values).astype(jnp.uint8)


def _checked(images: jax.Array) -> jax.Array:
    images = jnp.asarray(images)
    chex.assert_rank(images, 4)
    chex.assert_type(images, jnp.uint8)
    return images


def _coins(key: jax.Array, whole: int) -> jax.Array:
    """Whether to mirror each image of the whole batch, bool [whole, 1]."""
    return jax.random.bernoulli(key, jnp.float32(0.5), (whole, 1))


def _of_shard(drawn: jax.Array, shard: jax.Array | int, batch: int) -> jax.Array:
    """The part of a shard, `batch` images, of what is drawn for the whole batch."""
    return jax.lax.dynamic_slice_in_dim(drawn, shard * batch, batch)


def _pixels(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Rows [batch or 1, h] and columns [batch or 1, w] of each image."""
    indices = jnp.arange(len(images))[:, None, None]
    return images[indices, rows[:, :, None], columns[:, None, :]]


def normalize(
    images: jax.Array,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """Scales images to about zero mean and unit deviation.

    Args:
        images: uint8 [..., channels].
        mean: mean of each channel, in units of 255.
        std: standard deviation of each channel, in units of 255.
        dtype: of the result; the arithmetic is float32.

    Returns:
        `(images / 255 - mean) / std` as `dtype` [..., channels].
    """
    channels = (1,) * (images.ndim - 1) + (-1,)
    means = jnp.asarray(mean, jnp.float32).reshape(channels)
    stds = jnp.asarray(std, jnp.float32).reshape(channels)
    return ((images.astype(jnp.float32) / 255 - means) / stds).astype(dtype)
