"""What the kernels of `lane_kernels` do to pixels: windows, products, logits.

Arrays in a kernel are float32 `[h, p]`, one channel or number of each pixel and head,
or references to several of them.

Shapes: p lanes, h heads, d head_dim, e half of it, k kernel_size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.pallas import tpu

from alite_jax.ops.relative_positions import EXCLUDED

# Of a vector register.
LANES, SUBLANES = 128, 8


class Problem(NamedTuple):
    """What kernels know when they are compiled.

    Attributes:
        height: rows of the map.
        width: columns of the map.
        heads: of each pixel.
        head_dim: channels of a head.
        kernel_size: side of the window.
        border: `"zero"` or `"mask"`.
        images: that a program takes, side by side.
        interpret: whether to compute by JAX's interpreter of kernels.
    """

    height: int
    width: int
    heads: int
    head_dim: int
    kernel_size: int
    border: str
    images: int
    interpret: bool

    @property
    def lanes(self) -> int:
        """Pixels of a program, and what fills up the last register."""
        return -(-self.images * self.height * self.width // LANES) * LANES

    @property
    def half(self) -> int:
        """Channels of an embedding."""
        return self.head_dim // 2

    def shape(self, *leading: int) -> tuple[int, ...]:
        """That of numbers of all pixels and heads."""
        return (*leading, self.heads, self.lanes)

    def places(self) -> np.ndarray:
        """Row and column of each pixel in its image, int32 `[2, h, p]`."""
        pixel = np.arange(self.lanes) % (self.height * self.width)
        places = np.stack([pixel // self.width, pixel % self.width])
        return np.repeat(places[:, None], self.heads, axis=1).astype(np.int32)


class Windows(NamedTuple):
    """The windows around the pixels of a program.

    Attributes:
        problem: what is known of them.
        tables: embeddings of rows and columns, flat `[2 * k * e]`.
        places: row and column of each pixel, twice `[h, p]`.
    """

    problem: Problem
    tables: Any
    places: tuple[jax.Array, jax.Array]

    def row(self, maps: Any, c: jax.Array, a: Any) -> jax.Array:
        """Channel `c` in row `a` of each window, zeros outside the map."""
        offset = self._offset(a)
        found = self._from(maps[c].astype(jnp.float32), offset * self.problem.width)
        return jnp.where(self._inside(0, offset), found, 0.0)

    def column(self, row: jax.Array, b: int) -> jax.Array:
        """Column `b` of what `row` has found, zeros outside the map."""
        offset = self._offset(b)
        return jnp.where(self._inside(1, offset), self._from(row, offset), 0.0)

    def sent(self, channel: jax.Array, weights: Any, a: Any) -> jax.Array:
        """What reaches each pixel from those who have it in row `a` of their window.

        The transpose of `row` and `column`.

        Args:
            channel: what pixels send.
            weights: by which they multiply it, one for each column, `[k, h, p]`.
            a: row of the window.
        """
        channel = channel.astype(jnp.float32)
        found = jnp.zeros_like(channel)
        for b in range(self.problem.kernel_size):
            offset = self._offset(b)
            sent = jnp.where(self._inside(1, offset), weights[b] * channel, 0.0)
            found += self._from(sent, -offset)
        offset = self._offset(a)
        found = jnp.where(self._inside(0, offset), found, 0.0)
        return self._from(found, -offset * self.problem.width)

    def products(self, left: Any, right: Any, a: Any, sums: Any) -> None:
        """Writes the products of pixels with row `a` of their window, `[k, h, p]`."""
        sums[...] = jnp.zeros_like(sums)

        def channel(c: jax.Array) -> None:
            factor = left[c].astype(jnp.float32)
            row = self.row(right, c, a)
            for b in range(self.problem.kernel_size):
                sums[b] += factor * self.column(row, b)

        for_each(self.problem.head_dim, channel)

    def logits(
        self, queries: Any, keys: Any, column_logits: Any, a: Any, logits: Any
    ) -> None:
        """Writes those of row `a` of each window, `[k, h, p]`."""
        self.products(queries, keys, a, logits)
        row_logit = self._relative_logit(queries, 0, a)
        for b in range(self.problem.kernel_size):
            logit = logits[b] + row_logit + column_logits[b]
            if self.problem.border == "mask":
                inside = self._inside(0, self._offset(a))
                inside &= self._inside(1, self._offset(b))
                logit = jnp.where(inside, logit, EXCLUDED)
            logits[b] = logit

    def column_logits(self, queries: Any, column_logits: Any) -> None:
        """Writes the products of queries with each column's embedding, `[k, h, p]`."""
        for b in range(self.problem.kernel_size):
            column_logits[b] = self._relative_logit(queries, 1, b)

    def embedding(self, axis: int, offset: Any, e: jax.Array) -> jax.Array:
        """Channel `e` of the embedding of a row or column of the window."""
        row = axis * self.problem.kernel_size + offset
        number: jax.Array = self.tables[row * self.problem.half + e]
        return number

    def _relative_logit(self, queries: Any, axis: int, offset: Any) -> jax.Array:
        def channel(e: jax.Array, total: jax.Array) -> jax.Array:
            factor = queries[axis * self.problem.half + e].astype(jnp.float32)
            return total + self.embedding(axis, offset, e) * factor

        none = jnp.zeros(self.problem.shape(), jnp.float32)
        return lax.fori_loop(0, self.problem.half, channel, none)

    def _offset(self, at: Any) -> Any:
        """From a pixel to a row or column of its window."""
        return at - self.problem.kernel_size // 2

    def _from(self, pixels: jax.Array, lanes: Any) -> jax.Array:
        """What is a number of lanes further."""
        return tpu.roll(pixels, (-lanes) % self.problem.lanes, axis=1)

    def _inside(self, axis: int, offset: Any) -> jax.Array:
        """Where the pixel that many rows or columns further is in the map."""
        at = self.places[axis] + offset
        return (at >= 0) & (at < (self.problem.height, self.problem.width)[axis])


def for_each(count: int, do: Callable[[jax.Array], None]) -> None:
    """Calls a function with 0 to `count` - 1, one after another."""
    lax.fori_loop(0, count, lambda i, _: do(i), None)
