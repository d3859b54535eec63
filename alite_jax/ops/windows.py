"""Cutting maps into pieces: blocks or strips with a halo, every window unfolded."""

import jax
import jax.numpy as jnp
import numpy as np


def haloed_blocks(maps: jax.Array, block_size: int, halo: int) -> jax.Array:
    """Cuts maps into blocks that overlap by their halo.

    Outside the map there are zeros. Whole neighbouring blocks are joined and trimmed,
    since the transpose of that is a few additions of contiguous pieces; a gather would
    turn into a scatter.

    Args:
        maps: `[B, H, W, h, d]`.
        block_size: side of a block without its halo; need not divide H or W.
        halo: pixels on each side of a block.

    Returns:
        `[B, Y, X, block_size + 2 halo, block_size + 2 halo, h, d]`, where Y and X are H
        and W divided by `block_size`, rounded up.
    """
    reach = -(-halo // block_size)  # neighbours on each side
    for axis in (1, 3):  # the second one after the first was split in two
        count = -(-maps.shape[axis] // block_size)
        margin = reach * block_size
        after = margin + count * block_size - maps.shape[axis]
        padding = [(0, 0)] * maps.ndim
        padding[axis] = (margin, after)
        maps = jnp.pad(maps, padding)
        shape = (count + 2 * reach, block_size)
        maps = maps.reshape(*maps.shape[:axis], *shape, *maps.shape[axis + 1 :])
        maps = jnp.concatenate(
            [
                jax.lax.slice_in_dim(maps, step, step + count, axis=axis)
                for step in range(2 * reach + 1)
            ],
            axis=axis + 1,
        )
        maps = jax.lax.slice_in_dim(
            maps, margin - halo, margin + block_size + halo, axis=axis + 1
        )
    return maps.swapaxes(2, 3)


def haloed_strips(maps: jax.Array, strips: int, halo: int) -> jax.Array:
    """Cuts maps into strips of rows that overlap by their halo.

    Args:
        maps: `[B, H, W, h, d]`.
        strips: a divisor of H.
        halo: rows above and below each strip; outside the map they are zeros.

    Returns:
        `[B, strips, H / strips + 2 halo, W, h, d]`.
    """
    height = maps.shape[1] // strips
    maps = jnp.pad(maps, ((0, 0), (halo, halo), (0, 0), (0, 0), (0, 0)))
    starts = range(0, strips * height, height)
    pieces = [
        jax.lax.slice_in_dim(maps, start, start + height + 2 * halo, axis=1)
        for start in starts
    ]
    return jnp.stack(pieces, axis=1)


def unfold(maps: jax.Array, size: int) -> jax.Array:
    """Copies out the window of every pixel, zeros outside the map.

    Args:
        maps: `[B, H, W, h, d]`.
        size: odd side of the window.

    Returns:
        `[B, H, W, size, size, h, d]`: `size * size` times as large.
    """
    _, height, width = maps.shape[:3]
    halo = size // 2
    maps = jnp.pad(maps, ((0, 0), (halo, halo), (halo, halo), (0, 0), (0, 0)))
    rows = np.arange(height)[:, None] + np.arange(size)  # [H, size]
    columns = np.arange(width)[:, None] + np.arange(size)  # [W, size]
    return maps[:, rows[:, None, :, None], columns[None, :, None, :]]
