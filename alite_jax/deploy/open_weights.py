"""A network's weights in a file that programs of any language read: safetensors.

Arrays have the names that they have in the module, `params/stem/kernel`, and are dense
float32; absent weights are zeros. The file's metadata, texts all of them, say what the
network is: `model` (JSON, as in a packed file), `dataset`, and as JSON `classes`,
`image_shape`, `mean` and `std` (of the images, in units of 255), `pruned` (the names of
the arrays that were pruned), and `resize`, how images of another size are made.
"""

import json
from typing import Any

import jax
import numpy as np
import safetensors
from safetensors.numpy import save

from alite_jax.deploy.formats import Exportable
from alite_jax.deploy.header import COLLECTIONS, check_arrays
from alite_jax.deploy.program import forward_of
from alite_jax.deploy.runtimes import Call
from alite_jax.errors import PackedFileError
from alite_jax.trees import named_leaves, nested


def write_safetensors(network: Exportable) -> bytes:
    """Writes the weights of a network, and what it is."""
    spec = network.spec
    arrays = {
        f"{collection}/{path}": np.ascontiguousarray(leaf, np.float32)
        for collection, tree in network.weights.items()
        for path, leaf in named_leaves(tree)
    }
    pruned = [
        f"params/{path}"
        for path, mask in named_leaves(network.variables["masks"])
        if np.ndim(mask)
    ]
    described = {
        "classes": spec.class_names,
        "image_shape": network.image_shape,
        "mean": spec.mean,
        "std": spec.std,
        "model": network.identity,
        "pruned": pruned,
    }
    metadata = {name: json.dumps(value) for name, value in described.items()}
    metadata |= {"format": "alite_jax", "dataset": spec.name, "resize": spec.resize}
    return bytes(save(arrays, metadata))


def read_safetensors(content: bytes, network: Exportable) -> Call:
    """The function from images to logits of a network with the weights of a file."""
    _, variables = unpack_safetensors(content)
    forward = jax.jit(forward_of(network.model, network.spec))
    weights = network._replace(variables=variables).weights
    return lambda images: np.asarray(forward(weights, images))


def unpack_safetensors(content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads what `write_safetensors` wrote.

    Returns:
        What the network is, as it is in a packed file, and its variables: `params` and
        `batch_stats`, float32, and `masks`, which follow from the zeros.

    Raises:
        PackedFileError: it is damaged, or no such file.
    """
    try:
        stored = safetensors.deserialize(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        model, pruned = json.loads(metadata["model"]), json.loads(metadata["pruned"])
        if type(model) is not dict or type(pruned) is not list:
            raise ValueError("its metadata describe no network")
        shapes = [(name, tuple(array["shape"])) for name, array in stored]
        check_arrays([(name, shape, "float32", False) for name, shape in shapes])
        flat: dict[str, dict[str, Any]] = {name: {} for name in (*COLLECTIONS, "masks")}
        for name, array in stored:
            if array["dtype"] != "F32":
                raise ValueError(f"{name} has numbers of the type {array['dtype']}")
            values = np.frombuffer(array["data"], "<f4").reshape(array["shape"])
            if not np.isfinite(values).all():
                raise ValueError(f"{name} has values that are not finite")
            collection, _, path = name.partition("/")
            flat[collection][path] = values
            if collection == "params":
                flat["masks"][path] = values != 0 if name in pruned else np.True_
        return model, {name: nested(arrays) for name, arrays in flat.items()}
    except Exception as error:  # The parsers' own, and what damage leads to.
        reason = " ".join(str(error).split())
        raise PackedFileError(
            f"it is damaged or no safetensors file of this package ({reason:.200})"
        ) from error
