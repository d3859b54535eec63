"""A folder of photographs for the benchmarks of reading them, made from a seed."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = 10
_COMMENT = b"\xff\xfe\x00\x06"  # A JPEG's comment of four bytes follows.


def make_photographs(folder: Path, count: int, side: int, different: int) -> None:
    """Writes JPEGs of 4:3 in classes, in portrait and landscape.

    Noise of all scales, as photographs have it, edges of shapes, and a little noise of
    a sensor: about 2 bits a pixel, as real ones have.

    Args:
        folder: where to; it gets one folder for each of 10 classes.
        count: files in all, no two the same.
        side: the shorter side in pixels.
        different: pictures that are drawn; files beyond them differ in a comment only.
    """
    drawn = [_jpeg(seed, side) for seed in range(different)]
    for number in range(count):
        place = folder / f"class_{number % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        content = drawn[number % different]
        comment = _COMMENT + number.to_bytes(4, "big")
        # After the marker with which every JPEG begins.
        (place / f"{number}.jpg").write_bytes(content[:2] + comment + content[2:])


def _jpeg(seed: int, side: int) -> bytes:
    random = np.random.default_rng(seed)
    size = (side, side * 4 // 3) if seed % 2 else (side * 4 // 3, side)
    scene = np.zeros((size[1], size[0], 3))
    for cells in (3, 6, 12, 24, 48):
        noise = random.integers(256, size=(cells, cells, 3), dtype=np.uint8)
        smooth = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
        scene += np.asarray(smooth) / cells
    image = Image.fromarray((255 * scene / scene.max()).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(8):
        x, y, reach = random.integers(0, side, 3)
        colour = tuple(random.integers(256, size=3).tolist())
        draw.ellipse((x, y, x + reach // 2, y + reach // 3), fill=colour)
    grain = random.normal(0, 3, scene.shape)
    seen = np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(seen).save(file, "JPEG", quality=90)
    return file.getvalue()
