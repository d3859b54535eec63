"""What the attention kernels for GPUs share: their call, addresses, loads and stores.

The kernels are written in Pallas, for its Triton backend. JAX announces that a future
version will be without it, in a warning as a program is lowered; those up to 0.12,
which the requirements name, have it. It is taken nonetheless:

- Mosaic GPU, which JAX recommends instead, is made for Hopper's and Blackwell's matrix
  units and asynchronous copies. Large maps have 8 or 16 channels a head, too few for
  matrix units; their kernel is arithmetic on ordinary cores, and runs on an A100, too.
- jax_triton and Triton are two more packages to install, whose kernels do not run in
  JAX's interpreter, so that nothing of them could be tested without a GPU.
- CUDA through JAX's foreign functions would have to be compiled by those who install.

Of that backend, kernels use what this module wraps: `triton.load`, `triton.store` and
`triton.CompilerParams`. All else is `jax.numpy` and `pl.program_id`, so that a change
of backend begins and, with luck, ends here.

Kernels see every array flat and compute where in it they load and store, so that
nothing is transposed or padded in memory.

Shapes: n places, each a pixel and a head; c channels, the width of a kernel's vectors.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from alite_jax.ops.relative_positions import EXCLUDED

# Nobody who trains can do anything about it, and as an error it would end the run.
warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated")

# The smallest side of a matrix that matrix units take.
LEAST_SIDE = 16

# Past all arrays: where the interpreter, which writes in masked places, may do so.
_NOWHERE = 2**30


class Problem(NamedTuple):
    """What kernels know when they are compiled.

    Attributes:
        batch: images.
        height: rows of the map.
        width: columns of the map.
        heads: of each pixel.
        head_dim: channels of a head.
        itemsize: bytes of a channel.
        kernel_size: side of the window.
        border: `"zero"` or `"mask"`.
        whole_map: whether a program takes a whole map of a head, by matrix units.
        interpret: whether to compute by JAX's interpreter of kernels.
    """

    batch: int
    height: int
    width: int
    heads: int
    head_dim: int
    itemsize: int
    kernel_size: int
    border: str
    whole_map: bool
    interpret: bool

    @property
    def halo(self) -> int:
        """Rows or columns that the window reaches beyond its centre."""
        return self.kernel_size // 2

    @property
    def channels(self) -> int:
        """Width of a vector in a kernel: beyond `head_dim`, zeros."""
        return max(LEAST_SIDE if self.whole_map else 1, power_of_two(self.head_dim))


class Places(NamedTuple):
    """Where the vectors of some pixels and heads are.

    Attributes:
        number: int32 `[n]`, of a vector in its array.
        valid: bool `[n]`, whether there is one.
    """

    number: jax.Array
    valid: jax.Array


def power_of_two(number: int) -> int:
    """The smallest one that is at least `number`."""
    return 1 << (number - 1).bit_length()


def call(
    problem: Problem,
    kernel: Callable[..., None],
    name: str,
    grid: tuple[int, ...],
    warps: int,
    outputs: Sequence[tuple[tuple[int, ...], Any]],
    *inputs: jax.Array,
) -> list[jax.Array]:
    """Runs a kernel, whose inputs and outputs are flat, once for each place of a grid.

    Args:
        problem: the kernel's first argument.
        kernel: its others are references to inputs, then to outputs.
        name: by which profilers show it.
        grid: its first axis changes fastest.
        warps: of 32 threads, for a program.
        outputs: their shapes and dtypes.
        inputs: of any shape.
    """
    found = pl.pallas_call(
        partial(kernel, problem),
        grid=grid,
        out_shape=[
            jax.ShapeDtypeStruct((math.prod(shape),), dtype) for shape, dtype in outputs
        ],
        interpret=problem.interpret,
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
        name=name,
    )(*(array.reshape(-1) for array in inputs))
    return [
        array.reshape(shape) for array, (shape, _) in zip(found, outputs, strict=True)
    ]


def places(
    problem: Problem, image: jax.Array, y: jax.Array, x: jax.Array, head: jax.Array
) -> Places:
    """Those of some rows, columns and heads of an image, inside the map or not."""
    pixel = (image * problem.height + y) * problem.width + x
    valid = (y >= 0) & (y < problem.height) & (x >= 0) & (x < problem.width)
    if power_of_two(problem.heads) > problem.heads:
        valid = valid & (head < problem.heads)
    return Places(pixel * problem.heads + head, valid)


def load(ref: Any, at: Places, missing: float = 0.0) -> jax.Array:
    """A number for each place, `[n]`."""
    return triton.load(ref.at[at.number], mask=at.valid, other=missing)


def store(problem: Problem, ref: Any, at: Places, numbers: jax.Array) -> None:
    """Writes a number for each valid place."""
    _store(problem, ref, at.number, at.valid, numbers)


def load_vectors(problem: Problem, ref: Any, at: Places) -> jax.Array:
    """A vector for each place, `[n, c]`; zeros where there is none."""
    index, valid = _elements(problem, at)
    return triton.load(ref.at[index], mask=valid, other=0.0)


def store_vectors(problem: Problem, ref: Any, at: Places, vectors: jax.Array) -> None:
    """Writes a vector `[n, c]` for each valid place."""
    _store(problem, ref, *_elements(problem, at), vectors)


def load_embedding(problem: Problem, ref: Any, axis: int, offset: Any) -> jax.Array:
    """A row `[1, c]` of the tables `[2, kernel_size, c]`."""
    row = axis * problem.kernel_size + offset
    return triton.load(ref.at[row * problem.channels + _channel(problem)])[None, :]


def store_embedding(
    problem: Problem, ref: Any, program: Any, axis: int, offset: Any, row: jax.Array
) -> None:
    """Writes a row `[c]` of a program's tables, of `[programs, 2, kernel_size, c]`."""
    row_index = (2 * program + axis) * problem.kernel_size + offset
    triton.store(ref.at[row_index * problem.channels + _channel(problem)], row)


def dot(vectors: jax.Array, others: jax.Array) -> jax.Array:
    """Inner products along the last axis, without matrix units, in float32."""
    return jnp.sum(vectors * others, axis=-1)


def load_softmax(
    largest_ref: Any, inverse_ref: Any, at: Places
) -> tuple[jax.Array, jax.Array]:
    """Of each softmax the largest logit and the inverse of its sum, `[n]`.

    Where there is no query, they make all weights 0.
    """
    return load(largest_ref, at, missing=-EXCLUDED), load(inverse_ref, at)


def softmax_weight(logit: jax.Array, softmax: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The weight of a logit, by what `load_softmax` has found."""
    largest, inverse = softmax
    return jnp.exp(logit - largest) * inverse


def _channel(problem: Problem) -> jax.Array:
    return lax.iota(jnp.int32, problem.channels)


def _elements(problem: Problem, at: Places) -> tuple[jax.Array, jax.Array]:
    """Index and validity of each channel of each place, `[n, c]`."""
    channel = _channel(problem)
    index = (at.number * problem.head_dim)[:, None] + channel[None, :]
    valid = at.valid[:, None]
    if problem.channels > problem.head_dim:
        valid = valid & (channel < problem.head_dim)[None, :]
    return index, jnp.broadcast_to(valid, index.shape)


def _store(
    problem: Problem, ref: Any, index: jax.Array, valid: jax.Array, values: jax.Array
) -> None:
    if problem.interpret:
        # The interpreter writes everywhere, what was there before where it is masked,
        # and must not do so over what is stored at the same place.
        index = jnp.where(valid, index, _NOWHERE)
    triton.store(ref.at[index], values.astype(ref.dtype), mask=valid)
