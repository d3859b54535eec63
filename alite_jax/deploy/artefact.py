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
from PIL import Image, UnidentifiedImageError

from alite_jax.deploy.pack import unpack
from alite_jax.errors import ArtefactError, PackedFileError

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
            images: uint8 `[batch, height, width, channels]`, of `card["image_shape"]`.
        """
        return np.asarray(self.program(images))

    def read_image(self, path: str | os.PathLike[str]) -> np.ndarray:
        """Reads an image file as the network wants it, uint8.

        The middle square is taken and resized, in grey if the network is for grey.

        Raises:
            ArtefactError: it is missing or no image.
        """
        height, width, channels = self.card["image_shape"]
        try:
            with Image.open(path) as file:
                image = file.convert("L" if channels == 1 else "RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise ArtefactError(f"{path} is no image that can be read") from error
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        image = image.crop((left, top, left + side, top + side))
        image = image.resize((width, height), Image.Resampling.BOX)
        return np.asarray(image, np.uint8).reshape(height, width, channels)

    def classify(
        self, images: np.ndarray, top: int = 5
    ) -> list[list[tuple[str, float]]]:
        """Returns the likeliest classes of each image, with their probabilities."""
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
    place = Path(folder)
    try:
        card = json.loads((place / CARD).read_text())
        packed = unpack((place / WEIGHTS).read_bytes())
        weights = {name: packed.variables[name] for name in ("params", "batch_stats")}
        program = compiled((place / GRAPH).read_bytes(), weights)
    except FileNotFoundError as error:
        raise ArtefactError(
            f"{folder} holds no exported network ({Path(error.filename).name} is"
            " missing); make one with --job=export"
        ) from error
    except PackedFileError as error:
        raise ArtefactError(f"{place / WEIGHTS} cannot be used: {error}") from error
    except Exception as error:  # What the parsers raise for damage is not documented.
        raise ArtefactError(f"{folder} cannot be read ({error})") from error
    return Artefact(card, program)
