"""Local attention by kernels for NVIDIA GPUs, from the Ampere generation on.

The forward pass is one kernel, and so is the backward pass on small maps; on large ones
it is two. Nothing that has a number for each key of each window is ever in memory:
kept are the inputs, the output and two numbers of each query's softmax, from which the
backward pass computes the weights again. No two programs add to the same place;
gradients of the embeddings come as partial sums, one of each program, so that equal
runs are equal. Logits, softmax and sums are float32.

Maps of up to 8x8 pixels in bfloat16 or float16 go through matrix units (`map_kernels`),
all others through shifted products (`shift_kernels`). Without a GPU both run in JAX's
interpreter, slowly.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from alite_jax.errors import ConfigError
from alite_jax.ops import map_kernels, shift_kernels
from alite_jax.ops.backend import platform
from alite_jax.ops.gpu_kernels import Problem, power_of_two

DTYPES = ("bfloat16", "float16", "float32")

# Pixels of a map, its sides filled up to powers of two, that a program takes whole.
_WHOLE_MAP = 64

# Beyond these nobody has looked at what the compiler makes of them.
_LARGEST_WINDOW = 11
_MOST_CHANNELS = 2048


def fused(
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
            f"local_attention: method 'fused' computes {', '.join(DTYPES)}, found"
            f" {dtype}; use 'auto'"
        )
    batch, height, width, heads, head_dim = queries.shape
    problem = Problem(
        batch,
        height,
        width,
        heads,
        head_dim,
        dtype.itemsize,
        kernel_size=row_embeddings.shape[0],
        border=border,
        whole_map=_goes_whole(height, width, dtype),
        interpret=platform() != "gpu",
    )
    half, missing = head_dim // 2, problem.channels - head_dim
    tables = [
        jnp.pad(table.astype(jnp.float32), ((0, 0), padding))
        for table, padding in (
            (row_embeddings, (0, half + missing)),
            (column_embeddings, (half, missing)),
        )
    ]
    maps = (x.astype(dtype) for x in (queries, keys, values))
    return _attend(problem, *maps, jnp.stack(tables)).astype(values.dtype)


def _goes_whole(height: int, width: int, dtype: np.dtype) -> bool:
    """Whether a program is to take a whole map, by matrix units.

    Float32 products would be rounded by them, or need too many registers.
    """
    pixels = power_of_two(height) * power_of_two(width)
    return pixels <= _WHOLE_MAP and dtype.itemsize == 2


def can_run(
    queries: jax.Array, keys: jax.Array, values: jax.Array, kernel_size: int
) -> bool:
    """Whether the kernels can take maps of these shapes and dtypes on this GPU."""
    *_, heads, head_dim = queries.shape
    return (
        jnp.result_type(queries, keys, values).name in DTYPES
        and queries.size < 2**31  # Kernels count in 32 bits.
        and kernel_size <= _LARGEST_WINDOW
        and heads * head_dim <= _MOST_CHANNELS
        and _has_matrix_units()
    )


def _has_matrix_units() -> bool:
    """Whether the GPU is one of NVIDIA's, of compute capability 8.0 or above.

    A program may also be compiled for a GPU that is not here: then it is taken for one.
    """
    capability = getattr(jax.local_devices()[0], "compute_capability", "8.0")
    major = str(capability).partition(".")[0]  # Those of AMD are such as gfx90a.
    return major.isdigit() and int(major) >= 8


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(problem: Problem, *inputs: jax.Array) -> jax.Array:
    """The output, of queries, keys, values and tables."""
    return _attend_forward(problem, *inputs)[0]


def _attend_forward(
    problem: Problem, *inputs: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    kernels = map_kernels if problem.whole_map else shift_kernels
    output, largest, inverse = kernels.forward(problem, *inputs)
    return output, (*inputs, output, largest, inverse)


def _attend_backward(
    problem: Problem, residuals: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, ...]:
    kernels = map_kernels if problem.whole_map else shift_kernels
    return kernels.backward(problem, *residuals, gradient)


_attend.defvjp(_attend_forward, _attend_backward)
