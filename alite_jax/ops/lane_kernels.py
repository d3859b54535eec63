"""The kernels of `lane_attention`, in Pallas, for its TPU backend.

A vector register of a TPU holds 8 rows of 128 lanes, and a head has 8 channels on the
largest maps. So pixels of whole images go along the lanes and heads along the rows:
each operation fills all of a register, whatever the number of channels, and a pixel's
neighbour at some offset is a rotation of the lanes. Rows and columns of the pixels say
where that ran into another row or image.

Channels and the rows of the window are loops, so that programs stay short. Kept for
each key of the window is only one row of the window at a time, and only in VMEM, the
memory of a core.

Shapes: g groups of images, one a program; n images of a group; p lanes, n * height *
width filled up to whole registers; h heads, d head_dim, e half of it, k kernel_size.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from alite_jax.ops.lane_windows import SUBLANES, Problem, Windows, for_each
from alite_jax.ops.relative_positions import EXCLUDED


def memory(problem: Problem, itemsize: int) -> int:
    """Bytes of VMEM that the backward pass, which needs more, takes.

    Args:
        problem: of any shape.
        itemsize: bytes of a channel.
    """
    maps = problem.head_dim * (7 * 2 * itemsize + 3 * 4)  # Two of each input and output
    sums = problem.kernel_size * (2 * 2 + 3) * 4  # for the next program's transfers.
    numbers = (3 + 2) * 2 * 4
    heads = -(-problem.heads // SUBLANES) * SUBLANES
    return heads * problem.lanes * (maps + sums + numbers)


def forward(
    problem: Problem,
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    tables: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The output, and of each softmax the largest logit and the inverse of its sum.

    Args:
        problem: that of these shapes.
        queries: `[g, d, h, p]`.
        keys: same shape as `queries`.
        values: same shape as `queries`.
        tables: embeddings of rows and columns, `[2, k, e]`, float32.

    Returns:
        `[g, d, h, p]` in the dtype of `queries`, and twice `[g, h, p]`, float32.
    """
    groups, *block = queries.shape
    window, numbers = problem.shape(problem.kernel_size), problem.shape()
    output, largest, inverse = _call(
        problem,
        _forward,
        "local_attention_lanes_forward",
        tables,
        (queries, keys, values),
        [
            jax.ShapeDtypeStruct(queries.shape, queries.dtype),
            *[jax.ShapeDtypeStruct((groups, *numbers), jnp.float32)] * 2,
        ],
        scratch=[window, window, tuple(block)],
        products=2,
    )
    return output, largest, inverse


def backward(
    problem: Problem,
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    tables: jax.Array,
    largest: jax.Array,
    inverse: jax.Array,
    mean: jax.Array,
    gradient: jax.Array,
) -> list[jax.Array]:
    """Gradients of queries, keys and values, and two sums of those of the logits.

    Args:
        problem: as of `forward`, like all that follow up to `inverse`.
        queries: `[g, d, h, p]`.
        keys: same shape as `queries`.
        values: same shape as `queries`.
        tables: `[2, k, e]`.
        largest: `[g, h, p]`.
        inverse: `[g, h, p]`.
        mean: of the gradients of a query's weights, by these weights, `[g, h, p]`.
        gradient: of the output.

    Returns:
        Three times `[g, d, h, p]`, and over the columns and over the rows of the window
        `[g, k, h, p]`, float32.
    """
    groups, *block = queries.shape
    window = problem.shape(problem.kernel_size)
    return _call(
        problem,
        _backward,
        "local_attention_lanes_backward",
        tables,
        (queries, keys, values, gradient, largest, inverse, mean),
        [
            *[jax.ShapeDtypeStruct(queries.shape, queries.dtype)] * 3,
            *[jax.ShapeDtypeStruct((groups, *window), jnp.float32)] * 2,
        ],
        scratch=[window, window, window, *[tuple(block)] * 3],
        products=5,
    )


def _call(
    problem: Problem,
    kernel: Callable[..., None],
    name: str,
    tables: jax.Array,
    inputs: Sequence[jax.Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    *,
    scratch: Sequence[tuple[int, ...]],
    products: int,
) -> list[jax.Array]:
    """Runs a kernel once for each group.

    Args:
        problem: the kernel's first argument.
        kernel: its others are references to tables, places, inputs, outputs, scratch.
        name: by which profilers show it.
        tables: `[2, k, e]`.
        inputs: their first axis is that of groups.
        outputs: likewise.
        scratch: shapes of float32 arrays.
        products: of a query's channel with one for each key of the window.
    """

    def block(array: Any) -> pl.BlockSpec:
        shape = array.shape[1:]
        return pl.BlockSpec((None, *shape), lambda i: (i, *(0 for _ in shape)))

    places = problem.places()
    window = problem.kernel_size**2 * math.prod(inputs[0].shape)
    found: list[jax.Array] = pl.pallas_call(
        partial(kernel, problem),
        grid=(inputs[0].shape[0],),
        in_specs=[
            pl.BlockSpec(memory_space=tpu.SMEM),
            pl.BlockSpec(places.shape, lambda i: (0, 0, 0)),
            *map(block, inputs),
        ],
        out_specs=[block(output) for output in outputs],
        out_shape=outputs,
        scratch_shapes=[tpu.VMEM(shape, jnp.float32) for shape in scratch],
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel",)),
        # Without it, XLA would not know what a kernel reads and writes.
        cost_estimate=pl.CostEstimate(
            flops=2 * products * window,
            transcendentals=window // problem.head_dim,
            bytes_accessed=sum(
                math.prod(x.shape) * x.dtype.itemsize
                for x in jax.tree.leaves([tables, places, inputs, outputs])
            ),
        ),
        interpret=problem.interpret,
        name=name,
    )(tables.reshape(-1), places, *inputs)
    return found


def _forward(
    problem: Problem,
    tables: Any,
    places: Any,
    queries: Any,
    keys: Any,
    values: Any,
    output: Any,
    largest: Any,
    inverse: Any,
    logits: Any,
    column_logits: Any,
    sums: Any,
) -> None:
    """The softmax of a row of the window after another, rescaled when it grows."""
    windows = Windows(problem, tables, (places[0], places[1]))
    windows.column_logits(queries, column_logits)
    sums[...] = jnp.zeros_like(sums)

    def row(a: jax.Array, softmax: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        before, total = softmax
        windows.logits(queries, keys, column_logits, a, logits)
        most = before
        for b in range(problem.kernel_size):
            most = jnp.maximum(most, logits[b])
        scale = jnp.exp(before - most)
        total = total * scale
        for b in range(problem.kernel_size):
            weight = jnp.exp(logits[b] - most)
            logits[b] = weight
            total += weight

        def channel(c: jax.Array) -> None:
            near = windows.row(values, c, a)
            found = sums[c] * scale
            for b in range(problem.kernel_size):
                found += logits[b] * windows.column(near, b)
            sums[c] = found

        for_each(problem.head_dim, channel)
        return most, total

    none = jnp.full(problem.shape(), EXCLUDED, jnp.float32)
    most, total = lax.fori_loop(
        0, problem.kernel_size, row, (none, jnp.zeros_like(none))
    )
    largest[...] = most
    inverse[...] = 1 / total

    def channel(c: jax.Array) -> None:
        output[c] = (sums[c] / total).astype(output.dtype)

    for_each(problem.head_dim, channel)


def _backward(
    problem: Problem,
    tables: Any,
    places: Any,
    queries: Any,
    keys: Any,
    values: Any,
    gradient: Any,
    largest: Any,
    inverse: Any,
    mean: Any,
    for_queries: Any,
    for_keys: Any,
    for_values: Any,
    by_row: Any,
    by_column: Any,
    weights: Any,
    slopes: Any,
    column_logits: Any,
    *sums: Any,
) -> None:
    """Computes weights anew; `slopes` are the gradients of logits."""
    windows = Windows(problem, tables, (places[0], places[1]))
    windows.column_logits(queries, column_logits)
    for one in (by_column, *sums):
        one[...] = jnp.zeros_like(one)
    query_sums, key_sums, value_sums = sums

    def row(a: jax.Array) -> None:
        windows.logits(queries, keys, column_logits, a, weights)
        windows.products(gradient, values, a, slopes)
        by_row[a] = jnp.zeros_like(by_row[a])
        for b in range(problem.kernel_size):
            weight = jnp.exp(weights[b] - largest[...]) * inverse[...]
            slope = weight * (slopes[b] - mean[...])
            weights[b] = weight
            slopes[b] = slope
            by_row[a] += slope
            by_column[b] += slope

        def channel(c: jax.Array) -> None:
            near = windows.row(keys, c, a)
            found = query_sums[c]
            for b in range(problem.kernel_size):
                found += slopes[b] * windows.column(near, b)
            query_sums[c] = found
            key_sums[c] += windows.sent(queries[c], slopes, a)
            value_sums[c] += windows.sent(gradient[c], weights, a)

        for_each(problem.head_dim, channel)

    for_each(problem.kernel_size, row)

    def channel(e: jax.Array) -> None:
        for axis, slopes_along in enumerate((by_row, by_column)):
            c = axis * problem.half + e
            found = query_sums[c]
            for offset in range(problem.kernel_size):
                found += windows.embedding(axis, offset, e) * slopes_along[offset]
            query_sums[c] = found

    for_each(problem.half, channel)
    for one, found in zip((for_queries, for_keys, for_values), sums, strict=True):
        one[...] = found[...].astype(one.dtype)
