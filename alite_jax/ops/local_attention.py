"""Local self-attention with relative positions, as pure functions.

After SASA (arXiv 1906.05909): each query attends to the `kernel_size` x `kernel_size`
window of keys around it,

    output = sum over the window of softmax(q . k + q . r) v

where `r` joins an embedding of the row offset with one of the column offset, so that
`q . r = q[:half] . row + q[half:] . column`. There is no scale, no bias and no output
projection. All heads share the embeddings.

Three methods compute the same numbers. `reference` unfolds the window and exists to be
compared with. `blocked` multiplies blocks of queries with their haloed block of keys;
`all_pairs` multiplies the whole map with itself and suits maps about as large as the
window. No method but `reference` makes an array `kernel_size**2` times the keys.

Shapes in comments: B batch, Y and X blocks, i and j row and column of a query, u and v
row and column of a key, h heads, d head_dim, e half of it, k kernel_size.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from alite_jax.errors import ConfigError, nearest

BORDERS = ("zero", "mask")

# A logit that no softmax notices. Finite, so that rows in which everything is excluded,
# as in the padding of the last block, have finite (and unused) results and gradients.
_EXCLUDED = -1e30

# Queries per block and axis. The halo of a 7-window makes 10x10 keys of a 4x4 block;
# benchmarks belong to `benchmarks/`, this is the best single size of the first look.
_BLOCK_SIZE = 4


def local_attention(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    row_embeddings: jax.Array,
    column_embeddings: jax.Array,
    *,
    kernel_size: int,
    border: str = "zero",
    method: str = "auto",
) -> jax.Array:
    """Attends from each pixel to the window around it.

    Args:
        queries: `[batch, height, width, heads, head_dim]`, any float dtype.
        keys: same shape as `queries`.
        values: same shape as `queries`.
        row_embeddings: `[kernel_size, head_dim // 2]`; entry `a` belongs to the key
            row `a - kernel_size // 2` below the query.
        column_embeddings: `[kernel_size, head_dim // 2]`, likewise for columns.
        kernel_size: odd side of the window, in pixels.
        border: `"zero"` lets the window run over zero keys and values outside the map
            (their logit is `q . r`); `"mask"` leaves them out of the softmax.
        method: `"reference"`, `"blocked"`, `"all_pairs"`, or `"auto"`, which takes
            whichever of the last two multiplies fewer pairs for these static shapes.

    Returns:
        `[batch, height, width, heads, head_dim]` in the dtype of `values`. Logits and
        softmax are float32 whatever the dtype of the inputs.

    Raises:
        ConfigError: for an even kernel, an odd head_dim, an unknown border or method,
            or shapes that do not belong together.
    """
    _check(queries, keys, values, row_embeddings, column_embeddings, kernel_size)
    if border not in BORDERS:
        raise ConfigError(
            f"local_attention: unknown border {border!r}; {nearest(border, BORDERS)}"
        )
    if method == "auto":
        _, height, width, _, _ = queries.shape
        method = _cheapest(height, width, kernel_size)
    if method not in METHODS:
        valid = (*METHODS, "auto")
        raise ConfigError(
            f"local_attention: unknown method {method!r}; {nearest(method, valid)}"
        )
    return METHODS[method](
        queries, keys, values, row_embeddings, column_embeddings, border=border
    )


def reference(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    row_embeddings: jax.Array,
    column_embeddings: jax.Array,
    *,
    border: str,
) -> jax.Array:
    """The unfold: every window copied out. For tests, and as a benchmark's peer."""
    size = row_embeddings.shape[0]
    row_logits, column_logits = _window_logits(
        queries, row_embeddings, column_embeddings
    )
    logits = jnp.einsum(
        "...ijhd,...ijuvhd->...hijuv",
        queries,
        _unfold(keys, size),
        preferred_element_type=jnp.float32,
    )
    logits = logits + row_logits[..., :, None] + column_logits[..., None, :]
    if border == "mask":
        rows, columns = (_inside(side, size) for side in queries.shape[1:3])
        inside = rows[:, None, :, None] & columns[None, :, None, :]  # [i, j, u, v]
        logits = jnp.where(inside[None, None], logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=(-2, -1)).astype(values.dtype)
    return jnp.einsum("...hijuv,...ijuvhd->...ijhd", weights, _unfold(values, size))


def blocked(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    row_embeddings: jax.Array,
    column_embeddings: jax.Array,
    *,
    border: str,
) -> jax.Array:
    """Blocks of queries against their haloed block of keys: one matrix product each."""
    height, width = queries.shape[1:3]
    halo = row_embeddings.shape[0] // 2
    rows, columns = -(-height // _BLOCK_SIZE), -(-width // _BLOCK_SIZE)
    query_blocks = _haloed_blocks(queries, rows, columns, halo=0)
    key_blocks = _haloed_blocks(keys, rows, columns, halo=halo)
    value_blocks = _haloed_blocks(values, rows, columns, halo=halo)

    # Within a block, the halo puts key 0 that many pixels before query 0.
    query = np.arange(_BLOCK_SIZE)
    key = np.arange(-halo, _BLOCK_SIZE + halo)
    row_logits, column_logits = _relative_logits(
        query_blocks, row_embeddings, column_embeddings, (query, key), (query, key)
    )
    if border == "mask":
        outside_rows = _outside_keys(height, rows, key)  # [Y, u]
        outside_columns = _outside_keys(width, columns, key)  # [X, v]
        row_logits += outside_rows[None, :, None, None, None, None, :]
        column_logits += outside_columns[None, None, :, None, None, None, :]
    output = _attend(query_blocks, key_blocks, value_blocks, row_logits, column_logits)
    output = output.swapaxes(2, 3)  # [B, Y, i, X, j, h, d]
    padded = (rows * _BLOCK_SIZE, columns * _BLOCK_SIZE)
    output = output.reshape(output.shape[0], *padded, *output.shape[5:])
    return output[:, :height, :width]


def all_pairs(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    row_embeddings: jax.Array,
    column_embeddings: jax.Array,
    *,
    border: str,
) -> jax.Array:
    """One matrix product of the whole map with itself, windows by exclusion.

    With `border="zero"` the positions outside the map, whose keys and values are zero,
    enter the softmax as one more logit: the log-sum-exp of theirs.
    """
    height, width = queries.shape[1:3]
    size = row_embeddings.shape[0]
    rows, columns = np.arange(height), np.arange(width)
    row_logits, column_logits = _relative_logits(
        queries, row_embeddings, column_embeddings, (rows, rows), (columns, columns)
    )
    outside = None
    if border == "zero":
        window = _window_logits(queries, row_embeddings, column_embeddings)
        outside = _outside_logit(*window, _inside(height, size), _inside(width, size))
    return _attend(queries, keys, values, row_logits, column_logits, outside)


METHODS: dict[str, Callable[..., jax.Array]] = {
    "reference": reference,
    "blocked": blocked,
    "all_pairs": all_pairs,
}


def _cheapest(height: int, width: int, kernel_size: int) -> str:
    """The method that multiplies the fewest query-key pairs."""
    blocked_pairs = (_BLOCK_SIZE + kernel_size - 1) ** 2
    return "all_pairs" if height * width <= blocked_pairs else "blocked"


def _attend(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    row_logits: jax.Array,
    column_logits: jax.Array,
    outside: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention of `[..., i, j, h, d]` queries to `[..., u, v, h, d]` keys.

    Args:
        queries: `[..., i, j, h, d]`.
        keys: `[..., u, v, h, d]`.
        values: `[..., u, v, h, d]`.
        row_logits: `[..., h, i, j, u]`, float32.
        column_logits: `[..., h, i, j, v]`, float32.
        outside: `[..., h, i, j]`, the logit of something whose value is zero.

    Returns:
        `[..., i, j, h, d]` in the dtype of `values`.
    """
    logits = jnp.einsum(
        "...ijhd,...uvhd->...hijuv", queries, keys, preferred_element_type=jnp.float32
    )
    logits = logits + row_logits[..., :, None] + column_logits[..., None, :]
    largest = jnp.max(logits, axis=(-2, -1))
    if outside is not None:
        largest = jnp.maximum(largest, outside)
    largest = jax.lax.stop_gradient(largest)
    weights = jnp.exp(logits - largest[..., None, None])
    total = jnp.sum(weights, axis=(-2, -1))
    if outside is not None:
        total += jnp.exp(outside - largest)
    output = jnp.einsum(
        "...hijuv,...uvhd->...ijhd",
        weights.astype(values.dtype),
        values,
        preferred_element_type=jnp.float32,
    )
    # Dividing the output costs head_dim divisions a query instead of one a pair.
    return (output / jnp.moveaxis(total, -3, -1)[..., None]).astype(values.dtype)


def _relative_logits(
    queries: jax.Array,
    row_embeddings: jax.Array,
    column_embeddings: jax.Array,
    rows: tuple[np.ndarray, np.ndarray],
    columns: tuple[np.ndarray, np.ndarray],
) -> tuple[jax.Array, jax.Array]:
    """Row part `[..., h, i, j, u]` and column part `[..., h, i, j, v]` of `q . r`.

    `rows` and `columns` hold the positions of queries and keys along their axis. Keys
    that the window does not reach are excluded.
    """
    halves = jnp.split(queries, 2, axis=-1)
    parts = []
    for half, embeddings, (query, key), table in (
        (halves[0], row_embeddings, rows, "iue"),
        (halves[1], column_embeddings, columns, "jue"),
    ):
        size = embeddings.shape[0]
        offset = key[None, :] - query[:, None] + size // 2
        in_window = (offset >= 0) & (offset < size)
        logits = jnp.einsum(
            f"...ijhe,{table}->...hiju",
            half,
            embeddings[np.clip(offset, 0, size - 1)],
            preferred_element_type=jnp.float32,
        )
        excluded = np.where(in_window, 0.0, _EXCLUDED).astype(np.float32)
        excluded = excluded[:, None] if table[0] == "i" else excluded[None]
        parts.append(logits + _leading(excluded, logits.ndim))
    return parts[0], parts[1]


def _window_logits(
    queries: jax.Array, row_embeddings: jax.Array, column_embeddings: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Row and column part of `q . r` per offset, each `[..., h, i, j, k]`."""
    row_half, column_half = jnp.split(queries, 2, axis=-1)
    part = partial(
        jnp.einsum, "...ijhe,ke->...hijk", preferred_element_type=jnp.float32
    )
    return part(row_half, row_embeddings), part(column_half, column_embeddings)


def _outside_logit(
    row_logits: jax.Array,
    column_logits: jax.Array,
    inside_rows: np.ndarray,
    inside_columns: np.ndarray,
) -> jax.Array:
    """Log-sum-exp of the logits outside the map, `[..., h, i, j]`.

    Such a logit is `row part + column part`, so the sum factors: rows outside with all
    columns, plus rows inside with columns outside. Adding up the outside only, nothing
    cancels; a query whose window lies inside the map gets `_EXCLUDED`.

    Args:
        row_logits: `[..., h, i, j, k]`, from `_window_logits`.
        column_logits: `[..., h, i, j, k]`.
        inside_rows: bool `[i, k]`, whether that row of the window is in the map.
        inside_columns: bool `[j, k]`.
    """

    def log_sum(logits: jax.Array, kept: np.ndarray) -> jax.Array:
        kept = _leading(kept, logits.ndim)
        return jax.nn.logsumexp(jnp.where(kept, logits, _EXCLUDED), axis=-1)

    rows, columns = inside_rows[:, None], inside_columns[None]
    return jnp.logaddexp(
        log_sum(row_logits, ~rows) + jax.nn.logsumexp(column_logits, axis=-1),
        log_sum(row_logits, rows) + log_sum(column_logits, ~columns),
    )


def _haloed_blocks(maps: jax.Array, rows: int, columns: int, halo: int) -> jax.Array:
    """Cuts `[B, H, W, h, d]` into `[B, rows, columns, s + 2 halo, s + 2 halo, h, d]`.

    What lies outside the map is zero. Whole neighbouring blocks are joined and trimmed,
    since the transpose of that is a few additions of contiguous pieces; a gather would
    turn into a scatter.
    """
    reach = -(-halo // _BLOCK_SIZE)  # neighbours on each side
    for axis, count in ((1, rows), (3, columns)):
        margin = reach * _BLOCK_SIZE
        after = margin + count * _BLOCK_SIZE - maps.shape[axis]
        padding = [(0, 0)] * maps.ndim
        padding[axis] = (margin, after)
        maps = jnp.pad(maps, padding)
        shape = (count + 2 * reach, _BLOCK_SIZE)
        maps = maps.reshape(*maps.shape[:axis], *shape, *maps.shape[axis + 1 :])
        maps = jnp.concatenate(
            [
                jax.lax.slice_in_dim(maps, step, step + count, axis=axis)
                for step in range(2 * reach + 1)
            ],
            axis=axis + 1,
        )
        maps = jax.lax.slice_in_dim(
            maps, margin - halo, margin + _BLOCK_SIZE + halo, axis=axis + 1
        )
    return maps.swapaxes(2, 3)  # [B, Y, u, X, v, h, d] -> [B, Y, X, u, v, h, d]


def _outside_keys(side: int, blocks: int, key: np.ndarray) -> np.ndarray:
    """`[blocks, u]` float32: `_EXCLUDED` where a block's key lies outside the map."""
    position = np.arange(blocks)[:, None] * _BLOCK_SIZE + key[None]
    inside = (position >= 0) & (position < side)
    return np.where(inside, 0.0, _EXCLUDED).astype(np.float32)


def _inside(side: int, kernel_size: int) -> np.ndarray:
    """Bool `[side, kernel_size]`: whether that part of the window is in the map."""
    position = np.arange(side)[:, None] + np.arange(kernel_size) - kernel_size // 2
    return (position >= 0) & (position < side)


def _unfold(maps: jax.Array, size: int) -> jax.Array:
    """`[B, H, W, h, d]` to `[B, H, W, size, size, h, d]`, zero outside the map."""
    _, height, width = maps.shape[:3]
    halo = size // 2
    maps = jnp.pad(maps, ((0, 0), (halo, halo), (halo, halo), (0, 0), (0, 0)))
    rows = np.arange(height)[:, None] + np.arange(size)  # [H, size]
    columns = np.arange(width)[:, None] + np.arange(size)  # [W, size]
    return maps[:, rows[:, None, :, None], columns[None, :, None, :]]


def _leading(array: np.ndarray, ndim: int) -> np.ndarray:
    """Adds leading axes up to `ndim`, since rank promotion is an error in the tests."""
    return array.reshape((1,) * (ndim - array.ndim) + array.shape)


def _check(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    row_embeddings: jax.Array,
    column_embeddings: jax.Array,
    kernel_size: int,
) -> None:
    """Raises ConfigError where static shapes do not belong together."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ConfigError(
            f"local_attention: kernel_size is {kernel_size}, but the window needs a"
            " centre pixel; use an odd number such as 3, 5 or 7"
        )
    if queries.ndim != 5 or not queries.shape == keys.shape == values.shape:
        raise ConfigError(
            "local_attention: queries, keys and values must share one shape [batch,"
            f" height, width, heads, head_dim], found {queries.shape}, {keys.shape} and"
            f" {values.shape}"
        )
    expected = (kernel_size, queries.shape[-1] // 2)
    if queries.shape[-1] % 2:
        raise ConfigError(
            f"local_attention: head_dim is {queries.shape[-1]}, but one half serves the"
            " row and one the column embedding; use an even head_dim"
        )
    if not row_embeddings.shape == column_embeddings.shape == expected:
        raise ConfigError(
            f"local_attention: embeddings must be [kernel_size, head_dim // 2] ="
            f" {expected}, found {row_embeddings.shape} and {column_embeddings.shape}"
        )
