"""How layers share a density: exact numbers of weights to keep in each.

`uniform` gives every layer the same density. `erk`, the Erdos-Renyi-kernel distribution
of RigL (arXiv 1911.11134), gives a layer a density proportional to the sum of its
dimensions over their product, so that small layers stay denser.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from alite_jax.errors import ConfigError, nearest

Shapes = Sequence[tuple[int, ...]]


def layer_counts(shapes: Shapes, density: float, distribution: str) -> list[int]:
    """The number of weights that each layer keeps, at least one.

    Args:
        shapes: of the prunable layers.
        density: kept fraction, in (0, 1].
        distribution: `"uniform"`: `round(density * size)` in each layer; `"erk"`: the
            same total as uniform's unrounded one, shared by the layers' dimensions.

    Raises:
        ConfigError: for a density outside (0, 1] or an unknown distribution.
    """
    if not 0 < density <= 1:
        raise ConfigError(
            f"the density is {density}, but it is the fraction of weights that is"
            " kept; give a number above 0 and at most 1, such as 0.1"
        )
    if distribution not in DISTRIBUTIONS:
        raise ConfigError(
            f"the distribution is {distribution!r};"
            f" {nearest(distribution, DISTRIBUTIONS)}"
        )
    return [max(1, count) for count in DISTRIBUTIONS[distribution](shapes, density)]


def _uniform(shapes: Shapes, density: float) -> list[int]:
    return [round(density * math.prod(shape)) for shape in shapes]


def _erk(shapes: Shapes, density: float) -> list[int]:
    sizes = np.array([math.prod(shape) for shape in shapes], float)
    dimensions = np.array([sum(shape) for shape in shapes], float)
    total = density * sizes.sum()
    full = np.zeros(len(shapes), bool)
    # A layer whose share exceeds its size is kept whole, and the others share the rest.
    # Each round fills at least one more layer, so this ends.
    while True:
        budget = total - sizes[full].sum()
        wanted = np.where(full, 0.0, dimensions)
        # With density 1 everything is full and the remaining budget is 0 of 0.
        share = budget * wanted / max(wanted.sum(), 1.0)
        overfull = ~full & (share >= sizes)
        if not overfull.any():
            break
        full |= overfull
    kept = np.where(full, sizes, share)
    # Rounding the running total keeps the sum exact and each layer within one weight.
    bounds = np.floor(np.cumsum(kept) + 0.5).astype(int)
    return np.diff(bounds, prepend=0).tolist()


DISTRIBUTIONS: dict[str, Callable[[Shapes, float], list[int]]] = {
    "uniform": _uniform,
    "erk": _erk,
}
