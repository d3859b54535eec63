"""Image files of every kind as arrays, and arrays of another size."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, ImageOps

from alite_jax.data import resize
from alite_jax.data.images import decode_image, decode_resized, read_image
from alite_jax.data.resize import BILINEAR, area_average, decode_least, resize_and_crop
from alite_jax.deploy.artefact import Artefact
from alite_jax.errors import DataError

# Multiples of 51, so that 4 and 16 bits hold the same brightness exactly.
INK = np.array([[0, 51, 102], [153, 204, 255]], np.uint8)
COLOUR = np.stack([INK, INK[::-1], INK[:, ::-1]], axis=-1)
# The weights of red, green and blue in grey are those of ITU-R 601.
GREY = np.floor(COLOUR @ np.array([0.299, 0.587, 0.114]) + 0.5).astype(np.uint8)

DAMAGED = "is not a readable image: it is damaged or cut short"


def saved(image: Any, file_format: str = "PNG", **options: Any) -> bytes:
    """An image or an array as a file."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def png(samples: bytes, bits: int, kind: int, transparent: bytes = b"") -> bytes:
    """A PNG of 3x2 pixels, of kinds that Pillow does not write.

    Args:
        samples: two rows, each after a zero byte.
        bits: of a sample.
        kind: 0 grey, 2 colour, 4 grey with alpha.
        transparent: content of its tRNS chunk.
    """
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 3, 2, bits, kind, 0, 0, 0))]
    chunks += [(b"tRNS", transparent)] * bool(transparent)
    chunks += [(b"IDAT", zlib.compress(samples)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + name
        + content
        # The checksum is of the name and the content.
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def tiff(values: np.ndarray, bits: int, photometric: int) -> bytes:
    """A grey TIFF without compression, of kinds that Pillow does not write."""
    height, width = values.shape
    if bits == 12:
        # Each row begins with a byte of its own.
        packed = ["".join(f"{value:012b}" for value in row) + "0000" for row in values]
        data = b"".join(int(row, 2).to_bytes(len(row) // 8, "big") for row in packed)
    else:
        data = values.astype("<u2").tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric}
    tags |= {273: 200, 277: 1, 278: height, 279: len(data)}
    entries = [struct.pack("<HHII", tag, 4, 1, n) for tag, n in sorted(tags.items())]
    start = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries)
    return start.ljust(200, b"\0") + data


def palette(alphas: Any) -> bytes:
    """White ink in a palette, its first colour white as well."""
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    image.putpalette([255, 255, 255] * 6)
    return saved(image, transparency=alphas)


def rows_of(samples: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in samples)


def alpha_over_white() -> np.ndarray:
    return np.stack([np.full_like(INK, 255), INK], axis=-1)


WIDE = INK.astype(np.uint16) * 257
WHITE_AND_KEY = np.where(INK == 51, 0, INK)  # 51 is declared transparent.

GREYS: dict[str, tuple[Callable[[], bytes], np.ndarray]] = {
    "1 bit": (lambda: saved(Image.fromarray(INK > 100)), 255 * np.uint8(INK > 100)),
    "8 bits": (lambda: saved(INK), INK),
    "8 bits, BMP": (lambda: saved(INK, "BMP"), INK),
    "16 bits": (lambda: saved(WIDE), INK),
    "16 bits, TIFF": (lambda: saved(WIDE, "TIFF"), INK),
    "16 bits, TIFF, big-endian": (
        lambda: saved(Image.frombytes("I;16B", (3, 2), WIDE.astype(">u2")), "TIFF"),
        INK,
    ),
    "16 bits, TIFF, compressed": (
        lambda: saved(WIDE, "TIFF", compression="tiff_lzw"),
        INK,
    ),
    "16 bits, TIFF, 0 is white": (lambda: tiff(65535 - WIDE, 16, 0), INK),
    "12 bits, TIFF": (lambda: tiff(np.uint16(INK) // 51 * 819, 12, 1), INK),
    "16 bits, PGM": (lambda: saved(WIDE, "PPM"), INK),
    "PGM up to 1000": (
        lambda: b"P5 3 2 1000\n" + (INK * np.uint16(200) // 51).astype(">u2").tobytes(),
        INK,
    ),
    "16 bits, JPEG 2000": (lambda: saved(WIDE, "JPEG2000"), INK),
    "16 bits, icon": (
        lambda: saved(WIDE, "ICO", sizes=[(3, 2)]),
        INK,
    ),
    "grey and alpha": (lambda: saved(alpha_over_white()), INK),
    "grey and alpha, 16 bits": (
        lambda: png(rows_of(np.uint16(alpha_over_white()) * 257), 16, 4),
        INK,
    ),
    "colour and alpha": (lambda: saved(alpha_over_white()[..., [0, 0, 0, 1]]), INK),
    "colour and alpha, WebP": (
        lambda: saved(alpha_over_white()[..., [0, 0, 0, 1]], "WEBP", lossless=True),
        INK,
    ),
    "palette and alphas": (lambda: palette(INK.tobytes()), INK),
    "palette, one transparent": (
        lambda: palette(1),
        np.where(np.arange(6).reshape(2, 3) == 1, 0, 255),
    ),
    "a transparent grey": (lambda: saved(INK, transparency=51), WHITE_AND_KEY),
    "a transparent grey of 4 bits": (
        lambda: png(b"\0\x03\x60\0\x9c\xf0", 4, 0, b"\0\x03"),
        WHITE_AND_KEY,
    ),
    "a transparent grey of 16 bits": (
        lambda: png(rows_of(WIDE.astype(">u2")), 16, 0, b"\x33\x33"),
        WHITE_AND_KEY,
    ),
    "a transparent colour": (
        lambda: saved(np.stack([INK] * 3, axis=-1), transparency=(51, 51, 51)),
        WHITE_AND_KEY,
    ),
    "a transparent colour of 16 bits": (
        lambda: png(
            rows_of(np.stack([WIDE] * 3, axis=-1).astype(">u2")), 16, 2, b"\x33" * 6
        ),
        WHITE_AND_KEY,
    ),
}


@pytest.mark.parametrize("kind", GREYS)
def test_ink_is_read_alike_from_every_kind_of_file(kind: str) -> None:
    make, expected = GREYS[kind]
    grey = decode_image(io.BytesIO(make()), 1, kind)
    assert grey.dtype == np.uint8
    np.testing.assert_array_equal(grey[..., 0], expected)
    colour = decode_image(io.BytesIO(make()), 3, kind)
    np.testing.assert_array_equal(colour, np.repeat(grey, 3, axis=-1))


COLOURS: dict[str, tuple[Callable[[], bytes], int]] = {
    "colour": (lambda: saved(COLOUR), 0),
    "16 bits": (lambda: png(rows_of(COLOUR.astype(">u2") * 257), 16, 2), 0),
    "palette": (lambda: saved(Image.fromarray(COLOUR).quantize(6)), 0),
    "opaque": (lambda: saved(Image.fromarray(COLOUR).convert("RGBA")), 0),
    "CMYK, TIFF": (lambda: saved(Image.fromarray(COLOUR).convert("CMYK"), "TIFF"), 0),
    # Adobe's way, which is Pillow's: the JPEG holds the inverted values.
    "CMYK, JPEG": (lambda: large(Image.fromarray(COLOUR).convert("CMYK")), 3),
    "JPEG": (lambda: large(Image.fromarray(COLOUR)), 3),
    "Lab, TIFF": (lambda: saved(lab(COLOUR), "TIFF"), 20),
    "animation": (
        lambda: saved(
            COLOUR, "PNG", save_all=True, append_images=[Image.new("RGB", (3, 2))]
        ),
        0,
    ),
}


def large(image: Image.Image) -> bytes:
    """A JPEG in which every pixel fills blocks of its own."""
    size = (16 * image.width, 16 * image.height)
    return saved(image.resize(size, 0), "JPEG", quality=100, subsampling=0)


def lab(colour: np.ndarray) -> Image.Image:
    profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    return ImageCms.profileToProfile(
        Image.fromarray(colour), *profiles, outputMode="LAB"
    )


@pytest.mark.parametrize("kind", COLOURS)
def test_colours_are_read_alike_from_every_kind_of_file(kind: str) -> None:
    make, tolerance = COLOURS[kind]
    for channels, expected in ((3, COLOUR), (1, GREY[..., None])):
        found = decode_image(io.BytesIO(make()), channels, kind)
        found = area_average(found[None], 2, 3)[0]
        np.testing.assert_allclose(found, np.float64(expected), atol=tolerance)


def test_depth_is_scaled_with_one_rounding() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = decode_image(io.BytesIO(saved(values)), 1, "ramp")
    np.testing.assert_array_equal(found[..., 0], np.floor(values / 257 + 0.5))


def test_alpha_is_composited_with_one_rounding() -> None:
    level, alpha = np.mgrid[:256, :256].astype(np.uint8)
    found = decode_image(io.BytesIO(saved(np.stack([level, alpha], axis=-1))), 1, "x")
    exact = np.float64(level) * alpha / 255
    np.testing.assert_array_equal(found[..., 0], np.floor(exact + 0.5))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_images_are_turned_upright(file_format: str, orientation: int) -> None:
    upright = {
        1: INK,
        2: INK[:, ::-1],
        3: INK[::-1, ::-1],
        4: INK[::-1],
        5: INK.T,
        6: np.rot90(INK, -1),  # Clockwise.
        7: INK[::-1, ::-1].T,
        8: np.rot90(INK),
    }[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}.get(file_format)
    stored = np.kron(INK, np.ones((8, 8), np.uint8))
    data = saved(stored, file_format, exif=exif, **(options or {}))
    found = decode_image(io.BytesIO(data), 1, file_format)[4::8, 4::8, 0]
    np.testing.assert_allclose(found, np.float64(upright), atol=1)


def test_odd_metadata_hide_no_orientation() -> None:
    # The camera's maker as a fraction, which Pillow reads but cannot write.
    tags = struct.pack("<HHHIfHHII", 2, 0x010F, 11, 1, 0.5, 0x0112, 3, 1, 6)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + tags + bytes(4)
    data = saved(INK, exif=exif)
    with pytest.raises(AttributeError):
        ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    found = decode_image(io.BytesIO(data), 1, "odd")
    np.testing.assert_array_equal(found[..., 0], np.rot90(INK, -1))


def test_an_animation_gives_its_first_image(tmp_path: Path) -> None:
    frames = [Image.fromarray(INK), Image.fromarray(INK[::-1])]
    for file_format in ("GIF", "TIFF"):
        data = saved(frames[0], file_format, save_all=True, append_images=frames[1:])
        found = decode_image(io.BytesIO(data), 1, file_format)
        np.testing.assert_array_equal(found[..., 0], INK)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "is no image of any known format"),
        (b"no image", "is no image of any known format"),
        (saved(INK)[:-30], DAMAGED),
        (saved(INK)[:10], DAMAGED),
        (saved(COLOUR, "DDS")[:90], DAMAGED),
        (
            large(Image.fromarray(COLOUR))[:-40],
            rf"{DAMAGED}.*\(.*truncated",
        ),
        (b"P6\n8 x\n255\n", DAMAGED),
        (b"P6\n8 8\n255\n", DAMAGED),
        (saved(np.float32(INK), "TIFF"), "does not say which of its numbers is white"),
        (saved(np.int32(INK), "TIFF"), "does not say which of its numbers is white"),
        (b"P5 20000 20000 255\n", "is too large: .* up to 178,956,970 pixels"),
    ],
)
def test_what_is_no_image_is_said_in_one_sentence(data: bytes, expected: str) -> None:
    with pytest.raises(DataError, match=f"^the file {expected}") as caught:
        decode_image(io.BytesIO(data), 3, "the file")
    assert "\n" not in str(caught.value)


def test_what_cannot_be_opened_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for name, expected in (
        ("missing", "missing does not exist"),
        ("", "is a folder, not an image file"),
        ("file/x", "x cannot be opened .Not a directory"),
        ("x" * 300, "cannot be opened .File name too long"),
    ):
        with pytest.raises(DataError, match=expected):
            read_image(tmp_path / name, 1)

    def refuse(path: Any, mode: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("builtins.open", refuse)  # A test may run as root.
    with pytest.raises(DataError, match="^x.png cannot be opened .Permission denied"):
        read_image("x.png", 1)


def test_large_images_are_read_without_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    decode_image(io.BytesIO(saved(Image.new("L", (20, 10)))), 1, "large")
    with pytest.raises(DataError, match="too large"):
        decode_image(io.BytesIO(saved(Image.new("L", (21, 10)))), 1, "larger")


@pytest.mark.parametrize(
    "file_format",
    [
        *("AVIF", "BLP", "BMP", "DDS", "GIF", "ICO", "JPEG", "JPEG2000"),
        *("MPO", "MSP", "PCX", "PNG", "PPM", "QOI", "SGI", "SPIDER", "TGA", "TIFF"),
        *("WEBP", "XBM"),
    ],
)
def test_damage_raises_nothing_else(
    file_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some decoders are slow, and damage may claim many pixels.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**5)
    Image.init()
    if file_format not in Image.SAVE:
        pytest.skip("this Pillow does not write it")
    mode = {"BLP": "P", "MSP": "1", "XBM": "1"}.get(file_format, "RGB")
    noise = np.random.default_rng(0).integers(0, 256, (9, 8, 3), np.uint8)
    data = saved(Image.fromarray(noise).convert(mode), file_format)
    generator = random.Random(file_format)
    refused = 0
    for count in range(24):
        damaged = bytearray(data)
        # Beginnings are hit most, where sizes and kinds are.
        for _ in range(3):
            place = generator.randrange(min(len(data), 80 if count % 2 else len(data)))
            damaged[place] = generator.randrange(256)
        if count % 4 == 0:
            del damaged[generator.randrange(len(data)) :]
        try:
            decode_image(io.BytesIO(bytes(damaged)), 3, "x")
        except DataError:
            refused += 1
    assert refused


def test_averages_of_hand_made_numbers() -> None:
    image = np.array([[0, 1, 10, 10], [0, 1, 10, 11], [255] * 4, [255] * 4], np.uint8)
    # The averages are 0.5, 10.25, 255 and 255.
    found = area_average(image[None, :, :, None], 2, 2)
    assert found[0, :, :, 0].tolist() == [[1, 10], [255, 255]]
    row = np.array([0, 30, 91], np.uint8)[None, None, :, None]
    # 2/3 of 0 and 1/3 of 30; 1/3 of 30 and 2/3 of 91, which is 70 2/3.
    assert area_average(row, 1, 2).ravel().tolist() == [10, 71]
    assert area_average(row[:, :, :2], 1, 3).ravel().tolist() == [0, 15, 30]
    assert area_average(row, 2, 3)[0, :, :, 0].tolist() == [[0, 30, 91]] * 2


side = st.integers(1, 7)


@given(st.tuples(side, side), st.tuples(side, side), st.sampled_from([10, 10**6]))
@settings(max_examples=40, deadline=None)
def test_averages_equal_those_of_repeated_pixels(
    old: tuple[int, int], new: tuple[int, int], block: int
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, *old, 3), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resize, "_BLOCK", block)
        found = area_average(images, *new)
    # Old pixels repeated as often as there are new ones fill these without remainder.
    repeated = images.repeat(new[0], axis=1).repeat(new[1], axis=2).astype(int)
    sums = repeated.reshape(2, new[0], old[0], new[1], old[1], 3).sum(axis=(2, 4))
    area = old[0] * old[1]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, (2 * sums + area) // (2 * area))


def test_the_middle_square_is_used(tmp_path: Path) -> None:
    network = Artefact({"image_shape": [2, 2, 1]}, lambda images: images)
    wide, square = np.pad(INK[:, :2], [(0, 0), (4, 5)]), INK[:, :2]
    for image, expected in ((wide, square), (wide.T, square.T)):
        (tmp_path / "x.png").write_bytes(saved(image))
        found = network.read_image(tmp_path / "x.png")
        np.testing.assert_array_equal(found[..., 0], expected)


@pytest.mark.parametrize("shape", [(4, 4, 3), (24, 32, 1), (30, 20, 3), (40, 40, 1)])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "P"])
def test_decoding_at_a_size_is_decoding_and_resizing(
    mode: str, shape: tuple[int, int, int]
) -> None:
    ramp = np.linspace(0, 255, 24 * 32 * 3).reshape(24, 32, 3).astype(np.uint8)
    picture = Image.fromarray(ramp[:, ::-1]).convert(mode)
    data = saved(picture, "PNG" if mode in ("RGBA", "P") else "JPEG")
    height, width, channels = shape
    least = decode_least(height, width, BILINEAR)
    expected = decode_image(io.BytesIO(data), channels, "x", least)
    expected = resize_and_crop(expected, height, width, BILINEAR)
    found = decode_resized(io.BytesIO(data), "x", shape)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)
