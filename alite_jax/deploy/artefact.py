"""An exported network as a folder, and using it without the code that trained it.

    graph.stablehlo  the program: weights and uint8 images in, logits out, for any batch
    weights.alite    the weights (`alite_jax.deploy.pack`)
    card.json        what it is; card.md says the same to people
    model.onnx ...   what else was asked for (`alite_jax.deploy.formats`)

Reading needs NumPy, Pillow and the runtime (`alite_jax.deploy.runtimes`), neither Flax
nor a model's source.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alite_jax.data.images import read_image
from alite_jax.data.resize import AREA, BILINEAR, decode_least, resize_and_crop
from alite_jax.deploy.runtimes import (
    RUNTIMES,
    WEIGHTS,
    Call,
    Program,
    missing_modules,
)
from alite_jax.errors import ArtefactError, ConfigError, PackedFileError, nearest
from alite_jax.paths import user_path

CARD, CARD_TEXT = "card.json", "card.md"

_LARGEST_SIDE = 2**14  # pixels


@dataclass(frozen=True)
class Artefact:
    """A loaded export.

    Attributes:
        card: the content of `card.json`.
        program: from uint8 images, at least one, to logits.
    """

    card: dict[str, Any]
    program: Call

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Returns logits `[batch, classes]`, float32.

        Args:
            images: uint8 `[batch, height, width, channels]`, of `card["image_shape"]`;
                the batch may be empty.

        Example:
            >>> artefact.logits(np.zeros((2, 8, 8, 1), np.uint8)).shape
            (2, 10)
        """
        if not len(images):  # A program wants at least one.
            return np.zeros((0, len(self.card["classes"])), np.float32)
        return self.program(images)

    def read_image(self, path: str | os.PathLike[str]) -> np.ndarray:
        """Reads the middle of an image file as the network wants it, uint8.

        It is resized as the images of training are, and grey if those are.

        Args:
            path: of a file of any format that Pillow knows.

        Returns:
            uint8 `[height, width, channels]`, of `card["image_shape"]`.

        Raises:
            DataError: as for `alite_jax.data.images.read_image`.

        Example:
            >>> from PIL import Image
            >>> Image.new("RGB", (30, 20), "white").save(workdir / "white.png")
            >>> image = artefact.read_image(workdir / "white.png")
            >>> image.shape, int(image.min())
            ((8, 8, 1), 255)
        """
        height, width, channels = self.card["image_shape"]
        resize = self.card.get("resize", AREA)
        least = decode_least(height, width, resize)
        image = read_image(path, channels, least)
        return resize_and_crop(image, height, width, resize)

    def classify(
        self, images: np.ndarray, top: int = 5
    ) -> list[list[tuple[str, float]]]:
        """Returns the likeliest classes of each image, with their probabilities.

        Args:
            images: as for `logits`.
            top: how many classes, at least 1; all of them if there are fewer.

        Raises:
            ConfigError: `top` is less than 1.

        Example:
            >>> [classes] = artefact.classify(np.zeros((1, 8, 8, 1), np.uint8), top=10)
            >>> round(sum(probability for name, probability in classes), 6)
            1.0
        """
        if top < 1:
            raise ConfigError(f"top = {top}, but at least 1 class can be named")
        logits = self.logits(images).astype(np.float64)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        return [
            [(self.card["classes"][i], float(row[i])) for i in np.argsort(-row)[:top]]
            for row in probabilities
        ]


def load(folder: str | os.PathLike[str], runtime: str = "jax") -> Artefact:
    """Reads an exported network from the folder that `--job=export` wrote.

    Args:
        folder: it, `WORKDIR/export` or wherever it was moved.
        runtime: what runs the network: `"jax"`, or `"onnx"` and `"tflite"` if it was
            exported with these `--formats`, on one thread, which import no JAX.

    Raises:
        ConfigError: there is no such runtime.
        ArtefactError: it is no such folder, the runtime is not installed or has no file
            there, or a file is damaged.

    Example:
        >>> from alite_jax.deploy.artefact import load
        >>> artefact = load(workdir / "export")
        >>> artefact.card["dataset"], artefact.card["classes"][:3]
        ('digits', ['0', '1', '2'])
    """
    if runtime not in RUNTIMES:
        raise ConfigError(f"unknown runtime {runtime!r}; {nearest(runtime, RUNTIMES)}")
    files, read, modules, install, flag = RUNTIMES[runtime]
    if missing := missing_modules(modules):
        raise ArtefactError(
            f"the runtime {runtime!r} needs {' and '.join(missing)}, not installed"
            f" here; run pip install {install}"
        )
    place = user_path(folder)
    try:
        card = _read_card(place / CARD)
        contents = [_read_file(place / name, card) for name in files]
        program = read(*contents)
        _check_shapes(card, program)
    except FileNotFoundError as error:
        name = Path(error.filename).name
        what = "holds no exported network"
        if name in files and flag:
            what = f"holds no network for the runtime {runtime!r}"
        raise ArtefactError(
            f"{place} {what} ({name} is missing); make one with"
            f" {' '.join(['--job=export', flag]).strip()}"
        ) from error
    except PackedFileError as error:
        raise ArtefactError(f"{place / WEIGHTS} cannot be used: {error}") from error
    except Exception as error:  # It is not documented what the parsers raise.
        reason = " ".join(str(error).split())
        raise ArtefactError(f"{place} cannot be read ({reason})") from error
    return Artefact(card, program.call)


def _read_card(path: Path) -> dict[str, Any]:
    """The content of `card.json`, of which what is used here is as it must be."""
    card = json.loads(path.read_bytes())
    shape, classes = card["image_shape"], card["classes"]
    whole = [type(size) is int and 0 < size <= _LARGEST_SIDE for size in shape]
    if len(whole) != 3 or not all(whole) or shape[2] not in (1, 3):
        raise ValueError(f"{CARD}: image_shape is {shape!r:.80}")
    if not classes or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"{CARD}: classes are {classes!r:.80}")
    # Cards of before do not say; there was one way.
    if card.setdefault("resize", AREA) not in (AREA, BILINEAR):
        raise ValueError(f"{CARD}: resize is {card['resize']!r:.80}")
    return dict(card)


def _read_file(path: Path, card: Mapping[str, Any]) -> bytes:
    """A file, if it is the one that the card was written for.

    Programs go to parsers that are not made for damaged ones. Cards of before do not
    say what the files were.
    """
    size = path.stat().st_size  # Whether it is there comes first.
    if "files" not in card:
        return path.read_bytes()
    wanted = card["files"].get(path.name)
    if wanted is None:
        raise ValueError(f"{CARD} does not name {path.name}")
    if size != wanted["bytes"]:
        raise ValueError(f"{path.name} has {size} bytes instead of {wanted['bytes']}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != wanted["sha256"]:
        raise ValueError(f"{path.name} was changed: its digest does not fit {CARD}")
    return content


def _check_shapes(card: Mapping[str, Any], program: Program) -> None:
    ours = tuple(card["image_shape"]), len(card["classes"])
    theirs = program.image_shape, program.classes
    if ours != theirs:
        raise ValueError(
            f"{CARD} has images of {ours[0]} and {ours[1]} classes, the program"
            f" {theirs[0]} and {theirs[1]}"
        )
