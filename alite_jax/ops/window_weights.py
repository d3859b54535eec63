"""The weights of local attention, written out: for the eye, and for the reference."""

import jax
import jax.numpy as jnp

from alite_jax.ops.relative_positions import inside_map, window_logits
from alite_jax.ops.windows import unfold


def window_weights(
    queries: jax.Array,
    keys: jax.Array,
    row_embeddings: jax.Array,
    column_embeddings: jax.Array,
    *,
    border: str,
) -> jax.Array:
    """Softmax of `q . k + q . r` over the window of each pixel.

    Needs `kernel_size**2` times the memory of the keys.

    Args:
        queries: as for `local_attention`, with all that follows.
        keys: same shape.
        row_embeddings: `[kernel_size, head_dim // 2]`.
        column_embeddings: `[kernel_size, head_dim // 2]`.
        border: `"zero"` or `"mask"`.

    Returns:
        `[batch, height, width, heads, kernel_size, kernel_size]`, float32; the last two
        sum up to 1.
    """
    size = row_embeddings.shape[0]
    row_logits, column_logits = window_logits(
        queries, row_embeddings, column_embeddings
    )
    logits = jnp.einsum(
        "...ijhd,...ijuvhd->...hijuv",
        queries,
        unfold(keys, size),
        preferred_element_type=jnp.float32,
    )
    logits = logits + row_logits[..., :, None] + column_logits[..., None, :]
    if border == "mask":
        rows, columns = (inside_map(side, size) for side in queries.shape[1:3])
        inside = rows[:, None, :, None] & columns[None, :, None, :]  # [i, j, u, v]
        logits = jnp.where(inside[None, None], logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=(-2, -1))
    return jnp.moveaxis(weights, 1, 3)
