"""Layers of many sizes in one matrix, and exact top-k within each of them.

A network has dozens of layers. One small program for all of them compiles in a fraction
of the time of one each, so their entries are laid out in rows of equal length, every
layer from the start of a row, the rest of its last row padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

_ROW = 512  # entries


@dataclass(frozen=True)
class Layout:
    """Where the layers of given sizes lie in the matrix.

    Attributes:
        sizes: number of entries of each layer, at least one each.
    """

    sizes: tuple[int, ...]

    @cached_property
    def layer_of_row(self) -> np.ndarray:
        """The layer that each row belongs to, `[rows]`."""
        rows = [-(-size // _ROW) for size in self.sizes]
        return np.repeat(np.arange(len(self.sizes)), rows)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix: (rows, entries)."""
        return len(self.layer_of_row), _ROW

    def pack(self, layers: Sequence[jax.Array]) -> jax.Array:
        """Lays out one array a layer, of any shape; padding is zero or False."""
        rows = [
            jnp.pad(jnp.ravel(layer), (0, -layer.size % _ROW)).reshape(-1, _ROW)
            for layer in layers
        ]
        return jnp.concatenate(rows)

    def unpack(self, matrix: jax.Array) -> list[jax.Array]:
        """Takes the layers out again, each `[size]`."""
        starts = np.searchsorted(self.layer_of_row, np.arange(len(self.sizes)))
        return [
            jnp.ravel(matrix[start : start - (-size // _ROW)])[:size]
            for start, size in zip(starts, self.sizes, strict=True)
        ]

    def sums(self, matrix: jax.Array) -> jax.Array:
        """Sums over each layer, `[layers]`; padding counts."""
        return jax.ops.segment_sum(
            jnp.sum(matrix, axis=1),
            self.layer_of_row,
            num_segments=len(self.sizes),
            indices_are_sorted=True,
        )

    def per_row(self, values: jax.Array) -> jax.Array:
        """Gives every row its layer's value: `[layers]` to `[rows, 1]`."""
        return values[self.layer_of_row][:, None]

    def top(self, scores: jax.Array, counts: jax.Array) -> jax.Array:
        """Marks exactly the highest scores of each layer; of equal ones, the first.

        The thresholds are found bit by bit, for all layers at once: 32 counts over the
        matrix, which compile and run several times as fast as sorting.

        Args:
            scores: matrix, float32; no NaN and no negative zero. Padding and whatever
                else must not be marked is `-inf`.
            counts: `[layers]`, integers, at most the number of scores above `-inf`.

        Returns:
            bool matrix.
        """
        # Unsigned integers in the order of the floats: negative ones flip all their
        # bits, positive ones the sign.
        bits = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.uint32)
        ordered = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))

        def decide_bit(step: jax.Array, thresholds: jax.Array) -> jax.Array:
            higher = thresholds | (jnp.uint32(1) << (31 - step).astype(jnp.uint32))
            enough = self.sums(ordered >= self.per_row(higher)) >= counts
            return jnp.where(enough, higher, thresholds)

        start = jnp.zeros(len(self.sizes), jnp.uint32)
        thresholds = self.per_row(jax.lax.fori_loop(0, 32, decide_bit, start))
        above, equal = ordered > thresholds, ordered == thresholds
        missing = self.per_row(counts - self.sums(above))
        return above | (equal & (self._ranks(equal) <= missing))

    def _ranks(self, marks: jax.Array) -> jax.Array:
        """Numbers the marked entries of each layer from 1 on."""
        in_row = jnp.cumsum(marks, axis=1)
        before = jnp.cumsum(in_row[:, -1]) - in_row[:, -1]  # in the rows above
        starts = np.searchsorted(self.layer_of_row, self.layer_of_row)
        return in_row + (before - before[starts])[:, None]
