"""Local self-attention in eager PyTorch, by the customary unfold of every window.

Computes what `alite_jax.ops.local_attention.reference` computes with `border="zero"`,
in torch's own layout. Compared were, with and without the backward pass: sums over the
window as broadcast products, einsum and batched matmul, window axes behind or before
the pixels, and embeddings added to the unfolded keys. Broadcast products over window
axes before the pixels took the least time in sum. Windows are a view by `unfold`, as
public codes have it, or copies by `im2col`: which is faster depends on the allocator.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def unfold(maps: Tensor, size: int) -> Tensor:
    """Lays out the window of every pixel, as a view of the padded maps.

    Args:
        maps: `[batch, heads, head_dim, height, width]`.
        size: odd side of the window.

    Returns:
        `[batch, heads, head_dim, size, size, height, width]`.
    """
    halo = size // 2
    padded = F.pad(maps.flatten(1, 2), (halo, halo, halo, halo))
    windows = padded.unfold(2, size, 1).unfold(3, size, 1).permute(0, 1, 4, 5, 2, 3)
    return windows.unflatten(1, maps.shape[1:3])


def im2col(maps: Tensor, size: int) -> Tensor:
    """As `unfold`, by copying."""
    windows = F.unfold(maps.flatten(1, 2), size, padding=size // 2)
    return windows.view(*maps.shape[:3], size, size, *maps.shape[3:])


def local_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    row_embeddings: Tensor,
    column_embeddings: Tensor,
    windows: Callable[[Tensor, int], Tensor] = unfold,
) -> Tensor:
    """Attends from each pixel to the window around it, zeros outside the map.

    Args:
        queries: `[batch, heads, head_dim, height, width]`, float32.
        keys: same shape as `queries`.
        values: same shape as `queries`.
        row_embeddings: `[kernel_size, head_dim // 2]`, float32; entry `a` belongs to
            the key row `a - kernel_size // 2` below the query.
        column_embeddings: `[kernel_size, head_dim // 2]`, likewise for columns.
        windows: `unfold` or `im2col`.

    Returns:
        `[batch, heads, head_dim, height, width]`, float32.
    """
    size = len(row_embeddings)
    row_half, column_half = queries.chunk(2, dim=2)
    row_logits = torch.einsum("bheij,ue->bhuij", row_half, row_embeddings)
    column_logits = torch.einsum("bheij,ve->bhvij", column_half, column_embeddings)
    logits = (queries[:, :, :, None, None] * windows(keys, size)).sum(dim=2)
    logits = logits + row_logits[:, :, :, None] + column_logits[:, :, None, :]
    weights = logits.flatten(2, 3).softmax(dim=2).unflatten(2, (size, size))
    return (weights[:, :, None] * windows(values, size)).sum(dim=(3, 4))
