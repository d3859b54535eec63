"""The attention stem: attention over pixels whose values depend on where they lie.

After SASA (arXiv 1906.05909). At the edges of an image one linear map of
a pixel says little, so the value of a pixel is a mixture of maps, and the place of the
pixel in the window decides the shares:

    output = sum over the window of softmax(q . k) v
    v = (sum over m of p(a, b, m) W_m) x    at row a and column b of the window
    p(a, b, m) = softmax over m of (row(a) + column(b)) . mixture(m)

There is no `q . r`; the heads share p. In the paper the window is the block of the 4x4
max-pooling that follows, which suits images of 224 pixels. A stem of stride 1 has no
pooling to follow, so here the window slides, as in the public code for CIFAR
(leaderj1001/Stand-Alone-Self-Attention): 4x4 pixels, stride 1, padded by 2. That code
weighs values by their content instead of their place; the formula is the paper's.

Images have few channels, so nothing is projected: `q . k` is a form over two pixels,
and the values are mapped after they have been weighted. The window is unfolded as
pixels, `kernel_size**2 * channels` numbers (48 for the paper's sizes), not as keys and
values (2048). Gradients compute this again, so that only the inputs are kept.

Shapes: i and j row and column of a pixel, n position in the window, h heads, d
head_dim, c and e channels of the images, m mixture.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from alite_jax.errors import ConfigError, nearest
from alite_jax.ops.local_attention import BORDERS
from alite_jax.ops.relative_positions import EXCLUDED, inside_map


def stem_attention(
    images: jax.Array,
    query_kernel: jax.Array,
    key_kernel: jax.Array,
    value_kernels: jax.Array,
    row_embeddings: jax.Array,
    column_embeddings: jax.Array,
    mixture_embeddings: jax.Array,
    *,
    heads: int,
    border: str = "zero",
) -> jax.Array:
    """Attends from each pixel to the window around it, with mixtures as values.

    Args:
        images: `[batch, height, width, channels]`, float; its dtype is that of the
            large products.
        query_kernel: `[channels, features]`.
        key_kernel: `[channels, features]`.
        value_kernels: `[mixtures, channels, features]`.
        row_embeddings: `[kernel_size, size]`; entry `a` belongs to the row
            `a - kernel_size // 2` below the query. The side may be even.
        column_embeddings: `[kernel_size, size]`, likewise for columns.
        mixture_embeddings: `[mixtures, size]`.
        heads: divides `features`.
        border: `"zero"` lets the window run over black pixels outside the image (logit
            and value are 0); `"mask"` leaves them out of the softmax.

    Returns:
        `[batch, height, width, features]` in the dtype of `images`, empty where any of
        these is 0. Logits and both softmaxes are float32.

    Raises:
        ConfigError: for heads that do not divide the features, or an unknown border.
    """
    features = query_kernel.shape[-1]
    if features % heads:
        raise ConfigError(
            f"stem_attention: {heads} heads do not divide {features} features;"
            " choose a number that does"
        )
    if border not in BORDERS:
        raise ConfigError(
            f"stem_attention: unknown border {border!r}; {nearest(border, BORDERS)}"
        )
    if 0 in images.shape[:-1]:
        return jnp.zeros((*images.shape[:-1], features), images.dtype)
    attend = jax.checkpoint(partial(_attend, heads=heads, border=border))
    return attend(
        images,
        query_kernel,
        key_kernel,
        value_kernels,
        mixture_shares(row_embeddings, column_embeddings, mixture_embeddings),
    )


def mixture_shares(
    row_embeddings: jax.Array,
    column_embeddings: jax.Array,
    mixture_embeddings: jax.Array,
) -> jax.Array:
    """The shares p of the value kernels, for each place in the window.

    Args:
        row_embeddings: `[kernel_size, size]`.
        column_embeddings: `[kernel_size, size]`.
        mixture_embeddings: `[mixtures, size]`.

    Returns:
        Float32 `[kernel_size, kernel_size, mixtures]`, with sum 1 over the mixtures.
    """
    places = row_embeddings[:, None] + column_embeddings[None]
    logits = jnp.einsum(
        "abs,ms->abm", places, mixture_embeddings, preferred_element_type=jnp.float32
    )
    return jax.nn.softmax(logits)


def _attend(
    images: jax.Array,
    query_kernel: jax.Array,
    key_kernel: jax.Array,
    value_kernels: jax.Array,
    shares: jax.Array,
    *,
    heads: int,
    border: str,
) -> jax.Array:
    kernel_size, dtype = shares.shape[0], images.dtype
    channels = images.shape[-1]
    window = _unfold_pixels(images, kernel_size)
    outside = _outside(images.shape[1:3], kernel_size) if border == "mask" else 0.0
    # Kernels meet kernels in their own precision: these are once for all pixels.
    queries, keys = (
        kernel.reshape(channels, heads, -1) for kernel in (query_kernel, key_kernel)
    )
    forms = jnp.einsum("chd,ehd->hce", queries, keys).astype(dtype)
    values = jnp.einsum("abm,mcf->abcf", shares, value_kernels).astype(dtype)
    values = values.reshape(kernel_size**2 * channels, heads, -1)
    outputs = []
    # One head after the other: a product over all pixels each, without a transpose.
    for head in range(heads):
        seeking = jnp.dot(images, forms[head], preferred_element_type=jnp.float32)
        logits = jnp.sum(seeking[..., None, :] * window, axis=-1)
        weights = jax.nn.softmax(logits + outside).astype(dtype)
        weighted = (weights[..., None] * window).reshape(-1, values.shape[0])
        outputs.append(jnp.dot(weighted, values[:, head]))
    return jnp.concatenate(outputs, axis=-1).reshape(*images.shape[:-1], -1)


def _unfold_pixels(images: jax.Array, kernel_size: int) -> jax.Array:
    """The window of every pixel, `[batch, height, width, n, channels]`."""
    height, width = images.shape[1:3]
    before = kernel_size // 2
    margin = (before, kernel_size - 1 - before)
    padded = jnp.pad(images, ((0, 0), margin, margin, (0, 0)))
    return jnp.stack(
        [
            padded[:, a : a + height, b : b + width]
            for a in range(kernel_size)
            for b in range(kernel_size)
        ],
        axis=3,
    )


def _outside(sides: tuple[int, ...], kernel_size: int) -> np.ndarray:
    """Float32 `[1, height, width, n]`: `EXCLUDED` outside the image, else 0."""
    rows, columns = (inside_map(side, kernel_size) for side in sides)
    both = rows[:, None, :, None] & columns[None, :, None, :]
    excluded = np.where(both, 0.0, EXCLUDED).astype(np.float32)
    return excluded.reshape(1, *sides, kernel_size**2)
