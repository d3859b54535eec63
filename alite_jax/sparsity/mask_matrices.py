"""The masks of a few layers as matrices, to be looked at."""

import chex
import numpy as np

from alite_jax.trees import named_leaves

_TELLING = ("query", "value", "expand")


def mask_matrices(masks: chex.ArrayTree, count: int) -> dict[str, np.ndarray]:
    """Masks of layers from everywhere in a network, as they come in its tree.

    Args:
        masks: of a network, bool arrays, or scalars where nothing is pruned.
        count: the most layers to choose; of this project's networks, matrices of
            blocks.

    Returns:
        bool `[inputs, outputs]` by the path of the layer, with a kernel's pixels among
        the inputs; {} for a dense network.
    """
    pruned = {
        path.removesuffix("/kernel"): np.reshape(mask, (-1, np.shape(mask)[-1]))
        for path, mask in named_leaves(masks)
        if np.ndim(mask) > 0
    }
    names = [name for name in pruned if "stage" in name] or list(pruned)
    names = [name for name in names if name.endswith(_TELLING)] or names
    places = np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)
    return {names[place]: pruned[names[place]] for place in places}


def shrunk(matrix: np.ndarray, side: int) -> np.ndarray:
    """Draws a mask in at most `side` pixels each way, kept weights black.

    Args:
        matrix: bool `[inputs, outputs]`.
        side: a larger mask becomes blocks, as grey as a part of them is kept.

    Returns:
        uint8 `[height, width]`, 0 where everything is kept.
    """
    for axis in (0, 1):
        length = matrix.shape[axis]
        if length > side:
            starts = np.arange(side) * length // side
            sizes = np.diff(np.append(starts, length))
            sums = np.add.reduceat(matrix.astype(float), starts, axis)
            matrix = sums / np.expand_dims(sizes, 1 - axis)
    return np.round(255 * (1 - matrix.astype(float))).astype(np.uint8)
