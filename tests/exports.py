"""Exports that are made in a moment: a linear network of a few pixels."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alite_jax.deploy.pack import pack
from alite_jax.deploy.program import export_program
from alite_jax.deploy.runtimes import GRAPH, WEIGHTS

SHAPE = (4, 4, 1)
CLASSES = ["dark", "grey", "light"]
KERNEL = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)


def logits(images: Any) -> np.ndarray:
    """What every program of the network must give."""
    return images.reshape(-1, 16).astype(np.float32) @ KERNEL


def some_images(count: int) -> np.ndarray:
    draw = np.random.default_rng(1)
    return draw.integers(0, 256, (count, *SHAPE), np.uint8)


def write_export(folder: Path, **others: bytes) -> Path:
    """Writes an export with what JAX reads, and other files by their names."""

    def forward(weights: Any, images: jax.Array) -> jax.Array:
        pixels = images.reshape(images.shape[0], -1).astype(np.float32)
        return pixels @ weights["params"]["kernel"]

    weights = {"params": {"kernel": KERNEL}, "batch_stats": {}}
    masks = {"kernel": np.full(KERNEL.shape, True)}
    files = {
        WEIGHTS: pack({}, weights | {"masks": masks}, "float32"),
        GRAPH: export_program(forward, weights, SHAPE),
        **{name.replace("_", "."): content for name, content in others.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    card = {"image_shape": SHAPE, "classes": CLASSES, "resize": "area", "files": {}}
    for name, content in files.items():
        (folder / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        card["files"][name] = {"bytes": len(content), "sha256": digest}
    (folder / "card.json").write_text(json.dumps(card))
    return folder


def onnx_model(batch: int | None) -> bytes:
    """The network for ONNX Runtime, node by node."""
    from onnx import TensorProto, helper, numpy_helper

    size = "batch" if batch is None else batch
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["floats"], ["pixels"]),
            helper.make_node("MatMul", ["pixels", "kernel"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [size, *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [size, 3])],
        [numpy_helper.from_array(KERNEL, "kernel")],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(
        graph, opset_imports=opset, ir_version=8
    ).SerializeToString()
