"""Local attention one row of queries at a time: the fast way on a CPU.

Columns of a few images side by side are the innermost axis, images changing fastest,
so that SIMD lanes run along it and every column of the window is a shifted, contiguous
piece of the same row of keys. One image alone is cut into strips, which lie side by
side instead. Sums over the window and over head_dim are written out as sums of shifted
products, which XLA fuses into one loop each. No product is spent on a key outside the
window, and a row of a few images at a time stays in the cache. The backward pass
computes the weights again instead of storing them.

Shapes: a and b row and column of the window (k of each), m maps (one for each head and
each set of images that lie side by side), d head_dim, W columns of such a set, W+ the
same with the halo.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alite_jax.ops import row_kernels
from alite_jax.ops.relative_positions import EXCLUDED, inside_map
from alite_jax.ops.windows import haloed_strips

# Logits that are alive at once. Larger groups of images leave the cache, smaller ones
# spend their time on starting loops.
_LOGITS_AT_ONCE = 2**17

# Images side by side. The same pixel of two images is often a power of two apart in
# memory, and more than a few of them collide in the cache.
_SIDE_BY_SIDE = 8

# Columns side by side that strips make of fewer: short loops spend their time on
# starting.
_COLUMNS = 64

# Queries of all heads that strips put into a row: logits of fewer are so small that XLA
# computes them again for their maximum, where it has inlined the kernels.
_QUERIES = 128


def rows(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    row_embeddings: jax.Array,
    column_embeddings: jax.Array,
    *,
    border: str,
) -> jax.Array:
    """Shifted products row by row; arguments and result as of `local_attention`.

    Differentiable once, in reverse mode. All arithmetic is float32.
    """
    batch, height, width, heads, head_dim = queries.shape
    size = row_embeddings.shape[0]
    halo = size // 2
    logits = heads * width * size * size  # of a row
    strips = strip_count(batch, height, width, heads, logits)
    # From here on, strips are images.
    batch, height = batch * strips, height // strips
    group = group_size(batch, logits)
    groups = batch // group
    images = largest_divisor(group, _SIDE_BY_SIDE)

    def lay_out(maps: jax.Array, halo: int) -> jax.Array:
        """Rows first: `[groups * rows, m, d, W]`, with zeros for the halo."""
        maps = haloed_strips(maps.astype(jnp.float32), strips, halo)
        maps = maps.reshape(groups, -1, images, *maps.shape[2:])
        maps = maps.transpose(0, 3, 1, 5, 6, 4, 2)
        none = (0, 0)
        maps = jnp.pad(maps, (none, none, none, none, none, (halo, halo), none))
        sets, columns = maps.shape[2], maps.shape[5]
        return maps.reshape(-1, sets * heads, head_dim, columns * images)

    # The window of row y begins at row y of the padded map.
    first = np.arange(groups)[:, None] * (height + 2 * halo) + np.arange(height)
    no_row = np.zeros((strips * height, size), np.float32)
    no_column = np.zeros((width, size), np.float32)
    if border == "mask":
        no_row[~inside_map(strips * height, size)] = EXCLUDED
        no_column[~inside_map(width, size)] = EXCLUDED
    # Strips see other rows each, whole images the same.
    no_rows = no_row.reshape(strips, height, size).transpose(1, 2, 0)
    if strips > 1:
        no_rows = np.tile(no_rows, (1, 1, width * batch // strips))
    output = _attend(
        lay_out(queries, 0),
        lay_out(keys, halo),
        lay_out(values, halo),
        row_embeddings.astype(jnp.float32),
        column_embeddings.astype(jnp.float32),
        first.reshape(-1).astype(np.int32),
        np.tile(no_rows, (groups, 1, 1)),
        np.repeat(no_column.T, images, axis=1),
    )
    output = output.reshape(groups, height, -1, heads, head_dim, width, images)
    output = output.transpose(0, 2, 6, 1, 5, 3, 4).reshape(queries.shape)
    return output.astype(values.dtype)


def strip_count(
    batch: int, height: int, width: int, heads: int, logits_per_image: int
) -> int:
    """Strips that each image is cut into, so that all of them lie side by side."""
    columns = max(_COLUMNS, _QUERIES // heads)
    limit = min(_SIDE_BY_SIDE, columns // width, _LOGITS_AT_ONCE // logits_per_image)
    return largest_divisor(height, max(1, limit // batch))


def group_size(batch: int, logits_per_image: int) -> int:
    """Images that are worked on at once; a divisor of `batch`."""
    return largest_divisor(batch, max(1, _LOGITS_AT_ONCE // logits_per_image))


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`."""
    return max(n for n in range(1, min(number, limit) + 1) if number % n == 0)


@jax.custom_vjp
def _attend(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    row_embeddings: jax.Array,
    column_embeddings: jax.Array,
    first: np.ndarray,
    no_row: np.ndarray,
    no_column: np.ndarray,
) -> jax.Array:
    """Attention of all rows, float32.

    Args:
        queries: `[rows, m, d, W]`.
        keys: `[padded rows, m, d, W+]`.
        values: `[padded rows, m, d, W+]`.
        row_embeddings: `[k, d / 2]`.
        column_embeddings: `[k, d / 2]`.
        first: int32 `[rows]`, the first row of keys that each row of queries sees.
        no_row: `[rows, k, W or 1]`, `EXCLUDED` at rows it does not see, otherwise 0.
        no_column: `[k, W]`, likewise for columns.

    Returns:
        `[rows, m, d, W]`.
    """
    return _attend_forward(
        queries,
        keys,
        values,
        row_embeddings,
        column_embeddings,
        first,
        no_row,
        no_column,
    )[0]


def _attend_forward(
    queries: jax.Array, keys: jax.Array, values: jax.Array, *others: Any
) -> tuple[jax.Array, Any]:
    row_embeddings, column_embeddings, first, no_row, no_column = others

    def row(_: None, inputs: Any) -> tuple[None, Any]:
        query, start, no_row = inputs
        key = row_kernels.window(keys, start, no_row)
        value = row_kernels.window(values, start, no_row)
        parts = row_kernels.relative_logits(
            query, row_embeddings, column_embeddings, no_row, no_column
        )
        logits = row_kernels.logits(query, key, *parts)
        largest = row_kernels.largest(logits)
        weights = row_kernels.weights(logits, largest)
        total = row_kernels.total(weights)
        output = row_kernels.weighted_sum(weights, value) / total[:, None]
        return None, (output, largest, total)

    _, results = jax.lax.scan(row, None, (queries, first, no_row))
    return results[0], (queries, keys, values, *others, *results)


def _attend_backward(residuals: Any, gradients: jax.Array) -> tuple[Any, ...]:
    queries, keys, values, row_embeddings, column_embeddings = residuals[:5]
    first, no_row, no_column, *results = residuals[5:]
    half = row_embeddings.shape[1]

    def row(carry: Any, inputs: Any) -> tuple[Any, jax.Array]:
        key_gradients, value_gradients, row_gradient, column_gradient = carry
        query, start, no_row, output, largest, total, gradient = inputs
        key = row_kernels.window(keys, start, no_row)
        value = row_kernels.window(values, start, no_row)
        parts = row_kernels.relative_logits(
            query, row_embeddings, column_embeddings, no_row, no_column
        )
        weights = row_kernels.logits(query, key, *parts)
        weights = row_kernels.weights(weights, largest)
        # The weights stay as they are, and what multiplies them is divided.
        gradient = gradient / total[:, None]
        mean = row_kernels.inner(gradient, output)
        logits = row_kernels.logits_gradient(weights, value, gradient, mean)
        by_row, by_column = row_kernels.marginals(logits)

        def send(sums: jax.Array, weights: jax.Array, query: jax.Array) -> jax.Array:
            """Adds what this row of queries sends to the keys of its window."""
            weights = row_kernels.widen(weights, key)
            query = row_kernels.widen(query, key)
            received = row_kernels.weighted_sum_transpose(sums, start, weights, query)
            return jax.lax.dynamic_update_slice_in_dim(sums, received, start, axis=0)

        carry = (
            send(key_gradients, logits, query),
            send(value_gradients, weights, gradient),
            row_gradient + jnp.einsum("maw,mew->ae", by_row, query[:, :half]),
            column_gradient + jnp.einsum("mbw,mew->be", by_column, query[:, half:]),
        )
        query_gradient = row_kernels.weighted_sum(logits, key)
        query_gradient += row_kernels.relative_gradient(
            by_row, by_column, row_embeddings, column_embeddings
        )
        return carry, query_gradient

    inputs = (queries, first, no_row, *results, gradients)
    sums = jax.tree.map(
        jnp.zeros_like, (keys, values, row_embeddings, column_embeddings)
    )
    sums, query_gradients = jax.lax.scan(row, sums, inputs)
    return query_gradients, *sums, None, None, None


_attend.defvjp(_attend_forward, _attend_backward)
