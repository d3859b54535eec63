"""The relative-position part of the logits, and which keys a query may see.

The embedding of an offset joins one of the row and one of the column offset, so `q . r`
is a row part plus a column part. Both are kept apart until they are broadcast onto the
logits: together they have `2 k` numbers a query where the window has `k * k`.

Shapes: i and j row and column of a query, u and v row and column of a key, h heads,
d head_dim, e half of it, k kernel_size.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

# A logit that no softmax notices. Finite, so that rows in which everything is excluded,
# as in the padding of the last block, have finite (and unused) results and gradients.
EXCLUDED = -1e30


def relative_logits(
    queries: jax.Array,
    row_embeddings: jax.Array,
    column_embeddings: jax.Array,
    rows: tuple[np.ndarray, np.ndarray],
    columns: tuple[np.ndarray, np.ndarray],
) -> tuple[jax.Array, jax.Array]:
    """`q . r` for given positions of queries and keys.

    Args:
        queries: `[..., i, j, h, d]`.
        row_embeddings: `[k, e]`.
        column_embeddings: `[k, e]`.
        rows: positions of the queries' rows `[i]` and of the keys' rows `[u]`.
        columns: the same for columns, `[j]` and `[v]`.

    Returns:
        Row part `[..., h, i, j, u]` and column part `[..., h, i, j, v]`, float32. Keys
        that the window does not reach get `EXCLUDED`.
    """
    row_half, column_half = jnp.split(queries, 2, axis=-1)
    row_table, no_row = _table(row_embeddings, *rows)
    column_table, no_column = _table(column_embeddings, *columns)
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    row_part = product("...ijhe,iue->...hiju", row_half, row_table)
    column_part = product("...ijhe,jve->...hijv", column_half, column_table)
    return (
        row_part + leading(no_row[:, None], row_part.ndim),
        column_part + leading(no_column[None], column_part.ndim),
    )


def _table(
    embeddings: jax.Array, query: np.ndarray, key: np.ndarray
) -> tuple[jax.Array, np.ndarray]:
    """Embeddings by offset, `[queries, keys, e]`, and exclusions, `[queries, keys]`."""
    size = embeddings.shape[0]
    offset = key[None, :] - query[:, None] + size // 2
    excluded = np.where((offset >= 0) & (offset < size), 0.0, EXCLUDED)
    return embeddings[np.clip(offset, 0, size - 1)], excluded.astype(np.float32)


def window_logits(
    queries: jax.Array, row_embeddings: jax.Array, column_embeddings: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Row and column part of `q . r` per offset, each `[..., h, i, j, k]`."""
    row_half, column_half = jnp.split(queries, 2, axis=-1)
    part = partial(
        jnp.einsum, "...ijhe,ke->...hijk", preferred_element_type=jnp.float32
    )
    return part(row_half, row_embeddings), part(column_half, column_embeddings)


def outside_logit(
    row_logits: jax.Array, column_logits: jax.Array, halo: int
) -> jax.Array:
    """Log-sum-exp of the logits outside the map, `[..., h, i, j]`.

    Such a logit is `row part + column part`, so the sum factors: rows outside with all
    columns, plus rows inside with columns outside. Adding up the outside only, nothing
    cancels; a query whose window lies inside the map gets `EXCLUDED`.

    Args:
        row_logits: `[..., h, i, j, u]`, from `relative_logits`, of the rows of the map
            and of `halo` rows before and after it.
        column_logits: `[..., h, i, j, v]`, likewise for columns.
        halo: rows and columns on each side.
    """

    def log_sum(logits: jax.Array, *, inside: bool) -> jax.Array:
        key = np.arange(logits.shape[-1])
        kept = ((key >= halo) & (key < len(key) - halo)) == inside
        kept = leading(kept, logits.ndim)
        return jax.nn.logsumexp(jnp.where(kept, logits, EXCLUDED), axis=-1)

    return jnp.logaddexp(
        log_sum(row_logits, inside=False) + jax.nn.logsumexp(column_logits, axis=-1),
        log_sum(row_logits, inside=True) + log_sum(column_logits, inside=False),
    )


def outside_keys(
    side: int, blocks: int, block_size: int, key: np.ndarray
) -> np.ndarray:
    """Float32 `[blocks, u]`: `EXCLUDED` where a block's key lies outside the map."""
    position = np.arange(blocks)[:, None] * block_size + key[None]
    inside = (position >= 0) & (position < side)
    return np.where(inside, 0.0, EXCLUDED).astype(np.float32)


def inside_map(side: int, kernel_size: int) -> np.ndarray:
    """Bool `[side, kernel_size]`: whether that part of the window is in the map."""
    position = np.arange(side)[:, None] + np.arange(kernel_size) - kernel_size // 2
    return (position >= 0) & (position < side)


def leading(array: np.ndarray, ndim: int) -> np.ndarray:
    """Adds leading axes up to `ndim`, since rank promotion is an error in the tests."""
    return array.reshape((1,) * (ndim - array.ndim) + array.shape)
