"""Images of another size, made in one way for all images of a data set."""

import numpy as np
from PIL import Image

# How an image of another size is made; a data set has one of them for all its images.
AREA, BILINEAR = "area", "bilinear"

# Values held as float64 at a time while images are reduced; bounds the memory only.
_BLOCK = 2**22


def decode_least(height: int, width: int, resize: str) -> int:
    """Returns what `decode_image` is asked to leave for `resize_and_crop`."""
    return 2 * max(height, width) if resize == BILINEAR else 0


def resize_and_crop(
    image: np.ndarray, height: int, width: int, resize: str
) -> np.ndarray:
    """Resizes an image until it just covers a size, and cuts out its middle.

    For a square that is the short side resized to it, and the centre cut out.

    Args:
        image: uint8 [old height, old width, channels].
        height: in pixels, smaller or larger than what there is.
        width: likewise.
        resize: `"area"` for `area_average`, or `"bilinear"` for Pillow's antialiased
            triangle filter, which is fast on large images.

    Returns:
        uint8 [height, width, channels].
    """
    old_height, old_width, channels = image.shape
    if (old_height, old_width) == (height, width):
        return image
    if resize != AREA:
        old = Image.fromarray(image[..., 0] if channels == 1 else image)
        return np.asarray(covering(old, height, width)).reshape(height, width, -1)
    # What is seen, in old pixels; the cut comes first, since the rest is not needed.
    scale = min(old_height / height, old_width / width)
    rows, columns = round(scale * height), round(scale * width)
    top, left = (old_height - rows) // 2, (old_width - columns) // 2
    seen = image[None, top : top + rows, left : left + columns]
    return area_average(seen, height, width)[0]


def covering(image: Image.Image, height: int, width: int) -> Image.Image:
    """What `resize_and_crop` does, `"bilinear"`, to an image of Pillow."""
    scale = min(image.height / height, image.width / width)
    rows, columns = scale * height, scale * width
    left, top = (image.width - columns) / 2, (image.height - rows) / 2
    box = (left, top, min(left + columns, image.width), min(top + rows, image.height))
    return image.resize((width, height), Image.Resampling.BILINEAR, box)


def area_average(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes images: a new pixel is the average of the area that it covers.

    Args:
        images: uint8 [n, old height, old width, channels], not empty.
        height: of the new images in pixels; any size, smaller or larger.
        width: of the new images in pixels.

    Returns:
        uint8 [n, height, width, channels], exact averages rounded to the nearest
        integer, halves upwards.
    """
    n, old_height, old_width, channels = images.shape
    if (old_height, old_width) == (height, width):
        return images
    # All numbers are integers below 2**53, so that float64 and its matrix products are
    # exact whatever the order of the sums.
    rows, columns = _overlaps(old_height, height), _overlaps(old_width, width)
    flat = images.reshape(n, old_height, old_width * channels)
    sums = np.zeros((n, height, old_width * channels))
    step = max(1, _BLOCK // (n * old_width * channels))
    for start in range(0, old_height, step):
        block = slice(start, start + step)
        touched = np.flatnonzero(rows[:, block].any(axis=1))
        new = slice(touched[0], touched[-1] + 1)
        sums[:, new] += rows[new, block] @ flat[:, block].astype(np.float64)
    sums = sums.reshape(n, height, old_width, channels)
    sums = np.moveaxis(sums, 2, 3) @ columns.T
    area = rows[0].sum() * columns[0].sum()
    averages = np.floor((2 * sums + area) / (2 * area)).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(averages, 3, 2))


def _overlaps(old: int, new: int) -> np.ndarray:
    """Returns how much of each old pixel is in each new one, integers [new, old].

    Old pixels are `new` units long and new ones `old` units: both fill one line.
    """
    olds, news = np.arange(old) * new, np.arange(new)[:, None] * old
    shared = np.minimum(olds + new, news + old) - np.maximum(olds, news)
    return np.maximum(shared, 0).astype(np.float64) / np.gcd(old, new)
