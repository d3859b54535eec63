"""Local attention on a GPU by matrix units, for maps of at most 64 pixels.

A program holds one head of one image: all of its queries, keys and values, whose
products are two matrix products forward and five backward. Keys that the window does
not hold are left out of the softmax. With `border="zero"`, positions outside the map,
whose keys and values are zero, enter it without a matrix product: their logits are
`q . r` alone, and the output gets nothing from them.

Shapes: n pixels, the map's and what fills its sides up to powers of two; u and v row
and column of a key, c channels, k kernel_size.
"""

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from alite_jax.ops.gpu_kernels import (
    LEAST_SIDE,
    Problem,
    call,
    dot,
    load_embedding,
    load_softmax,
    load_vectors,
    places,
    power_of_two,
    softmax_weight,
    store,
    store_embedding,
    store_vectors,
)
from alite_jax.ops.relative_positions import EXCLUDED


class Map:
    """The pixels of a program, which are its queries and its keys.

    Attributes:
        at: their places `[n]`.
        rows: int32 `[n, u]`, the row of the window in which a query sees a row of keys.
        columns: int32 `[n, v]`, likewise for columns.
    """

    def __init__(self, problem: Problem):
        height, width = _sides(problem)
        pixel = lax.iota(jnp.int32, height * width)
        self._y, self._x = lax.div(pixel, width), lax.rem(pixel, width)
        self._problem = problem
        self.at = places(
            problem, pl.program_id(1), self._y, self._x, head=pl.program_id(0)
        )
        self.rows = _offsets(self._y, height, problem.halo)
        self.columns = _offsets(self._x, width, problem.halo)

    def logits(
        self, products: jax.Array, by_row: list[jax.Array], by_column: list[jax.Array]
    ) -> jax.Array:
        """Logits `[n, n]` of all keys of the map, `EXCLUDED` beyond the window.

        Args:
            products: `q . k`, `[n, n]`.
            by_row: `q . r` of each row of the window, k of `[n]`.
            by_column: likewise of each column.
        """
        rows = _spread(by_row, self.rows, self._problem.height)
        columns = _spread(by_column, self.columns, self._problem.width)
        relative = rows[:, :, None] + columns[:, None, :]
        return products + relative.reshape(products.shape)

    def outside(
        self, by_row: list[jax.Array], by_column: list[jax.Array]
    ) -> list[list[jax.Array]]:
        """Logits of the positions outside the map, where the softmax has them.

        Returns:
            For each row and each column of the window `[n]`, `EXCLUDED` for queries
            that have a key there.
        """
        problem = self._problem
        if problem.border == "mask":
            return []
        rows = _beyond(self._y, problem, problem.height)
        columns = _beyond(self._x, problem, problem.width)
        return [
            [
                jnp.where(y | x, row + column, EXCLUDED)
                for x, column in zip(columns, by_column, strict=True)
            ]
            for y, row in zip(rows, by_row, strict=True)
        ]


def forward(
    problem: Problem,
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    tables: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `shift_kernels.forward`."""
    numbers = (queries.shape[:-1], jnp.float32)
    output, largest, inverse = call(
        problem,
        _forward_kernel,
        "local_attention_map_forward",
        (problem.heads, problem.batch),
        _warps(problem),
        [(values.shape, values.dtype), numbers, numbers],
        *(queries, keys, values, tables),
    )
    return output, largest, inverse


def backward(
    problem: Problem,
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    tables: jax.Array,
    output: jax.Array,
    largest: jax.Array,
    inverse: jax.Array,
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """As `shift_kernels.backward`."""
    vectors = (queries.shape, queries.dtype)
    programs = problem.heads * problem.batch
    *gradients, table_gradients = call(
        problem,
        _backward_kernel,
        "local_attention_map_backward",
        (problem.heads, problem.batch),
        _warps(problem),
        [vectors, vectors, vectors, ((programs, *tables.shape), jnp.float32)],
        *(queries, keys, values, tables, output, largest, inverse, gradient),
    )
    query_gradient, key_gradient, value_gradient = gradients
    return query_gradient, key_gradient, value_gradient, table_gradients.sum(axis=0)


def _sides(problem: Problem) -> tuple[int, int]:
    """Rows and columns of a program's pixels."""
    width = power_of_two(problem.width)
    return max(power_of_two(problem.height), LEAST_SIDE // width), width


def _warps(problem: Problem) -> int:
    """So many that a thread holds about 32 logits and 16 channels of a vector."""
    height, width = _sides(problem)
    pixels = height * width
    numbers = pixels * max(pixels // 32, problem.channels // 16)
    return min(8, max(1, numbers // 32))


def _forward_kernel(
    problem: Problem,
    query_ref: Any,
    key_ref: Any,
    value_ref: Any,
    table_ref: Any,
    output_ref: Any,
    largest_ref: Any,
    inverse_ref: Any,
) -> None:
    pixels = Map(problem)
    query, key, value = (
        load_vectors(problem, ref, pixels.at) for ref in (query_ref, key_ref, value_ref)
    )
    relative = _relative_logits(problem, query, table_ref)
    logits = pixels.logits(_product(query, key, (1, 1)), *relative)
    # First what is outside, row by row, so that few of its logits are alive at once.
    largest, total = jnp.full(len(logits), EXCLUDED), jnp.zeros(len(logits))
    for row in pixels.outside(*relative):
        largest, before = reduce(jnp.maximum, row, largest), largest
        shrunk = total * jnp.exp(before - largest)
        total = reduce(jnp.add, [jnp.exp(logit - largest) for logit in row], shrunk)
    largest, before = jnp.maximum(largest, jnp.max(logits, axis=1)), largest
    weights = jnp.exp(logits - largest[:, None])
    total = jnp.sum(weights, axis=1) + total * jnp.exp(before - largest)
    output = _product(weights.astype(value.dtype), value, (1, 0))
    store_vectors(problem, output_ref, pixels.at, output / total[:, None])
    store(problem, largest_ref, pixels.at, largest)
    store(problem, inverse_ref, pixels.at, 1.0 / total)


def _backward_kernel(
    problem: Problem,
    query_ref: Any,
    key_ref: Any,
    value_ref: Any,
    table_ref: Any,
    output_ref: Any,
    largest_ref: Any,
    inverse_ref: Any,
    gradient_ref: Any,
    query_gradient_ref: Any,
    key_gradient_ref: Any,
    value_gradient_ref: Any,
    table_gradient_ref: Any,
) -> None:
    pixels = Map(problem)
    query, key, value, output, gradient = (
        load_vectors(problem, ref, pixels.at)
        for ref in (query_ref, key_ref, value_ref, output_ref, gradient_ref)
    )
    mean = dot(gradient.astype(jnp.float32), output.astype(jnp.float32))
    relative = _relative_logits(problem, query, table_ref)
    logits = pixels.logits(_product(query, key, (1, 1)), *relative)
    largest, inverse = softmax = load_softmax(largest_ref, inverse_ref, pixels.at)
    # What is outside changes no key, but the embeddings of its rows and columns.
    by_row, by_column = ([jnp.zeros_like(mean)] * problem.kernel_size for _ in relative)
    for a, row in enumerate(pixels.outside(*relative)):
        for b, logit in enumerate(row):
            change = -mean * softmax_weight(logit, softmax)
            by_row[a] += change
            by_column[b] += change

    weights = softmax_weight(logits, (largest[:, None], inverse[:, None]))
    sums = _product(weights.astype(query.dtype), gradient, (0, 0))
    store_vectors(problem, value_gradient_ref, pixels.at, sums)

    logits = weights * (_product(gradient, value, (1, 1)) - mean[:, None])
    cube = logits.reshape(len(mean), pixels.rows.shape[1], pixels.columns.shape[1])
    by_row = _collect(by_row, jnp.sum(cube, axis=2), pixels.rows)
    by_column = _collect(by_column, jnp.sum(cube, axis=1), pixels.columns)
    logits = logits.astype(query.dtype)
    sums = _product(logits, query, (0, 0))
    store_vectors(problem, key_gradient_ref, pixels.at, sums)

    sums = _product(logits, key, (1, 0))
    query = query.astype(jnp.float32)
    program = pl.program_id(1) * problem.heads + pl.program_id(0)
    for axis, by_offset in enumerate((by_row, by_column)):
        for offset, logit in enumerate(by_offset):
            sums += logit[:, None] * load_embedding(problem, table_ref, axis, offset)
            change = jnp.sum(logit[:, None] * query, axis=0)
            store_embedding(problem, table_gradient_ref, program, axis, offset, change)
    store_vectors(problem, query_gradient_ref, pixels.at, sums)


def _product(left: jax.Array, right: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """The matrix product over an axis of each, float32."""
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)


def _relative_logits(
    problem: Problem, query: jax.Array, table_ref: Any
) -> tuple[list[jax.Array], list[jax.Array]]:
    """`q . r` of each row and of each column of the window, k of `[n]` each."""
    query = query.astype(jnp.float32)
    by_row, by_column = (
        [
            dot(query, load_embedding(problem, table_ref, axis, offset))
            for offset in range(problem.kernel_size)
        ]
        for axis in (0, 1)
    )
    return by_row, by_column


def _offsets(position: jax.Array, side: int, halo: int) -> jax.Array:
    """Where in their windows queries at `[n]` positions see keys at 0 to `side`."""
    key = lax.iota(jnp.int32, side)
    return key[None, :] - position[:, None] + halo


def _beyond(position: jax.Array, problem: Problem, side: int) -> list[jax.Array]:
    """Of each row or column of the window, whether it is outside the map, `[n]`."""
    keys = [position + (a - problem.halo) for a in range(problem.kernel_size)]
    return [(key < 0) | (key >= side) for key in keys]


def _spread(parts: list[jax.Array], offsets: jax.Array, side: int) -> jax.Array:
    """Logits by offset, k of `[n]`, as logits by key `[n, u]`."""
    inside = lax.broadcasted_iota(jnp.int32, offsets.shape, 1) < side
    result = jnp.full(offsets.shape, EXCLUDED, jnp.float32)
    for offset, part in enumerate(parts):
        result = jnp.where(inside & (offsets == offset), part[:, None], result)
    return result


def _collect(
    sums: list[jax.Array], numbers: jax.Array, offsets: jax.Array
) -> list[jax.Array]:
    """Adds `[n, u]` numbers by key to sums by offset, k of `[n]`."""
    return [
        before + jnp.sum(jnp.where(offsets == offset, numbers, 0.0), axis=1)
        for offset, before in enumerate(sums)
    ]
