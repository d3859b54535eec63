"""Augmentation and normalisation of batches, on the device.

Pure functions of static shapes, meant to run inside the jitted train step: batches
travel to the device as uint8, a quarter of the bytes.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


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
    images = jnp.asarray(images)
    chex.assert_rank(images, 4)
    chex.assert_type(images, jnp.uint8)
    batch, height, width, _ = images.shape
    whole = batch * num_shards
    crop_key, flip_key = jax.random.split(key)

    def of_shard(drawn: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(drawn, shard * batch, batch)

    rows = jnp.arange(height)[None, :]
    columns = jnp.arange(width)[None, :]
    if flip:
        half = jnp.float32(0.5)
        mirrored = of_shard(jax.random.bernoulli(flip_key, half, (whole, 1)))
        columns = jnp.where(mirrored, columns[:, ::-1], columns)
    if crop_padding:
        most = 2 * crop_padding + 1
        offsets = jax.random.randint(crop_key, (whole, 2), 0, most, jnp.int32)
        offsets = of_shard(offsets)
        rows = rows + offsets[:, :1]
        columns = columns + offsets[:, 1:]
        pad = (crop_padding, crop_padding)
        images = jnp.pad(images, ((0, 0), pad, pad, (0, 0)))
    # One gather for the crop and the flip of the whole batch: on CPU more than twice as
    # fast as a dynamic slice per image.
    indices = jnp.arange(batch)[:, None, None]
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
