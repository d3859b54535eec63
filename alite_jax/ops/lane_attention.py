"""Local attention by kernels for TPUs, with pixels along the lanes.

**Compiled for TPUs, never run on one**: values and gradients are checked in JAX's
interpreter, and memory is that which the compiler counts (benchmarks/README.md).

The forward pass is one kernel, and so is the backward pass. Nothing that has a number
for each key of each window is ever in the memory that programs share: kept are the
inputs, the output and two numbers of each query's softmax, from which the backward
pass computes the weights again. Logits, softmax and sums are float32.

A program takes whole images, several where they are small; a map too large for the
fast memory of a core goes by another method. XLA brings arrays into the order of the
kernels and back.
"""

from functools import partial

import jax
import jax.numpy as jnp

from alite_jax.errors import ConfigError
from alite_jax.ops.backend import platform
from alite_jax.ops.lane_kernels import backward, forward, memory
from alite_jax.ops.lane_windows import LANES, Problem

DTYPES = ("bfloat16", "float32")

# Bytes of a core's fast memory for a kernel: of 16 MiB, up to v4, and of what XLA gives
# to it on others. The compiler needs some for itself.
_MEMORY_TO_V4, _MEMORY = 13 * 2**20, 18 * 2**20

# Eight registers of each number: long enough to hide what a loop costs.
_ENOUGH_LANES = 1024

# Beyond it nobody has looked at what the compiler makes of it.
_LARGEST_WINDOW = 11


def lanes(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    row_embeddings: jax.Array,
    column_embeddings: jax.Array,
    *,
    border: str,
) -> jax.Array:
    """Attention by kernels; arguments and result as of `local_attention`.

    Differentiable once, in reverse mode.

    Raises:
        ConfigError: queries, keys or values of another dtype than `DTYPES`.
    """
    dtype = jnp.result_type(queries, keys, values)
    if dtype.name not in DTYPES:
        raise ConfigError(
            f"local_attention: method 'lanes' computes {', '.join(DTYPES)}, found"
            f" {dtype}; use 'auto'"
        )
    problem = _problem(queries.shape, dtype.itemsize, row_embeddings.shape[0], border)
    maps = (_along_lanes(problem, x.astype(dtype)) for x in (queries, keys, values))
    tables = jnp.stack([row_embeddings, column_embeddings]).astype(jnp.float32)
    output = _attend(problem, *maps, tables)
    return _along_channels(problem, output, queries.shape[0]).astype(values.dtype)


def can_run(
    queries: jax.Array, keys: jax.Array, values: jax.Array, kernel_size: int
) -> bool:
    """Whether the kernels can take maps of these shapes and dtypes on a TPU."""
    dtype = jnp.result_type(queries, keys, values)
    problem = _problem(queries.shape, dtype.itemsize, kernel_size, "zero")
    return (
        dtype.name in DTYPES
        and kernel_size <= _LARGEST_WINDOW
        and memory(problem, dtype.itemsize) <= _memory()
    )


def _memory() -> int:
    """What a kernel may take on this TPU.

    A program may also be compiled for a TPU that is not here: then it is a newer one.
    """
    kind = jax.local_devices()[0].device_kind
    old = kind.startswith(("TPU v2", "TPU v3", "TPU v4"))
    return _MEMORY_TO_V4 if old else _MEMORY


def _problem(
    shape: tuple[int, ...], itemsize: int, kernel_size: int, border: str
) -> Problem:
    """What kernels know of arrays `[batch, height, width, heads, head_dim]`.

    As many images go together as fill enough lanes and fit into memory, but at least
    one; all programs have about as many.
    """
    batch, height, width, heads, head_dim = shape
    problem = Problem(
        height,
        width,
        heads,
        head_dim,
        kernel_size,
        border,
        images=1,
        interpret=platform() != "tpu",
    )
    bytes_of_lane = memory(problem, itemsize) // problem.lanes
    most = min(_ENOUGH_LANES, _MEMORY_TO_V4 // bytes_of_lane // LANES * LANES)
    images = max(1, most // (height * width))
    programs = -(-batch // images)
    return problem._replace(images=-(-batch // programs))


def _along_lanes(problem: Problem, maps: jax.Array) -> jax.Array:
    """`[batch, height, width, heads, head_dim]` to `[g, d, h, p]`, with zeros."""
    batch, height, width, *vector = maps.shape
    programs = -(-batch // problem.images)
    pixels = problem.images * height * width
    missing = programs * problem.images - batch
    maps = jnp.pad(maps, ((0, missing), *[(0, 0)] * 4))
    maps = maps.reshape(programs, pixels, *vector)
    maps = jnp.pad(maps, ((0, 0), (0, problem.lanes - pixels), (0, 0), (0, 0)))
    return maps.transpose(0, 3, 2, 1)


def _along_channels(problem: Problem, maps: jax.Array, batch: int) -> jax.Array:
    """The inverse of `_along_lanes`."""
    pixels = problem.images * problem.height * problem.width
    maps = maps[..., :pixels].transpose(0, 3, 2, 1)
    shape = (problem.height, problem.width, problem.heads, problem.head_dim)
    return maps.reshape(-1, *shape)[:batch]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(problem: Problem, *inputs: jax.Array) -> jax.Array:
    """The output `[g, d, h, p]`, of queries, keys, values and tables."""
    return _attend_forward(problem, *inputs)[0]


def _attend_forward(
    problem: Problem, *inputs: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    output, largest, inverse = forward(problem, *inputs)
    return output, (*inputs, largest, inverse, output)


def _attend_backward(
    problem: Problem, residuals: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, ...]:
    queries, keys, values, tables, largest, inverse, output = residuals
    mean = jnp.einsum(
        "gdhp,gdhp->ghp", gradient, output, preferred_element_type=jnp.float32
    )
    *gradients, by_row, by_column = backward(
        problem, queries, keys, values, tables, largest, inverse, mean, gradient
    )
    halves = queries[:, : problem.half], queries[:, problem.half :]
    for_tables = [
        jnp.einsum(
            "gkhp,gehp->ke",
            slopes,
            half.astype(jnp.float32),
            precision=jax.lax.Precision.HIGHEST,
        )
        for slopes, half in zip((by_row, by_column), halves, strict=True)
    ]
    return *gradients, jnp.stack(for_tables)


_attend.defvjp(_attend_forward, _attend_backward)
