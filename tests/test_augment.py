"""Augmentation against plain loops, normalisation against hand-made numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from archives import data_config
from compiling import full_jit

from alite_jax.config import get_config
from alite_jax.data.augment import augment, normalize
from alite_jax.data.sources import dataset_spec, load_split

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
    spec = dataset_spec("digits")
    pixels = normalize(load_split(data_config(), "train").images, spec.mean, spec.std)
    assert abs(float(pixels.mean())) < 1e-3
    assert abs(float(pixels.std()) - 1) < 1e-3
