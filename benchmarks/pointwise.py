"""The forms of a 1x1 convolution between which `pointwise` chooses, on a CPU."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from alite_jax.models.layers import pointwise
from benchmarks.attention import compiled, with_gradients
from benchmarks.timing import Row, Rows, interleave, milliseconds, ratios

# Images, side of the map, channels and features: blocks of the networks of the paper,
# of `configs/cifar10_cpu.py` and of the demo.
SIZES = (
    *((32, 32, 64, 256), (32, 32, 256, 64), (32, 16, 512, 128), (32, 8, 256, 1024)),
    *((128, 16, 16, 64), (128, 4, 256, 64)),
    *((64, 8, 16, 64), (64, 1, 128, 512)),
)


def convolution(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """What `pointwise` does on other devices."""
    return jax.lax.conv_general_dilated(
        inputs,
        kernel[None, None],
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


FORMS: dict[str, Callable[..., jax.Array]] = {
    "flat": partial(pointwise, dtype=jnp.float32),
    "einsum": jnp.dot,
    "convolution": convolution,
}


def compare(rounds: int) -> Rows:
    """Times the forms in turn, alone and with their gradients."""
    rows: Rows = {}
    for batch, side, channels, features in SIZES:
        keys = jax.random.split(jax.random.key(0), 3)
        inputs = jax.random.normal(keys[0], (batch, side, side, channels))
        kernel = jax.random.normal(keys[1], (channels, features)) * channels**-0.5
        cotangent = jax.random.normal(keys[2], (batch, side, side, features))
        size = f"{batch}x{side}x{side}, {channels} to {features}"
        for mode in ("forward", "both"):
            calls: dict[str, Callable[[], Any]] = {}
            for name, form in FORMS.items():
                function, arguments = form, [inputs, kernel]
                if mode == "both":
                    function = with_gradients(form)
                    arguments.append(cotangent)
                calls[name] = partial(compiled(function, *arguments), *arguments)
            times = interleave(calls, rounds)
            start = f"pointwise_{side}x{side}x{channels}x{features}_{mode}"
            rows[start] = milliseconds(times["flat"], f"{size}, {mode}")
            for name in ("einsum", "convolution"):
                rows[f"{start}_{name}"] = Row.of(
                    ratios(times[name], times["flat"]), "x", f"{name} over ours, {size}"
                )
    return rows
