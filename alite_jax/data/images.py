"""Image files as arrays, and arrays of another size.

Training, evaluation and `alite_jax.predict` all read and reduce images here: what a
network is asked about is made as what it learned from.
"""

import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from alite_jax.data.resize import BILINEAR, covering, decode_least
from alite_jax.errors import DataError, first_line
from alite_jax.paths import user_path

# Pillow asks its formats one after another: those of photographs now come first.
Image.preinit()

# What makes an image upright, by its EXIF orientation. `ImageOps.exif_transpose` would
# write the metadata anew and fail where a camera wrote odd ones.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# How HEIC begins, behind a length.
_HEIC = {b"ftyp" + brand for brand in (b"heic", b"heix", b"hevc", b"hevx", b"mif1")}

# Formats of measurements, whose 16 bits are no brightness from 0 to 65535.
_MEASUREMENTS = ("FITS", "MCIDAS")

# What a PNG calls transparent is in units of its samples; Pillow spreads samples of 2
# and 4 bits over 0 to 255, and keeps the upper 8 of the 16 bits of a colour.
_KEYS = {
    "L;2": lambda grey: 85 * grey,
    "L;4": lambda grey: 17 * grey,
    "RGB;16B": lambda colour: tuple(value >> 8 for value in colour),
}


def read_image(
    path: str | os.PathLike[str], channels: int, least: int = 0
) -> np.ndarray:
    """Reads an image file; see `decode_image`.

    Args:
        path: the file.
        channels: 1 for grey, 3 for red, green and blue.
        least: see `decode_image`.

    Returns:
        uint8 [height, width, channels].

    Raises:
        ConfigError: what is given is no path.
        DataError: the file is missing, a folder or not to be opened, or as for
            `decode_image`.
    """
    path = user_path(path)
    try:
        with open(path, "rb") as file:
            return decode_image(file, channels, str(path), least)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder, not an image file") from error
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({error.strerror})") from error


def decode_image(
    file: IO[bytes], channels: int, place: str, least: int = 0
) -> np.ndarray:
    """Decodes an image file of any format that Pillow knows, and HEIC by pillow-heif.

    The image is turned as its EXIF orientation says. Grey values of more than 8 bits
    are scaled to 0 to 255. What is transparent shows a black background: black is 0,
    which is also what training fills in around an image. Of an animation the first
    image is taken, and colour profiles are not applied.

    Args:
        file: the opened file, or `io.BytesIO` of its content.
        channels: 1 for grey, 3 for red, green and blue.
        place: what errors call the file.
        least: if not 0, a JPEG that is large may come at a half, a quarter or an eighth
            of its size, as long as both sides keep so many pixels: its decoder averages
            in a fraction of the time.

    Returns:
        uint8 [height, width, channels].

    Raises:
        DataError: it is no image, too large, damaged, or does not say how bright its
            values are.
    """
    pixels = np.asarray(_decoded(file, channels, place, least))
    return pixels.reshape(*pixels.shape[:2], channels)


def decode_resized(
    file: IO[bytes], place: str, shape: tuple[int, int, int]
) -> np.ndarray:
    """Decodes an image at a size, in three quarters of the time of both functions.

    Args:
        file: as for `decode_image`, with the errors that follow.
        place: likewise.
        shape: (height, width, channels) of the result.

    Returns:
        uint8 `shape`: what `resize_and_crop` makes, `"bilinear"`, of what
        `decode_image` returns with `decode_least`.
    """
    height, width, channels = shape
    image = _decoded(file, channels, place, decode_least(height, width, BILINEAR))
    return np.asarray(covering(image, height, width)).reshape(shape)


def _decoded(file: IO[bytes], channels: int, place: str, least: int) -> Image.Image:
    """What `decode_image` returns as an array."""
    try:
        with warnings.catch_warnings():
            # Of large images below the limit, and of metadata that nobody reads here.
            warnings.simplefilter("ignore")
            with Image.open(file) as image:
                if least:
                    image.draft(None, (least, least))
                return _eight_bits(image, channels, place)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise DataError(
            f"{place} is too large: images of up to {limit:,} pixels are read"
        ) from error
    except Exception as error:  # Decoders raise whatever damage leads them to.
        reason = first_line(error).rstrip(".")
        if isinstance(error, UnidentifiedImageError):
            if _is_heic(file) and _learns_heic(place):
                return _decoded(file, channels, place, least)
            if not _begins_as_image(file):
                raise DataError(f"{place} is no image of any known format") from error
            reason = "its header makes no sense"
        raise DataError(
            f"{place} is not a readable image: it is damaged or cut short, or of a kind"
            f" that cannot be decoded ({reason})"
        ) from error


@contextmanager
def decoding_threads() -> Iterator[ThreadPoolExecutor]:
    """Threads to decode images in, one on each processor.

    Pillow decodes without holding Python's lock. Warnings are off meanwhile: what each
    image says of them is said for all threads, and the last one would leave it so.
    """
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(os.cpu_count()) as threads,
    ):
        warnings.simplefilter("ignore")
        yield threads


def _begins_as_image(file: IO[bytes]) -> bool:
    """Whether a file that Pillow could not open begins as one of its formats does."""
    file.seek(0)
    start = file.read(16).ljust(16)  # Not all of Pillow's tests look at the length.
    return any(accept and accept(start) for _, accept in Image.OPEN.values())


def _is_heic(file: IO[bytes]) -> bool:
    """Whether a file is a photograph as many telephones store it."""
    file.seek(4)
    return file.read(8) in _HEIC


def _learns_heic(place: str) -> bool:
    """Has Pillow decode HEIC by pillow-heif; whether it did not before.

    Raises:
        DataError: it is not installed.
    """
    if "HEIF" in Image.OPEN:
        return False
    try:
        import pillow_heif
    except ImportError as error:
        raise DataError(
            f"{place} is HEIC, which Pillow reads once pillow-heif is there: run pip"
            " install pillow-heif, or convert it"
        ) from error
    pillow_heif.register_heif_opener()
    return True


def _eight_bits(file: ImageFile.ImageFile, channels: int, place: str) -> Image.Image:
    """Returns a decoded image, upright and opaque, as 'L' or 'RGB'."""
    if not all(file.size):
        raise ValueError("it has no pixels")
    _widen_key(file)
    file.load()
    turn = _TURNS.get(file.getexif().get(ExifTags.Base.Orientation, 1))
    image = file if turn is None else file.transpose(turn)
    if image.mode.startswith("I") or image.mode == "F":
        image = _scaled(image, file, place)
    # All but grey goes through RGB: Pillow knows no shorter way, or one that rounds
    # differently.
    opaque = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.has_transparency_data:
        shown = image.convert("LA" if opaque == "L" else "RGBA")
        image = Image.new(opaque, shown.size)
        image.paste(shown.convert(opaque), mask=shown.getchannel("A"))
    for mode in (opaque, "L" if channels == 1 else "RGB"):
        if image.mode != mode:  # Pillow would copy the image.
            image = image.convert(mode)
    return image


def _widen_key(file: ImageFile.ImageFile) -> None:
    """Brings the value that a PNG calls transparent into the units of its pixels."""
    if file.format == "PNG" and "transparency" in file.info and file.tile:
        widen = _KEYS.get(str(file.tile[0].args))
        if widen is not None:
            file.info["transparency"] = widen(file.info["transparency"])


def _scaled(image: Image.Image, file: ImageFile.ImageFile, place: str) -> Image.Image:
    """Returns grey of more than 8 bits as 'L', or 'LA' if a value is transparent."""
    white, reverse = 2**16 - 1, False
    # Pillow makes 'I' of 16 bits in a PPM, of signed and of 32 bits elsewhere.
    known = image.mode.startswith("I;16") and file.format not in _MEASUREMENTS
    if not known and (image.mode, file.format) != ("I", "PPM"):
        raise DataError(
            f"{place} does not say which of its numbers is white: grey is read in 1 to"
            " 16 bits, not as signed, long or floating-point numbers"
        )
    if isinstance(file, TiffImagePlugin.TiffImageFile):
        white = 2 ** file.tag_v2[TiffImagePlugin.BITSPERSAMPLE][0] - 1
        # Pillow minds this only where there are 8 bits or fewer.
        reverse = file.tag_v2[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] == 0
    values = np.asarray(image).astype(np.uint16)
    levels = (2 * 255 * np.arange(white + 1) + white) // (2 * white)
    levels = levels.astype(np.uint8)
    grey = Image.fromarray((levels[::-1] if reverse else levels)[values])
    if "transparency" in image.info:
        seen = np.where(values == image.info["transparency"], 0, 255)
        grey.putalpha(Image.fromarray(seen.astype(np.uint8)))
    return grey
