"""Augmentation against plain loops and Pillow, normalisation against known numbers."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from archives import data_config
from compiling import full_jit
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from alite_jax.config import get_config
from alite_jax.data.augment import (
    Boxes,
    augment,
    create_augmentation,
    interpolate,
    normalize,
    random_boxes,
    resized_crop,
    sample_points,
)
from alite_jax.data.sources import load_split
from alite_jax.data.specs import DATASETS

quick = jax.jit(augment, static_argnames=("crop_padding", "flip"))
SHAPES = [(7, 8, 8, 1), (5, 6, 9, 3), (1, 4, 4, 3)]


def random_images(shape: tuple[int, ...]) -> np.ndarray:
    # No black pixel, so that padding can be told from the image.
    return np.random.default_rng(0).integers(1, 256, shape, np.uint8)


def crops(image: np.ndarray, padding: int, flip: bool) -> dict[bytes, tuple]:
    """All the results that an image may have, made by a loop over every pixel."""
    height, width, channels = image.shape
    results = {}
    for top in range(-padding, padding + 1):
        for left in range(-padding, padding + 1):
            for mirrored in (False, True) if flip else (False,):
                crop = np.zeros_like(image)
                for row, column in np.ndindex(height, width):
                    y, x = row + top, column + left
                    if 0 <= y < height and 0 <= x < width:
                        target = width - 1 - column if mirrored else column
                        for channel in range(channels):
                            crop[row, target, channel] = image[y, x, channel]
                results[crop.tobytes()] = (top, left, mirrored)
    return results


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("padding", "flip"), [(2, True), (1, False), (0, True)])
def test_every_result_is_a_crop_of_its_own_image(
    shape: tuple[int, ...], padding: int, flip: bool
) -> None:
    images = random_images(shape)
    possible = [crops(image, padding, flip) for image in images]
    for seed in range(5):
        key = jax.random.key(seed)
        result = quick(key, images, crop_padding=padding, flip=flip)
        assert result.shape == shape and result.dtype == jnp.uint8
        for image, allowed in zip(np.asarray(result), possible, strict=True):
            assert image.tobytes() in allowed


def test_every_crop_and_flip_is_about_equally_frequent() -> None:
    image = random_images((4, 4, 1))
    batch = np.broadcast_to(image, (1800, 4, 4, 1))
    result = quick(jax.random.key(0), batch, crop_padding=1, flip=True)
    possible = crops(image, 1, True)
    chosen = [possible[crop.tobytes()] for crop in np.asarray(result)]
    counts = [chosen.count(case) for case in possible.values()]
    assert len(counts) == 18
    # 100 are expected of each; the deviation of a binomial count is 9.7.
    assert min(counts) > 55 and max(counts) < 145


def test_without_crop_and_flip_nothing_changes() -> None:
    images = random_images((3, 8, 8, 1))
    result = quick(jax.random.key(0), images, crop_padding=0, flip=False)
    np.testing.assert_array_equal(result, images)


def test_the_key_decides_and_jit_does_not() -> None:
    images = jnp.asarray(random_images((16, 8, 8, 3)))

    def apply(key: jax.Array) -> jax.Array:
        return augment(key, images, crop_padding=2, flip=True)

    first, again = apply(jax.random.key(1)), full_jit(apply)(jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert (first != apply(jax.random.key(2))).any()


@jax.jit
def enlarge(images: jax.Array, boxes: Boxes) -> jax.Array:
    return interpolate(images, *sample_points(boxes, images.shape[1:3]))


def boxes_of(rows: list[list[float]]) -> Boxes:
    """From one row of top, left, height and width for each image."""
    return Boxes(*np.split(np.array(rows, np.float32), 4, axis=1))


@pytest.mark.parametrize("shape", [(3, 8, 8, 1), (3, 6, 9, 3)])
def test_a_known_box_is_enlarged_as_pillow_does_it(shape: tuple[int, ...]) -> None:
    images = random_images(shape)
    height, width = shape[1:3]
    # At the upper left corner, at the lower right one, and between pixels.
    rows = [[0, 0, 4, 5], [height - 3, width - 2.5, 3, 2.5], [1.25, 2.5, 3.3, 4.7]]
    found = np.asarray(enlarge(images, boxes_of(rows)))
    assert found.dtype == np.uint8 and found.shape == shape
    for image, result, (top, left, tall, wide) in zip(images, found, rows, strict=True):
        for channel in range(shape[3]):
            box = (left, top, left + wide, top + tall)
            wanted = Image.fromarray(image[..., channel]).resize(
                (width, height), Image.Resampling.BILINEAR, box=box
            )
            # Pillow rounds twice, after the columns and after the rows.
            difference = result[..., channel].astype(int) - np.asarray(wanted)
            assert np.abs(difference).max() <= 1


def test_values_between_pixels_are_rounded_to_the_nearest() -> None:
    image = np.array([[0, 10], [100, 250]], np.uint8).reshape(1, 2, 2, 1)
    points = np.array([[0, 0.25, 1]], np.float32)
    found = jax.jit(interpolate)(image, points, points)[0, :, :, 0]
    # In the middle, 0.75 and 0.25 of 2.5 and 137.5.
    np.testing.assert_array_equal(found, [[0, 2, 10], [25, 36, 70], [100, 138, 250]])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("aspect", [1.0, 2.0])
def test_the_whole_box_is_the_image(shape: tuple[int, ...], aspect: float) -> None:
    images = random_images(shape)
    run = jax.jit(partial(resized_crop, area=1.0, aspect=aspect, flip=False))
    np.testing.assert_array_equal(run(jax.random.key(0), images), images)


def test_a_resized_crop_is_mirrored_by_a_coin() -> None:
    image = random_images((1, 8, 8, 3))
    batch = np.broadcast_to(image, (200, 8, 8, 3))
    run = jax.jit(partial(resized_crop, area=1.0, aspect=1.0, flip=True))
    found = np.asarray(run(jax.random.key(0), batch))
    mirrored = (found == image[:, :, ::-1]).all(axis=(1, 2, 3))
    assert ((found == image).all(axis=(1, 2, 3)) ^ mirrored).all()
    assert 60 < mirrored.sum() < 140


@settings(deadline=None)
@given(
    sides=st.sampled_from([(8, 8), (32, 32), (20, 30), (90, 10)]),
    area=st.sampled_from([1.0, 0.9, 0.25, 0.01]),
    aspect=st.sampled_from([1.0, 4 / 3, 3.0]),
    seed=st.integers(0, 2**31),
)
def test_boxes_lie_in_the_image_and_have_area_and_ratio_as_asked(
    sides: tuple[int, int], area: float, aspect: float, seed: int
) -> None:
    draws = np.random.default_rng(seed).random((50, 4), np.float32)
    draws[0], draws[1] = 0, 1 - 2**-24  # the ends of what can be drawn
    boxes = random_boxes(jnp.asarray(draws), sides, area, aspect)
    top, left, tall, wide = (np.asarray(part, np.float64)[:, 0] for part in boxes)
    height, width = sides
    assert all(part.dtype == jnp.float32 and part.shape == (50, 1) for part in boxes)
    assert (np.minimum(top, left) >= 0).all() and (np.minimum(tall, wide) > 0).all()
    assert (top + tall <= height * (1 + 1e-6)).all()
    assert (left + wide <= width * (1 + 1e-6)).all()
    # The area is uniform, whatever the ratio.
    share = tall * wide / (height * width)
    np.testing.assert_allclose(share, area + (1 - area) * draws[:, 0], rtol=1e-5)
    # Ratios are in their range unless no box of such an area would fit.
    ratio = wide / tall
    nearest = np.clip(ratio, 1 / aspect, aspect)
    touches = np.isclose(tall, height) | np.isclose(wide, width)
    assert (np.isclose(ratio, nearest, rtol=1e-5) | touches).all()


def test_small_boxes_have_all_ratios_and_places() -> None:
    """What always fits is uniform: the logarithm of the ratio, and where it lies."""
    draws = jax.random.uniform(jax.random.key(0), (4000, 4), jnp.float32)
    boxes = random_boxes(draws, (32, 32), 0.25, 1.0)
    wider = random_boxes(draws.at[:, 0].set(0), (32, 32), 0.25, 4.0)
    ratios = np.log2(wider.width / wider.height)
    free = [boxes.top / (32 - boxes.height), boxes.left / (32 - boxes.width)]
    for values, low, high in ((ratios, -2, 2), *((np.asarray(x), 0, 1) for x in free)):
        counts, _ = np.histogram(values, 8, (low, high))
        assert counts.sum() == 4000 and (np.abs(counts - 500) < 120).all()


@pytest.mark.parametrize("view", ["crop", "resized_crop"])
def test_views_do_not_depend_on_the_number_of_devices(view: str) -> None:
    images = random_images((6, 8, 8, 3))
    config = get_config("cifar10", {"data.view": view})
    run = jax.jit(create_augmentation(config.data), static_argnames="num_shards")
    key = jax.random.key(3)
    whole = np.asarray(run(key, images))
    assert len({image.tobytes() for image in whole}) == 6
    parts = [
        run(key, part, shard=shard, num_shards=3)
        for shard, part in enumerate(np.split(images, 3))
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_configuration_says_what_training_sees() -> None:
    def described(changes: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        made: Any = create_augmentation(get_config("cifar10", changes).data)
        return made.func, made.keywords

    assert described({}) == (augment, {"crop_padding": 4, "flip": True})
    changes = {"data.view": "resized_crop", "data.crop_area": 0.5, "data.flip": False}
    wanted = {"area": 0.5, "aspect": 4 / 3, "flip": False}
    assert described(changes) == (resized_crop, wanted)


def test_digits_are_cropped_but_not_mirrored() -> None:
    images = load_split(data_config(), "train").images[:8]
    flip = get_config("digits").data.flip
    for seed in range(4):
        key = jax.random.key(seed)
        result = quick(key, images, crop_padding=1, flip=flip)
        for image, crop in zip(images, np.asarray(result), strict=True):
            assert crop.tobytes() in crops(image, 1, flip=False)


def test_normalize_hand_made_numbers() -> None:
    images = np.array([[[[0, 51]], [[255, 102]]]], np.uint8)
    result = normalize(images, mean=(0.5, 0.2), std=(0.25, 0.1))
    assert result.shape == (1, 2, 1, 2) and result.dtype == jnp.float32
    expected = np.array([[[[-2, 0]], [[2, 2]]]])
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)
    half = normalize(images, mean=(0.5, 0.2), std=(0.25, 0.1), dtype=jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, rtol=0, atol=1e-6)


def test_normalized_training_digits_have_zero_mean_and_unit_deviation() -> None:
    spec = DATASETS["digits"]
    pixels = normalize(load_split(data_config(), "train").images, spec.mean, spec.std)
    assert abs(float(pixels.mean())) < 1e-3
    assert abs(float(pixels.std()) - 1) < 1e-3
