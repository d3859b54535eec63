"""Local attention on a GPU by shifted products, for large maps of few channels.

A program holds the queries of a tile (`shift_tiles`) and goes through the rows of their
windows. It loads every key of a row once and multiplies it with all of its queries
whose window holds that key. The softmax runs along, so that no more logits are alive
than one row of the window has. In the backward pass, one kernel gives the gradients of
queries and embeddings, and another holds keys and gathers theirs from the queries
around them, so that no two programs add to one place.

Shapes: as in `shift_tiles`.
"""

import math
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from alite_jax.ops.gpu_kernels import (
    Places,
    Problem,
    call,
    dot,
    load,
    load_embedding,
    load_softmax,
    softmax_weight,
    store,
    store_embedding,
    store_vectors,
)
from alite_jax.ops.relative_positions import EXCLUDED
from alite_jax.ops.shift_tiles import (
    Tile,
    columns_backward,
    columns_forward,
    grid,
    warps,
)


def forward(
    problem: Problem,
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    tables: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Output, and of each softmax the largest logit and the inverse of its sum.

    Args:
        problem: what is static.
        queries: `[batch, height, width, heads, head_dim]`.
        keys: same shape and dtype.
        values: same shape and dtype.
        tables: embeddings of rows and of columns, float32 `[2, k, c]`: rows in the
            first half of `head_dim`, columns in the second, zeros elsewhere.

    Returns:
        The output, of the shape and dtype of `values`, and two float32 arrays
        `[batch, height, width, heads]`.
    """
    numbers = (queries.shape[:-1], jnp.float32)
    output, largest, inverse = call(
        problem,
        _forward_kernel,
        "local_attention_shift_forward",
        grid(problem, columns_forward(problem)),
        warps(problem),
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
    """Gradients of queries, keys, values and tables.

    Args:
        problem: what is static.
        queries: as of `forward`, with the three that follow.
        keys: same shape and dtype.
        values: same shape and dtype.
        tables: embeddings.
        output: of `forward`.
        largest: of `forward`.
        inverse: of `forward`.
        gradient: of the output.
    """
    inputs = (queries, keys, values, tables)
    programs = grid(problem, columns_backward(problem))
    vectors = (queries.shape, queries.dtype)
    query_gradient, mean, table_gradients = call(
        problem,
        _query_kernel,
        "local_attention_shift_queries",
        programs,
        warps(problem),
        [
            vectors,
            (inverse.shape, jnp.float32),
            ((math.prod(programs), *tables.shape), jnp.float32),
        ],
        *(*inputs, output, largest, inverse, gradient),
    )
    key_gradient, value_gradient = call(
        problem,
        _key_kernel,
        "local_attention_shift_keys",
        programs,
        warps(problem),
        [vectors, vectors],
        *(*inputs, largest, inverse, mean, gradient),
    )
    return query_gradient, key_gradient, value_gradient, table_gradients.sum(axis=0)


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
    tile = Tile(problem, columns_forward(problem))
    queries = tile.vectors(query_ref)
    by_column = _column_logits(tile, queries, table_ref)

    def add_row(a: jax.Array, carry: Any) -> Any:
        largest, total, sums = (list(each) for each in carry)
        window = tile.window(a - problem.halo)
        by_row = _row_logits(tile, queries, table_ref, a)
        logits: list[list[jax.Array]] = [[] for _ in queries]
        for at, meetings in window:
            key = tile.load(key_ref, at)
            for s, b in meetings:
                relative = by_row[s] + by_column[s][b]
                logits[s].append(_logit(problem, queries[s], key, relative, at))
        weights = []
        for s, before in enumerate(largest):
            largest[s] = reduce(jnp.maximum, logits[s], before)
            weights.append([jnp.exp(logit - largest[s]) for logit in logits[s]])
            shrink = jnp.exp(before - largest[s])
            total[s] = total[s] * shrink + reduce(jnp.add, weights[s])
            sums[s] = sums[s] * shrink[:, None]
        for at, meetings in window:
            value = tile.load(value_ref, at)
            for s, b in meetings:
                sums[s] += weights[s][b][:, None] * value
        return largest, total, sums

    nothing = tile.numbers(EXCLUDED), tile.numbers(0.0), tile.zeros()
    largest, total, sums = lax.fori_loop(0, problem.kernel_size, add_row, nothing)
    for s, at in enumerate(tile.own()):
        store_vectors(problem, output_ref, at, sums[s] / total[s][:, None])
        store(problem, largest_ref, at, largest[s])
        store(problem, inverse_ref, at, 1.0 / total[s])


def _query_kernel(
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
    mean_ref: Any,
    table_gradient_ref: Any,
) -> None:
    """Gradients of the queries and the embeddings, and `gradient . output`."""
    tile = Tile(problem, columns_backward(problem))
    queries, gradients = tile.vectors(query_ref), tile.vectors(gradient_ref)
    by_column = _column_logits(tile, queries, table_ref)
    softmax = [load_softmax(largest_ref, inverse_ref, at) for at in tile.own()]
    outputs = tile.vectors(output_ref)
    mean = [dot(*pair) for pair in zip(gradients, outputs, strict=True)]
    for s, at in enumerate(tile.own()):
        store(problem, mean_ref, at, mean[s])

    def store_sum(axis: int, offset: Any, logits: list[jax.Array]) -> None:
        """The gradient of an embedding, by those of its logits."""
        both = zip(logits, queries, strict=True)
        total = reduce(jnp.add, [logit[:, None] * query for logit, query in both])
        row = jnp.sum(total, axis=0)
        store_embedding(problem, table_gradient_ref, tile.program, axis, offset, row)

    def add_row(a: jax.Array, carry: Any) -> Any:
        sums, by_column_gradient = list(carry[0]), [list(each) for each in carry[1]]
        by_row = _row_logits(tile, queries, table_ref, a)
        by_row_gradient = tile.numbers(0.0)
        for at, meetings in tile.window(a - problem.halo):
            key, value = tile.load(key_ref, at), tile.load(value_ref, at)
            for s, b in meetings:
                relative = by_row[s] + by_column[s][b]
                logit = _logit(problem, queries[s], key, relative, at)
                weight = softmax_weight(logit, softmax[s])
                logit = weight * (dot(gradients[s], value) - mean[s])
                sums[s] += logit[:, None] * key
                by_row_gradient[s] += logit
                by_column_gradient[s][b] += logit
        embedding = load_embedding(problem, table_ref, 0, a)
        for s, logit in enumerate(by_row_gradient):
            sums[s] += logit[:, None] * embedding
        store_sum(0, a, by_row_gradient)
        return sums, by_column_gradient

    nothing = (
        tile.zeros(),
        [tile.numbers(0.0)[:1] * problem.kernel_size for _ in queries],
    )
    sums, by_column_gradient = lax.fori_loop(0, problem.kernel_size, add_row, nothing)
    sums = list(sums)
    for b in range(problem.kernel_size):
        embedding = load_embedding(problem, table_ref, 1, b)
        logits = [each[b] for each in by_column_gradient]
        for s, logit in enumerate(logits):
            sums[s] += logit[:, None] * embedding
        store_sum(1, b, logits)
    tile.store(query_gradient_ref, sums)


def _key_kernel(
    problem: Problem,
    query_ref: Any,
    key_ref: Any,
    value_ref: Any,
    table_ref: Any,
    largest_ref: Any,
    inverse_ref: Any,
    mean_ref: Any,
    gradient_ref: Any,
    key_gradient_ref: Any,
    value_gradient_ref: Any,
) -> None:
    """Gradients of keys and values, from the queries whose windows hold them."""
    tile = Tile(problem, columns_backward(problem))
    keys, values = tile.vectors(key_ref), tile.vectors(value_ref)

    def add_row(a: jax.Array, carry: Any) -> Any:
        key_sums, value_sums = (list(each) for each in carry)
        embedding = load_embedding(problem, table_ref, 0, a)
        placed = [key + embedding for key in keys]
        # The key is in row a of the windows of queries so many rows below it.
        for at, meetings in tile.window(problem.halo - a):
            query, gradient = tile.load(query_ref, at), tile.load(gradient_ref, at)
            softmax, mean = (
                load_softmax(largest_ref, inverse_ref, at),
                load(mean_ref, at),
            )
            for s, b in meetings:
                b = problem.kernel_size - 1 - b
                relative = load_embedding(problem, table_ref, 1, b)
                weight = softmax_weight(dot(query, placed[s] + relative), softmax)
                logit = weight * (dot(gradient, values[s]) - mean)
                key_sums[s] += logit[:, None] * query
                value_sums[s] += weight[:, None] * gradient
        return key_sums, value_sums

    nothing = tile.zeros(), tile.zeros()
    key_sums, value_sums = lax.fori_loop(0, problem.kernel_size, add_row, nothing)
    tile.store(key_gradient_ref, key_sums)
    tile.store(value_gradient_ref, value_sums)


def _row_logits(
    tile: Tile, queries: list[jax.Array], table_ref: Any, a: jax.Array
) -> list[jax.Array]:
    """`q . r` of the row of the window, s of `[n]`."""
    embedding = load_embedding(tile.problem, table_ref, 0, a)
    return [dot(query, embedding) for query in queries]


def _column_logits(
    tile: Tile, queries: list[jax.Array], table_ref: Any
) -> list[list[jax.Array]]:
    """`q . r` of the columns of the window, s times k of `[n]`."""
    size = tile.problem.kernel_size
    embeddings = [load_embedding(tile.problem, table_ref, 1, b) for b in range(size)]
    return [[dot(query, embedding) for embedding in embeddings] for query in queries]


def _logit(
    problem: Problem,
    query: jax.Array,
    key: jax.Array,
    relative: jax.Array,
    at: Places,
) -> jax.Array:
    """`q . k + q . r`, `[n]`, of keys at some places."""
    logit = dot(query, key) + relative
    return jnp.where(at.valid, logit, EXCLUDED) if problem.border == "mask" else logit
