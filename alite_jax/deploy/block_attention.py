"""Local self-attention in few large operations, for runtimes that fuse none.

The numbers of `alite_jax.ops.local_attention`, made of what ONNX Runtime and its like
are fast at: batched products, one softmax, copies of long runs. XLA fuses what it
finds, so that its forms are made of small steps; elsewhere each step is a pass over
memory.

Blocks of queries meet the haloed block of keys around them. A relative logit is a row
part plus a column part: a product of the queries with a constant table gives both for
each row and column of the halo, with what the window does not reach excluded, and a
product with a constant of zeros and ones adds them up for each key. So neither the
window nor the border costs a pass over the logits.

Embeddings are constants here: nothing is differentiated.

Shapes: B batch, Y and X rows and columns of blocks, i and j row and column of a query
in its block, u and v those of a key in the halo, h heads, p = i * j places in a block,
n = B * h * Y * X.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from alite_jax.ops.relative_positions import EXCLUDED, outside_keys


def block_attention(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    row_embeddings: np.ndarray,
    column_embeddings: np.ndarray,
    *,
    border: str = "zero",
    block_size: int = 4,
) -> jax.Array:
    """Attends from each pixel to the window around it.

    Args:
        queries: `[batch, height, width, heads, d]`, float32.
        keys: the same.
        values: `[batch, height, width, heads, e]`; unlike in `local_attention`, `e` may
            be another number than `d`.
        row_embeddings: `[kernel_size, d // 2]`, as for `local_attention`.
        column_embeddings: `[kernel_size, d // 2]`.
        border: `"zero"` or `"mask"`, as for `local_attention`.
        block_size: the longest side of a block of queries, in pixels.

    Returns:
        `[batch, height, width, heads, e]`.
    """
    batch, height, width, heads, dim = queries.shape
    halo = len(row_embeddings) // 2
    sides = min(block_size, height), min(block_size, width)
    blocks = -(-height // sides[0]), -(-width // sides[1])
    count = batch * heads * math.prod(blocks)

    # Queries by block, for the products with keys, and by place in the block, for that
    # with the tables of these places.
    whole = [blocks[axis] * sides[axis] for axis in (0, 1)]
    queries = _pad(queries, whole[0] - height, whole[1] - width)
    shape = (batch, blocks[0], sides[0], blocks[1], sides[1], heads, dim)
    queries = queries.reshape(shape)
    by_block = queries.transpose(0, 5, 1, 3, 2, 4, 6).reshape(count, -1, dim)
    by_place = queries.transpose(2, 4, 0, 5, 1, 3, 6).reshape(-1, count, dim)

    # Row and column parts of the logits, [n, p, u + v].
    tables = _tables(row_embeddings, column_embeddings, sides)
    excluded = _excluded(height, width, halo, sides, blocks, border)
    parts = jnp.matmul(by_place, tables)
    by_map = (parts.shape[0], batch * heads, math.prod(blocks), parts.shape[2])
    parts = (parts.reshape(by_map) + excluded).reshape(parts.shape).transpose(1, 0, 2)

    haloed = sides[0] + 2 * halo, sides[1] + 2 * halo
    keys, values = (_haloed(maps, sides, blocks, halo) for maps in (keys, values))
    logits = jnp.matmul(by_block, keys.transpose(0, 2, 1))
    # Both factors of this product are matrices, so that it adds to the other one.
    relative = jnp.dot(parts.reshape(-1, parts.shape[2]), _sums(*haloed))
    logits = (relative + logits.reshape(relative.shape)).reshape(logits.shape)
    outputs = jnp.matmul(jax.nn.softmax(logits, axis=-1), values)

    dims = (batch, heads, *blocks, *sides, values.shape[2])
    outputs = outputs.reshape(dims).transpose(0, 2, 4, 3, 5, 1, 6)
    outputs = outputs.reshape(batch, *whole, heads, values.shape[2])
    return outputs[:, :height, :width] if whole != [height, width] else outputs


def _haloed(
    maps: jax.Array, sides: tuple[int, int], blocks: tuple[int, int], halo: int
) -> jax.Array:
    """The haloed blocks of each head, `[n, u * v, channels]`, zero outside the map."""
    batch, height, width, heads, channels = maps.shape
    rows, columns = (blocks[axis] * sides[axis] + 2 * halo for axis in (0, 1))
    maps = maps.transpose(0, 3, 1, 2, 4)
    below, right = rows - height - halo, columns - width - halo
    outside = ((0, 0), (0, 0), (halo, below), (halo, right), (0, 0))
    maps = jnp.pad(maps, outside)
    haloed = sides[0] + 2 * halo, sides[1] + 2 * halo
    if math.prod(blocks) > 1:
        # Copied in the longest runs of pixels of which windows and maps are made.
        run = math.gcd(sides[1], haloed[1], columns)
        first = [np.arange(blocks[axis])[:, None] * sides[axis] for axis in (0, 1)]
        row = first[0] + np.arange(haloed[0])  # [Y, u]
        column = first[1] // run + np.arange(haloed[1] // run)  # [X, v / run]
        places = row[:, None, :, None] * (columns // run) + column[None, :, None, :]
        runs = maps.reshape(batch * heads, -1, run * channels)
        maps = jnp.take(runs, places.reshape(-1), axis=1)
    count = batch * heads * math.prod(blocks)
    return maps.reshape(count, math.prod(haloed), channels)


def _tables(
    row_embeddings: np.ndarray, column_embeddings: np.ndarray, sides: tuple[int, int]
) -> np.ndarray:
    """What each query of a block is multiplied with, float32 `[p, d, u + v]`.

    The first half of its channels gives the row parts, the other the column parts.
    """
    rows, columns = (
        _by_offset(np.asarray(table, np.float32), side)
        for table, side in zip((row_embeddings, column_embeddings), sides, strict=True)
    )
    half, u, v = rows.shape[1], rows.shape[2], columns.shape[2]
    tables = np.zeros((*sides, 2 * half, u + v), np.float32)
    tables[:, :, :half, :u] = rows[:, None]
    tables[:, :, half:, u:] = columns[None]
    return tables.reshape(-1, 2 * half, u + v)


def _by_offset(embeddings: np.ndarray, side: int) -> np.ndarray:
    """The embedding of each key for each query, `[side, half, u]`; else zero."""
    size, half = embeddings.shape
    found = np.zeros((side, half, side + size - 1), np.float32)
    for query in range(side):
        found[query, :, query : query + size] = embeddings.T
    return found


def _excluded(
    height: int,
    width: int,
    halo: int,
    sides: tuple[int, int],
    blocks: tuple[int, int],
    border: str,
) -> np.ndarray:
    """What is added to the parts: `EXCLUDED` where a key may not be seen, else 0.

    Returns:
        float32 `[p, 1, Y * X, u + v]`, or one for all blocks with border `"zero"`.
    """
    parts = []
    for length, side, count in zip((height, width), sides, blocks, strict=True):
        key = np.arange(-halo, side + halo)
        reached = np.abs(key[None] - np.arange(side)[:, None]) <= halo
        part = np.where(reached, 0, EXCLUDED)[:, None]  # [side, 1, keys]
        if border == "mask":
            outside = outside_keys(length, count, side, key)  # [count, keys]
            part = np.minimum(part, outside[None])
        parts.append(part)
    rows, columns = parts[0][:, None, :, None], parts[1][None, :, None, :]
    shape = np.broadcast_shapes(rows.shape[:-1], columns.shape[:-1])
    both = [np.broadcast_to(x, (*shape, x.shape[-1])) for x in (rows, columns)]
    joined = np.concatenate(both, axis=-1).astype(np.float32)
    places = math.prod(sides)
    return joined.reshape(places, 1, -1, joined.shape[-1])


def _sums(u: int, v: int) -> np.ndarray:
    """Of zeros and ones, `[u + v, u * v]`: adds its row's and its column's part."""
    rows = np.repeat(np.eye(u, dtype=np.float32), v, axis=1)
    columns = np.tile(np.eye(v, dtype=np.float32), (1, u))
    return np.concatenate([rows, columns])


def _pad(maps: jax.Array, below: int, right: int) -> jax.Array:
    if below == right == 0:
        return maps
    return jnp.pad(maps, ((0, 0), (0, below), (0, right), (0, 0), (0, 0)))
