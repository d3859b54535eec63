"""Programs for LiteRT (TensorFlow Lite), an optional rung of the export.

The converter takes the StableHLO of a program for one image, weights inside, and knows
arrays of rank 5 at most, so attention is computed by `all_pairs`.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from alite_jax.deploy.program import Forward
from alite_jax.errors import ArtefactError
from alite_jax.models.layers import LocalSelfAttention
from alite_jax.models.resnet import ResNet


def with_all_pairs(model: ResNet) -> ResNet:
    """The same network, whose attention is computed by `all_pairs`."""
    spatial = tuple(
        partial(operator, method="all_pairs")
        if isinstance(operator, partial) and operator.func is LocalSelfAttention
        else operator
        for operator in model.spatial
    )
    return model.clone(spatial=spatial)


def tflite_program(
    forward: Forward, weights: chex.ArrayTree, image_shape: tuple[int, ...]
) -> bytes:
    """Writes a program for one image.

    Args:
        forward: from `forward_of`, of a network `with_all_pairs`.
        weights: `params` and `batch_stats`, which become part of the program.
        image_shape: (height, width, channels).

    Raises:
        ArtefactError: the converter is not installed, or cannot take the program.
    """
    ir = _library("litert_converter.mlir.ir")
    passes = _library("litert_converter.mlir.passmanager")
    converter = _library("litert_converter.converter_api_ext")
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
    text = jax.jit(partial(forward, weights)).lower(image).as_text()
    context = ir.Context()
    converter.prepare_mlir_context(context)
    try:
        with context:
            module = ir.Module.parse(text, context)
            converter.run_convert_to_tfl_passes(
                module, passes.PassManager(), converter.ConvertToTFLConfig()
            )
            return bytes(converter.export_flatbuffer_to_bytes(module.operation))
    except Exception as error:  # What it raises is not documented.
        reason = str(error).strip().partition("\n")[0]
        raise ArtefactError(
            f"LiteRT's converter cannot take this network ({reason}); export it without"
            " --tflite"
        ) from error


def read_tflite(content: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """Loads a program into LiteRT, as a function of any number of uint8 images.

    They go through it one by one, on one thread.

    Raises:
        ArtefactError: LiteRT is not installed.
    """
    interpreter = _library("ai_edge_litert.interpreter").Interpreter(
        model_content=content, num_threads=1
    )
    interpreter.allocate_tensors()
    taken = interpreter.get_input_details()[0]["index"]
    given = interpreter.get_output_details()[0]["index"]

    def call(images: np.ndarray) -> np.ndarray:
        logits = []
        for image in images:
            interpreter.set_tensor(taken, image[None])
            interpreter.invoke()
            logits.append(interpreter.get_tensor(given))
        return np.concatenate(logits)

    return call


def _library(name: str) -> Any:
    # Not imported above: most who export need none of it, and it is large.
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ArtefactError(
            f"--tflite needs {name.partition('.')[0]}, which is not installed; run pip"
            " install -r requirements-tflite.txt"
        ) from error
