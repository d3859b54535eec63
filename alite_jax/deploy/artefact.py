"""An exported network as a folder, and using it without the code that trained it.

    graph.stablehlo  the program: weights and uint8 images in, logits out, for any batch
    weights.alite    the weights (`alite_jax.deploy.pack`)
    card.json        what it is; card.md says the same to people
    model.tflite     a program for LiteRT and one image, if it was asked for

Reading needs JAX and NumPy, neither Flax nor a model's source.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alite_jax.data.images import area_average, read_image
from alite_jax.deploy.pack import unpack
from alite_jax.errors import ArtefactError, ConfigError, PackedFileError
from alite_jax.paths import user_path

GRAPH, WEIGHTS, CARD, CARD_TEXT, TFLITE = (
    *("graph.stablehlo", "weights.alite"),
    *("card.json", "card.md", "model.tflite"),
)


@dataclass(frozen=True)
class Artefact:
    """A network that was read.

    Attributes:
        card: the content of `card.json`.
        program: from `compiled`.
    """

    card: dict[str, Any]
    program: Callable[[Any], jax.Array]

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Returns logits `[batch, classes]`, float32.

        Args:
            images: uint8 `[batch, height, width, channels]`, of `card["image_shape"]`;
                the batch may be empty.
        """
        if not len(images):  # The program's free dimension is at least 1.
            return np.zeros((0, len(self.card["classes"])), np.float32)
        # Moved on purpose, which a transfer guard lets pass.
        return np.asarray(jax.device_get(self.program(jax.device_put(images))))

    def read_image(self, path: str | os.PathLike[str]) -> np.ndarray:
        """Reads an image file as the network wants it, uint8.

        It is read and reduced as the images of training are, its middle square alone
        if it is none, and in grey if the network is for grey.

        Raises:
            DataError: as for `alite_jax.data.images.read_image`.
        """
        height, width, channels = self.card["image_shape"]
        image = read_image(path, channels)
        side = min(image.shape[:2])
        top, left = ((length - side) // 2 for length in image.shape[:2])
        square = image[None, top : top + side, left : left + side]
        return area_average(square, height, width)[0]

    def classify(
        self, images: np.ndarray, top: int = 5
    ) -> list[list[tuple[str, float]]]:
        """Returns the likeliest classes of each image, with their probabilities.

        Args:
            images: as for `logits`.
            top: how many classes, at least 1; all of them if there are fewer.

        Raises:
            ConfigError: `top` is less than 1.
        """
        if top < 1:
            raise ConfigError(f"top = {top}, but at least 1 class can be named")
        logits = self.logits(images).astype(np.float64)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        found = []
        for row in odds / odds.sum(axis=1, keepdims=True):
            best: Sequence[int] = np.argsort(-row)[:top].tolist()
            found.append([(self.card["classes"][i], float(row[i])) for i in best])
        return found


def compiled(program: bytes, weights: Any) -> Callable[[Any], jax.Array]:
    """Makes of an exported program a function of the images alone.

    The weights become constants of it: handing over an array for each layer with each
    call takes a quarter of the time of a small network and one image.

    Args:
        program: from `alite_jax.deploy.export.export_program`.
        weights: `params` and `batch_stats`.

    Returns:
        From uint8 images to logits; compiled once for each number of images.
    """
    exported = jax.export.deserialize(bytearray(program))
    return jax.jit(partial(exported.call, jax.device_put(weights)))


def load(folder: str | os.PathLike[str]) -> Artefact:
    """Reads an exported network.

    Args:
        folder: what `--job=export` wrote.

    Raises:
        ArtefactError: it is no such folder, or a file of it is damaged.
    """
    place = user_path(folder)
    try:
        card = json.loads((place / CARD).read_text())
        packed = unpack((place / WEIGHTS).read_bytes())
        weights = {name: packed.variables[name] for name in ("params", "batch_stats")}
        program = compiled((place / GRAPH).read_bytes(), weights)
    except FileNotFoundError as error:
        raise ArtefactError(
            f"{place} holds no exported network ({Path(error.filename).name} is"
            " missing); make one with --job=export"
        ) from error
    except PackedFileError as error:
        raise ArtefactError(f"{place / WEIGHTS} cannot be used: {error}") from error
    except Exception as error:  # What the parsers raise for damage is not documented.
        raise ArtefactError(f"{place} cannot be read ({error})") from error
    return Artefact(card, program)
