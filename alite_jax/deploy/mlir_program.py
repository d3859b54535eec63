"""Programs as StableHLO that other tools open: portable bytecode, weights as constants.

`graph.stablehlo` is a container of jax.export, for any number of images and weights
that are handed over; this is what compilers around MLIR take.
"""

from dataclasses import replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo

from alite_jax.deploy.formats import Exportable
from alite_jax.deploy.program import forward_of
from alite_jax.deploy.runtimes import Call, in_batches_of


def mlir_program(network: Exportable, batch: int) -> bytes:
    """Writes the program of a network for a CPU and a fixed number of images."""
    forward = partial(forward_of(network.model, network.spec), network.weights)
    images = jax.ShapeDtypeStruct((batch, *network.image_shape), jnp.uint8)
    # Attention takes the form for the device that is there.
    with jax.default_device(_cpu()):
        exported = jax.export.export(jax.jit(forward), platforms=["cpu"])(images)
    return bytes(exported.mlir_module_serialized)


def read_mlir(content: bytes) -> Call:
    """The function from images to logits of a program that `mlir_program` wrote."""
    taken, given = _signature(content)
    images = jax.ShapeDtypeStruct(taken, jnp.uint8)
    # JAX calls a program with what jax.export notes beside it, here of one that is as
    # large.
    zeros = jax.jit(lambda images: jnp.zeros(given), keep_unused=True)
    noted = jax.export.export(zeros, platforms=["cpu"])(images)
    call = jax.jit(replace(noted, mlir_module_serialized=content).call)

    def logits(images: np.ndarray) -> np.ndarray:
        return np.asarray(call(jax.device_put(images, _cpu())))

    return in_batches_of(taken[0], logits)


def _signature(content: bytes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of what the program takes and gives."""
    with ir.Context() as context:
        module = stablehlo.deserialize_portable_artifact(context, content)
        functions = cast(Any, module.body.operations)
        (main,) = (each for each in functions if each.name.value == "main")
        (taken,), (given,) = main.type.inputs, main.type.results
        return tuple(taken.shape), tuple(given.shape)


def _cpu() -> jax.Device:
    return jax.local_devices(backend="cpu")[0]
