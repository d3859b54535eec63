"""An exported network as a folder, and using it without the code that trained it.

    graph.stablehlo  the program: weights and uint8 images in, logits out, for any batch
    weights.alite    the weights (`alite_jax.deploy.pack`)
    card.json        what it is; card.md says the same to people
    model.tflite     a program for LiteRT and one image, if it was asked for

Reading needs JAX and NumPy, neither Flax nor a model's source.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from alite_jax.data.images import read_image
from alite_jax.data.resize import AREA, decode_least, resize_and_crop
from alite_jax.deploy.pack import unpack
from alite_jax.errors import ArtefactError, ConfigError, PackedFileError
from alite_jax.paths import user_path

GRAPH, WEIGHTS, TFLITE = "graph.stablehlo", "weights.alite", "model.tflite"
CARD, CARD_TEXT = "card.json", "card.md"


@dataclass(frozen=True)
class Artefact:
    """A loaded export.

    Attributes:
        card: the content of `card.json`.
        program: from `compiled`.
    """

    card: dict[str, Any]
    program: Callable[[ArrayLike], jax.Array]

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Returns logits `[batch, classes]`, float32.

        Args:
            images: uint8 `[batch, height, width, channels]`, of `card["image_shape"]`;
                the batch may be empty.

        Example:
            >>> artefact.logits(np.zeros((2, 8, 8, 1), np.uint8)).shape
            (2, 10)
        """
        if not len(images):  # The program's free dimension is at least 1.
            return np.zeros((0, len(self.card["classes"])), np.float32)
        # Moved on purpose, which a transfer guard lets pass.
        return np.asarray(jax.device_get(self.program(jax.device_put(images))))

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
        # Cards of before do not say; there was one way.
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


def compiled(
    program: bytes, weights: Mapping[str, Any]
) -> Callable[[ArrayLike], jax.Array]:
    """Makes of an exported program a function of the images alone.

    It takes uint8 images and gives logits, compiled once for each number of images. The
    weights, `params` and `batch_stats`, become constants of it: handing over an array
    for each layer with each call takes a quarter of the time of a small network and one
    image.
    """
    exported = jax.export.deserialize(bytearray(program))
    return jax.jit(partial(exported.call, jax.device_put(weights)))


def load(folder: str | os.PathLike[str]) -> Artefact:
    """Reads an exported network from the folder that `--job=export` wrote.

    Args:
        folder: it, `WORKDIR/export` or wherever it was moved.

    Raises:
        ArtefactError: it is no such folder, or a file of it is damaged.

    Example:
        >>> from alite_jax.deploy.artefact import load
        >>> artefact = load(workdir / "export")
        >>> artefact.card["dataset"], artefact.card["classes"][:3]
        ('digits', ['0', '1', '2'])
    """
    place = user_path(folder)
    try:
        card = json.loads((place / CARD).read_text())
        packed = unpack((place / WEIGHTS).read_bytes())
        kinds = ("params", "batch_stats")
        weights = {kind: packed.variables.get(kind, {}) for kind in kinds}
        program = compiled((place / GRAPH).read_bytes(), weights)
    except FileNotFoundError as error:
        raise ArtefactError(
            f"{place} holds no exported network ({Path(error.filename).name} is"
            " missing); make one with --job=export"
        ) from error
    except PackedFileError as error:
        raise ArtefactError(f"{place / WEIGHTS} cannot be used: {error}") from error
    except Exception as error:  # It is not documented what the parsers raise.
        raise ArtefactError(f"{place} cannot be read ({error})") from error
    return Artefact(card, program)
