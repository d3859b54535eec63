"""Programs for ONNX Runtime: a stand-in, to be replaced."""

import json
from typing import Any

import jax
import jax.numpy as jnp

from alite_jax.data.specs import DatasetSpec
from alite_jax.deploy.program import forward_of
from alite_jax.deploy.tflite import with_all_pairs


def onnx_program(
    model: Any,
    variables: Any,
    spec: DatasetSpec,
    image_shape: tuple[int, int, int],
    batch: int | None,
) -> bytes:
    """Writes a program from uint8 images to logits."""
    import jax2onnx

    forward = forward_of(with_all_pairs(model), spec)
    weights = jax.tree.map(
        jnp.asarray, {kind: variables[kind] for kind in ("params", "batch_stats")}
    )
    shape = jax.ShapeDtypeStruct((batch or "B", *image_shape), jnp.uint8)
    program = jax2onnx.to_onnx(lambda images: forward(weights, images), [shape])
    entry = program.metadata_props.add()
    entry.key, entry.value = "image_shape", json.dumps(image_shape)
    return bytes(program.SerializeToString())
