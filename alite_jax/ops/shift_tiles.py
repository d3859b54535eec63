"""How large maps are shared out among programs, and where a program loads and stores.

A program has a few neighbouring columns of some rows of an image, with all heads. Pairs
of a row and a head are the axis along which its threads lie, heads first, as they do in
memory. The columns are unrolled: what is there for each of them is in a list.

Shapes: n pairs of a row and a head, s columns, c channels, k kernel_size.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from alite_jax.ops.gpu_kernels import (
    Places,
    Problem,
    load_vectors,
    places,
    power_of_two,
    store_vectors,
)

# Pairs of a row and a head in a program, numbers in their vectors, how many of those a
# thread holds, and bytes of a vector up to which a program has many columns. The
# compiler then has just enough registers (benchmarks/kernel_registers.py).
_PAIRS = 128
_NUMBERS = 2048
_NUMBERS_A_THREAD = 8
_BYTES = 32


class Tile:
    """The places of a program: within a kernel.

    Attributes:
        problem: of the kernel.
        across: columns.
        program: its number among all.
    """

    def __init__(self, problem: Problem, across: int):
        self.problem, self.across = problem, across
        heads = power_of_two(problem.heads)
        pair = lax.iota(jnp.int32, _rows(problem) * heads)
        self._x = pl.program_id(0) * across
        self._y = pl.program_id(1) * _rows(problem) + lax.div(pair, heads)
        self._image = pl.program_id(2)
        self._head = lax.rem(pair, heads)
        self.program = pl.program_id(2) * pl.num_programs(1) + pl.program_id(1)
        self.program = self.program * pl.num_programs(0) + pl.program_id(0)

    def at(self, column: int, row: int | jax.Array = 0) -> Places:
        """Places `[n]`, so many columns and rows from the first of the program."""
        x, y = self._x + column, self._y + row
        return places(self.problem, self._image, y, x, self._head)

    def own(self) -> list[Places]:
        """Places of the program, s of `[n]`."""
        return [self.at(s) for s in range(self.across)]

    def vectors(self, ref: Any) -> list[jax.Array]:
        """Those of the program, s of `[n, c]`, float32."""
        return [self.load(ref, at) for at in self.own()]

    def load(self, ref: Any, at: Places) -> jax.Array:
        """Vectors `[n, c]`, float32."""
        return load_vectors(self.problem, ref, at).astype(jnp.float32)

    def store(self, ref: Any, vectors: list[jax.Array]) -> None:
        """Writes vectors of the program, s of `[n, c]`."""
        for at, each in zip(self.own(), vectors, strict=True):
            store_vectors(self.problem, ref, at, each)

    def window(self, row: jax.Array) -> list[tuple[Places, list[tuple[int, int]]]]:
        """What the windows of the program hold of a row, as far from its own.

        Returns:
            Places `[n]` column by column. Beside them is which columns s of the program
            have them in their window, and in which of its k columns.
        """
        size, halo = self.problem.kernel_size, self.problem.halo
        return [
            (
                self.at(j - halo, row),
                [(s, j - s) for s in range(self.across) if 0 <= j - s < size],
            )
            for j in range(size + self.across - 1)
        ]

    def zeros(self) -> list[jax.Array]:
        """Vectors to begin sums with, s of `[n, c]`."""
        shape = (*self._head.shape, self.problem.channels)
        return [jnp.zeros(shape, jnp.float32)] * self.across

    def numbers(self, number: float) -> list[jax.Array]:
        """The same number for each place, s of `[n]`."""
        return [jnp.full(self._head.shape, number, jnp.float32)] * self.across


def columns_forward(problem: Problem) -> int:
    """Columns of a program. More share what is loaded, and need more registers."""
    wide = problem.channels * problem.itemsize > _BYTES
    return 2 if wide or problem.kernel_size > 7 else 4


def columns_backward(problem: Problem) -> int:
    """Columns of a program in the backward pass, where each needs twice as much."""
    return columns_forward(problem) // 2


def grid(problem: Problem, across: int) -> tuple[int, int, int]:
    """Programs along the columns, the rows and the images."""
    columns = pl.cdiv(problem.width, across)
    return columns, pl.cdiv(problem.height, _rows(problem)), problem.batch


def warps(problem: Problem) -> int:
    """Of a program."""
    numbers = _rows(problem) * power_of_two(problem.heads) * problem.channels
    return min(8, max(1, numbers // (32 * _NUMBERS_A_THREAD)))


def _rows(problem: Problem) -> int:
    """Rows of a program."""
    heads = power_of_two(problem.heads)
    most = min(_PAIRS // heads, _NUMBERS // (heads * problem.channels))
    return max(1, min(power_of_two(problem.height), most))
