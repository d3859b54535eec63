"""The loops of `row_attention`: each function becomes one or a few fused loops.

XLA on CPU fuses cheap arithmetic into whatever uses it and computes it once for each
use; the logits of a window would be computed again for each of the sums over them.
So every function here is a call that XLA may not inline: what it returns is an array.

Columns are the innermost axis everywhere. Sums over the window and over head_dim are
written out, since XLA vectorises a sum of shifted products but no such reduction.

Shapes: a and b row and column of the window (k of each), m maps, d head_dim, e half of
it, W columns of the images that lie side by side, W+ with the halo of the window (k - 1
columns of each image more), W++ with that of both sides twice (2 k - 2 more). All are
float32.
"""

import functools
from collections.abc import Callable, Iterable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

T = TypeVar("T")


def kernel(function: Callable[..., T]) -> Callable[..., T]:
    """Makes of `function` a call that XLA compiles on its own."""

    # Calls are inlined where an exported program gets its batch; the barrier stays.
    @jax.jit
    def compiled(*arguments: jax.Array) -> T:
        results: T = jax.lax.optimization_barrier(function(*arguments))
        return results

    @functools.wraps(function)
    def call(*arguments: jax.Array) -> T:
        with set_xla_metadata(inlineable="false"):
            return compiled(*arguments)

    return call


@kernel
def window(maps: jax.Array, start: jax.Array, rows: jax.Array) -> jax.Array:
    """Copies rows from `start` on, as many as `rows` has, `[a, m, d, W+]`."""
    return jax.lax.dynamic_slice_in_dim(maps, start, rows.shape[0], axis=0)


@kernel
def relative_logits(
    query: jax.Array,
    row_embeddings: jax.Array,
    column_embeddings: jax.Array,
    no_row: jax.Array,
    no_column: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Row and column part of `q . r`.

    Args:
        query: `[m, d, W]`.
        row_embeddings: `[a, e]`.
        column_embeddings: `[b, e]`.
        no_row: `[a, W or 1]`, added to the row part.
        no_column: `[b, W]`, added to the column part.

    Returns:
        `[m, a, W]` and `[m, b, W]`.
    """
    size, half = row_embeddings.shape

    def part(query: jax.Array, embeddings: jax.Array) -> jax.Array:
        return _sum(
            query[:, None, x] * embeddings[:, x].reshape(1, size, 1)
            for x in range(half)
        )

    return (
        part(query[:, :half], row_embeddings) + no_row[None],
        part(query[:, half:], column_embeddings) + no_column[None],
    )


@kernel
def logits(
    query: jax.Array, key: jax.Array, row_part: jax.Array, column_part: jax.Array
) -> jax.Array:
    """Logits `[m, b, a, W]` of a row of queries.

    Args:
        query: `[m, d, W]`.
        key: `[a, m, d, W+]`.
        row_part: `[m, a, W]`.
        column_part: `[m, b, W]`.
    """
    return _by_column(
        key, lambda b: _dot(query, key, b) + row_part + column_part[:, b, None]
    )


@kernel
def largest(logits: jax.Array) -> jax.Array:
    """Maximum over the window, `[m, W]`."""
    return jnp.max(logits, axis=(1, 2))


@kernel
def weights(logits: jax.Array, largest: jax.Array) -> jax.Array:
    """`exp(logits - largest)`, `[m, b, a, W]`, where `largest` is `[m, W]`."""
    return jnp.exp(logits - largest[:, None, None])


@kernel
def total(weights: jax.Array) -> jax.Array:
    """Sum over the window, `[m, W]`."""
    return jnp.sum(weights, axis=(1, 2))


@kernel
def weighted_sum(weights: jax.Array, maps: jax.Array) -> jax.Array:
    """Sum over the window of weights `[m, b, a, W]` times maps `[a, m, d, W+]`."""
    _, columns, rows, width = weights.shape
    images = _images(width, maps.shape[-1], columns)
    return _sum(
        weights[:, b, a, None] * _columns(maps[a], b * images, width)
        for a in range(rows)
        for b in range(columns)
    )


@kernel
def inner(one: jax.Array, other: jax.Array) -> jax.Array:
    """Sum over head_dim of the product of two `[m, d, W]`: `[m, W]`."""
    return _sum(one[:, x] * other[:, x] for x in range(one.shape[1]))


@kernel
def logits_gradient(
    weights: jax.Array, value: jax.Array, gradient: jax.Array, mean: jax.Array
) -> jax.Array:
    """Gradient of the logits through the softmax, `[m, b, a, W]`.

    Args:
        weights: `[m, b, a, W]`.
        value: `[a, m, d, W+]`.
        gradient: `[m, d, W]`, of the output, divided by the total weight.
        mean: `[m, W]`, its product with the output.
    """
    return _by_column(
        value, lambda b: weights[:, b] * (_dot(gradient, value, b) - mean[:, None])
    )


@kernel
def marginals(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums of `[m, b, a, W]` over b and over a: `[m, a, W]` and `[m, b, W]`."""
    return jnp.sum(logits, axis=1), jnp.sum(logits, axis=2)


@kernel
def relative_gradient(
    by_row: jax.Array,
    by_column: jax.Array,
    row_embeddings: jax.Array,
    column_embeddings: jax.Array,
) -> jax.Array:
    """Gradient of the queries through `relative_logits`, `[m, d, W]`.

    Args:
        by_row: `[m, a, W]`, gradient of the row part.
        by_column: `[m, b, W]`, gradient of the column part.
        row_embeddings: `[a, e]`.
        column_embeddings: `[b, e]`.
    """
    size, half = row_embeddings.shape

    def part(gradient: jax.Array, embeddings: jax.Array) -> jax.Array:
        return _sum(
            gradient[:, a, None] * embeddings[a].reshape(1, half, 1)
            for a in range(size)
        )

    parts = part(by_row, row_embeddings), part(by_column, column_embeddings)
    return jnp.concatenate(parts, axis=1)


@kernel
def widen(maps: jax.Array, key: jax.Array) -> jax.Array:
    """Zeros on both sides of `[..., W]`, k - 1 columns each as in `key`: W++."""
    zeros = jnp.zeros((*maps.shape[:-1], key.shape[-1] - maps.shape[-1]), maps.dtype)
    return jnp.concatenate([zeros, maps, zeros], axis=-1)


@kernel
def weighted_sum_transpose(
    sums: jax.Array, start: jax.Array, weights: jax.Array, query: jax.Array
) -> jax.Array:
    """Adds to each key what the queries send it: the transpose of `weighted_sum`.

    Args:
        sums: `[padded rows, m, d, W+]`, of which the window is from `start` on.
        start: int32 scalar.
        weights: `[m, b, a, W++]`, from `widen`.
        query: `[m, d, W++]`, from `widen`.

    Returns:
        The new sums of the window, `[a, m, d, W+]`.
    """
    size, width = weights.shape[1], sums.shape[-1]
    images = _images(width, weights.shape[-1], size)
    return jax.lax.dynamic_slice_in_dim(sums, start, size, axis=0) + _sum(
        _columns(weights[:, b], (size - 1 - b) * images, width).swapaxes(0, 1)[
            :, :, None
        ]
        * _columns(query, (size - 1 - b) * images, width)[None]
        for b in range(size)
    )


def _dot(query: jax.Array, key: jax.Array, b: int) -> jax.Array:
    """Products of queries with the keys `b` columns on, `[m, a, W]`."""
    head_dim, width = query.shape[1:]
    images = _images(width, key.shape[-1], key.shape[0])
    channels = (
        _columns(
            jax.lax.index_in_dim(key, x, axis=2, keepdims=False), b * images, width
        )
        for x in range(head_dim)
    )
    return _sum(
        jax.lax.index_in_dim(query, x, axis=1) * channel.swapaxes(0, 1)
        for x, channel in enumerate(channels)
    )


def _images(narrow: int, wide: int, size: int) -> int:
    """Images side by side, from the widths W and W+, or W+ and W++."""
    return (wide - narrow) // max(1, size - 1)


def _by_column(keys: jax.Array, function: Callable[[int], jax.Array]) -> jax.Array:
    """Stacks `[m, a, W]` for each column b of the window to `[m, b, a, W]`."""
    return jnp.stack([function(b) for b in range(keys.shape[0])], axis=1)


def _columns(maps: jax.Array, start: int, width: int) -> jax.Array:
    return jax.lax.slice_in_dim(maps, start, start + width, axis=maps.ndim - 1)


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
    """The sum, in as many operations as there are terms: `sum` starts with 0."""
    return functools.reduce(jax.lax.add, terms)
