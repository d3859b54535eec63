"""Schedules of the prune rate, the share of a layer's weights that a rewiring drops."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from alite_jax.errors import ConfigError, nearest


def prune_rate(
    progress: jax.Array | float, start: float, end: float, schedule: str
) -> jax.Array:
    """The prune rate at a point of the training.

    Args:
        progress: fraction of all steps done, in [0, 1].
        start: rate at progress 0.
        end: rate at progress 1.
        schedule: `"cosine"` (sparse momentum, arXiv 1907.04840) or `"linear"`.

    Returns:
        float32 scalar.

    Raises:
        ConfigError: if there is no such schedule.
    """
    if schedule not in SCHEDULES:
        raise ConfigError(
            f"pruning.prune_rate_schedule is {schedule!r};"
            f" {nearest(schedule, SCHEDULES)}"
        )
    remaining = SCHEDULES[schedule](jnp.asarray(progress, jnp.float32))
    return end + (start - end) * remaining


SCHEDULES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "cosine": lambda progress: 0.5 * (1 + jnp.cos(jnp.pi * progress)),
    "linear": lambda progress: 1 - progress,
}
