"""Local self-attention with relative positions, as pure functions.

After SASA (arXiv 1906.05909): each query attends to the `kernel_size` x `kernel_size`
window of keys around it,

    output = sum over the window of softmax(q . k + q . r) v

where `r` joins an embedding of the row offset with one of the column offset, so that
`q . r = q[:half] . row + q[half:] . column`. There is no scale, no bias and no output
projection. All heads share the embeddings.

Six methods compute the same numbers. `reference` unfolds the window and exists to be
compared with. `blocked` multiplies blocks of queries with their haloed block of keys;
`all_pairs` multiplies the whole map with itself and suits maps about as large as the
window; `rows` adds up shifted products and suits CPUs, whose matrix products are slow
at the few channels of a head; `fused` has kernels for NVIDIA GPUs and `lanes` for TPUs,
for which it is compiled but where it has never run: they keep all of this out of
memory. No method but `reference` makes an array `kernel_size**2` times the
keys.

Shapes: B batch, Y and X rows and columns of blocks, i and j row and column of a query,
u and v row and column of a key, h heads, d head_dim, k kernel_size.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from alite_jax.errors import ConfigError, nearest
from alite_jax.ops import fused_attention, lane_attention
from alite_jax.ops.backend import platform
from alite_jax.ops.fused_attention import fused
from alite_jax.ops.lane_attention import lanes
from alite_jax.ops.relative_positions import (
    outside_keys,
    outside_logit,
    relative_logits,
)
from alite_jax.ops.row_attention import rows
from alite_jax.ops.window_weights import window_weights
from alite_jax.ops.windows import haloed_blocks, unfold

BORDERS = ("zero", "mask")

# Queries per block and axis: for a 7-window, 16 queries share 10x10 keys.
BLOCK_SIZE = 4

# On a CPU, a pair of `all_pairs` takes as long as about this many multiply-adds of
# `rows`, whatever the head_dim (benchmarks/README.md).
_PRODUCTS_A_PAIR_ON_CPU = 9


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
        method: `"reference"`, `"blocked"`, `"all_pairs"`, `"rows"`, `"fused"` or
            `"lanes"` (these three are differentiable once and in reverse mode only), or
            `"auto"`, which takes the fastest for these static shapes and dtypes on the
            platform that `jax.default_device` or the default backend names.

    Returns:
        `[batch, height, width, heads, head_dim]` in the dtype of `values`, empty where
        any of these is 0. Logits and softmax are float32 whatever the dtype of the
        inputs.

    Raises:
        ConfigError: for an even kernel, an odd head_dim, an unknown border or method,
            shapes that do not belong together, or a dtype that the kernels of
            `"fused"` or `"lanes"` do not have.
    """
    _check(queries, keys, values, row_embeddings, column_embeddings, kernel_size)
    if border not in BORDERS:
        raise ConfigError(
            f"local_attention: unknown border {border!r}; {nearest(border, BORDERS)}"
        )
    valid = (*METHODS, "auto")
    if method not in valid:
        raise ConfigError(
            f"local_attention: unknown method {method!r}; {nearest(method, valid)}"
        )
    if 0 in queries.shape:
        # Blocks, strips and groups of images are shares of what there is.
        return jnp.zeros_like(values)
    if method == "auto":
        batch, height, width, _, head_dim = queries.shape
        # `rows` arranges a known number of images; with a free batch dimension there
        # is none.
        backend = platform() if isinstance(batch, int) else "any"
        maps = queries, keys, values
        if backend in _KERNELS and not _KERNELS[backend].can_run(*maps, kernel_size):
            backend = "any"
        method = fastest(height, width, head_dim, kernel_size, backend)
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
    """The unfold: every window copied out, `kernel_size**2` times the memory."""
    weights = window_weights(
        queries, keys, row_embeddings, column_embeddings, border=border
    ).astype(values.dtype)
    windows = unfold(values, row_embeddings.shape[0])
    return jnp.einsum("...ijhuv,...ijuvhd->...ijhd", weights, windows)


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
    query_blocks = haloed_blocks(queries, BLOCK_SIZE, halo=0)
    key_blocks = haloed_blocks(keys, BLOCK_SIZE, halo)
    value_blocks = haloed_blocks(values, BLOCK_SIZE, halo)
    rows, columns = query_blocks.shape[1:3]

    # Within a block, the halo puts key 0 that many pixels before query 0.
    query = np.arange(BLOCK_SIZE)
    key = np.arange(-halo, BLOCK_SIZE + halo)
    row_logits, column_logits = relative_logits(
        query_blocks, row_embeddings, column_embeddings, (query, key), (query, key)
    )
    if border == "mask":
        outside_rows = outside_keys(height, rows, BLOCK_SIZE, key)  # [Y, u]
        outside_columns = outside_keys(width, columns, BLOCK_SIZE, key)  # [X, v]
        row_logits += outside_rows[None, :, None, None, None, None, :]
        column_logits += outside_columns[None, None, :, None, None, None, :]
    output = _attend(query_blocks, key_blocks, value_blocks, row_logits, column_logits)
    output = output.swapaxes(2, 3)  # [B, Y, i, X, j, h, d]
    padded = (rows * BLOCK_SIZE, columns * BLOCK_SIZE)
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
    halo = row_embeddings.shape[0] // 2 if border == "zero" else 0
    row_logits, column_logits = relative_logits(
        queries,
        row_embeddings,
        column_embeddings,
        (np.arange(height), np.arange(-halo, height + halo)),
        (np.arange(width), np.arange(-halo, width + halo)),
    )
    outside = None
    if border == "zero":
        outside = outside_logit(row_logits, column_logits, halo)
        row_logits = row_logits[..., halo : halo + height]
        column_logits = column_logits[..., halo : halo + width]
    return _attend(queries, keys, values, row_logits, column_logits, outside)


METHODS: dict[str, Callable[..., jax.Array]] = {
    "reference": reference,
    "blocked": blocked,
    "all_pairs": all_pairs,
    "rows": rows,
    "fused": fused,
    "lanes": lanes,
}

_KERNELS = {"gpu": fused_attention, "tpu": lane_attention}


def fastest(
    height: int, width: int, head_dim: int, kernel_size: int, backend: str
) -> str:
    """The method: as measured on CPU and GPU, by bytes on TPU, elsewhere by pairs.

    Args:
        height: rows of the map.
        width: columns of the map.
        head_dim: channels of a head.
        kernel_size: odd side of the window, in pixels.
        backend: as of `jax.default_backend`; `"gpu"` or `"tpu"` only where the
            kernels can run.
    """
    if backend in ("gpu", "tpu"):
        return "fused" if backend == "gpu" else "lanes"
    if backend == "cpu":
        products = kernel_size**2 * head_dim
        small = height * width * _PRODUCTS_A_PAIR_ON_CPU < products
        other = "rows"
    else:
        small = height * width <= (BLOCK_SIZE + kernel_size - 1) ** 2
        other = "blocked"
    return "all_pairs" if small else other


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
    # One axis for all pixels of each: over two, XLA on CPU copies operands to contract.
    flat_queries, keys, values = (
        x.reshape(*x.shape[:-4], -1, *x.shape[-2:]) for x in (queries, keys, values)
    )
    logits = jnp.einsum(
        "...qhd,...khd->...hqk", flat_queries, keys, preferred_element_type=jnp.float32
    )
    relative = row_logits[..., :, None] + column_logits[..., None, :]
    logits = logits + relative.reshape(logits.shape)
    largest = jnp.max(logits, axis=-1)
    if outside is not None:
        outside = outside.reshape(largest.shape)
        largest = jnp.maximum(largest, outside)
    largest = jax.lax.stop_gradient(largest)
    weights = jnp.exp(logits - largest[..., None])
    total = jnp.sum(weights, axis=-1)
    if outside is not None:
        total += jnp.exp(outside - largest)
    output = jnp.einsum(
        "...hqk,...khd->...qhd",
        weights.astype(values.dtype),
        values,
        preferred_element_type=jnp.float32,
    )
    # Dividing the output costs head_dim divisions a query instead of one a pair.
    output = output / jnp.moveaxis(total, -2, -1)[..., None]
    return output.reshape(queries.shape).astype(values.dtype)


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
