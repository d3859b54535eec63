"""How a number goes from its start to its end in the course of a training."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# What remains of the way to the end, from 1 to 0, at a progress from 0 to 1.
SCHEDULES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "constant": jnp.ones_like,
    "cosine": lambda progress: 0.5 * (1 + jnp.cos(jnp.pi * progress)),
    "linear": lambda progress: 1 - progress,
}


def interpolate(
    progress: jax.Array | float, start: float, end: float, schedule: str
) -> jax.Array:
    """The value at a point of the training.

    Args:
        progress: fraction of all steps done, in [0, 1]; may be traced.
        start: value at progress 0.
        end: value at progress 1; the schedule `"constant"` never gets there.
        schedule: a key of `SCHEDULES`.

    Returns:
        float32 scalar.
    """
    remaining = SCHEDULES[schedule](jnp.asarray(progress, jnp.float32))
    return end + (start - end) * remaining
