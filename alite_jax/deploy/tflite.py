"""Programs for LiteRT (TensorFlow Lite), an optional rung of the export.

The converter takes the StableHLO of a program, weights inside, and knows arrays of rank
5 at most, so attention is computed by `all_pairs`.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp

from alite_jax.deploy.program import Forward
from alite_jax.errors import ArtefactError, first_line
from alite_jax.models.layers import LocalSelfAttention
from alite_jax.models.model import Model
from alite_jax.models.resnet import ResNet


def with_all_pairs(model: Model) -> Model:
    """The same network, whose attention, if it has ours, is that of `all_pairs`."""
    if not isinstance(model, ResNet):
        return model
    spatial = tuple(
        partial(operator, method="all_pairs")
        if isinstance(operator, partial) and operator.func is LocalSelfAttention
        else operator
        for operator in model.spatial
    )
    return model.clone(spatial=spatial)


def tflite_program(
    forward: Forward, weights: chex.ArrayTree, image_shape: tuple[int, ...], batch: int
) -> bytes:
    """Writes a program for a fixed number of images.

    Args:
        forward: from `forward_of`, of a network `with_all_pairs`.
        weights: `params` and `batch_stats`, which become part of the program.
        image_shape: (height, width, channels).
        batch: the number of images.

    Raises:
        ArtefactError: the converter cannot take the program.
    """
    # Not imported above: most who export need none of it, and it is large.
    from litert_converter import converter_api_ext as converter
    from litert_converter.mlir import ir, passmanager

    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.uint8)
    text = jax.jit(partial(forward, weights)).lower(images).as_text()
    context = ir.Context()
    converter.prepare_mlir_context(context)
    try:
        with context:
            module = ir.Module.parse(text, context)
            converter.run_convert_to_tfl_passes(
                module, passmanager.PassManager(), converter.ConvertToTFLConfig()
            )
            return bytes(converter.export_flatbuffer_to_bytes(module.operation))
    except Exception as error:  # What it raises is not documented.
        raise ArtefactError(
            f"LiteRT's converter cannot take this network ({first_line(error)}); export"
            " it without --formats=tflite"
        ) from error
