"""A network to compute with, from the file of its weights alone."""

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from alite_jax.deploy.header import COLLECTIONS
from alite_jax.deploy.open_weights import unpack_safetensors
from alite_jax.deploy.pack import unpack
from alite_jax.errors import ArtefactError, PackedFileError
from alite_jax.models.resnet import MODELS, STUDENT_OPTIONS, ResNet, create_model
from alite_jax.paths import user_path
from alite_jax.structure.compact import widths_from_json


def read_network(path: str | os.PathLike[str]) -> tuple[ResNet, dict[str, Any]]:
    """Reads a network from `weights.alite` or `weights.safetensors`.

    Args:
        path: of the file, in an export or wherever it was moved.

    Returns:
        The model, as it was compacted, and its variables: `params`, `batch_stats` and
        `masks`, NumPy arrays as they were stored;
        `model.apply(variables, images, train=False)` are the logits of images that are
        normalised as `mean` and `std` of `card.json` say.

    Raises:
        ArtefactError: there is no such file, it is damaged, or the network is a module
            of other people's code.

    Example:
        >>> from alite_jax.deploy.networks import read_network
        >>> model, variables = read_network(workdir / "export" / "weights.alite")
        >>> model.apply(variables, jnp.zeros((2, 8, 8, 1)), train=False).shape
        (2, 10)
    """
    place = user_path(path)
    try:
        content = place.read_bytes()
        if place.suffix == ".safetensors":
            described, variables = unpack_safetensors(content)
        else:
            packed = unpack(content)
            described, variables = packed.model, packed.variables
    except OSError as error:
        raise ArtefactError(f"{place} cannot be read ({error.strerror})") from error
    except PackedFileError as error:
        raise ArtefactError(f"{place} cannot be used: {error}") from error
    name = described.get("model")
    if not isinstance(name, str) or name not in MODELS:
        raise ArtefactError(
            f"{place} has the weights of {name!r}, which is no network of this package;"
            " `alite_jax.deploy.pack.unpack` reads the arrays of a packed file"
        )
    try:
        model = _model(described)
        _check_shapes(model, tuple(described["image_shape"]), variables)
    except Exception as error:  # Of whatever else stands in its description.
        reason = " ".join(str(error).split())
        raise ArtefactError(
            f"{place} describes a {name} that its weights do not fit ({reason:.200})"
        ) from error
    return model, variables


def _model(described: Mapping[str, Any]) -> ResNet:
    options = ("width", "num_classes", "stem", *STUDENT_OPTIONS)
    settings = {name: described[name] for name in options if name in described}
    widths = described.get("widths")
    return create_model(
        described["model"],
        widths=widths_from_json(widths) if widths else None,
        **settings,
    )


def _check_shapes(
    model: ResNet, image_shape: tuple[int, ...], variables: Mapping[str, Any]
) -> None:
    """Raises where the arrays are not those of the model."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    init = partial(model.init, train=False)
    wanted = jax.eval_shape(init, jax.random.key(0), image)
    for kind in COLLECTIONS:
        shapes = [
            jax.tree.map(jnp.shape, dict(tree.get(kind, {})))
            for tree in (variables, wanted)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(f"other {kind}")
