"""When masks change, and by how much: steps of rewiring, prune rate, pruned share."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from alite_jax.errors import ConfigError, nearest
from alite_jax.schedules import SCHEDULES, interpolate


def prune_rate(
    progress: jax.Array | float, start: float, end: float, schedule: str
) -> jax.Array:
    """The prune rate, the share of a layer's weights that a rewiring drops.

    Args:
        progress: fraction of the steps with rewirings that are done, in [0, 1].
        start: rate at progress 0.
        end: rate at progress 1.
        schedule: `"cosine"` (sparse momentum, arXiv 1907.04840; RigL, arXiv
            1911.11134), `"linear"`, or `"constant"` at the start's rate (SET).

    Returns:
        float32 scalar.

    Raises:
        ConfigError: if there is no such schedule.
    """
    if schedule not in SCHEDULES:
        raise ConfigError(
            f"the prune_rate_schedule is {schedule!r}; {nearest(schedule, SCHEDULES)}"
        )
    return interpolate(progress, start, end, schedule)


@dataclass(frozen=True)
class RewiringSteps:
    """The steps after which masks change: multiples of `every`, up to `last`.

    Attributes:
        total: steps of the training; masks do not change after the very last one.
        every: steps between two changes, at least 1.
        stop_fraction: of the training, in (0, 1], after which masks stay.

    Raises:
        ConfigError: a number is outside its range.

    Example:
        >>> steps = alite_jax.RewiringSteps(total=1000, every=100, stop_fraction=0.5)
        >>> steps.last, 300 in steps, 350 in steps, 600 in steps
        (500, True, False, False)
    """

    total: int
    every: int
    stop_fraction: float = 1.0

    def __post_init__(self) -> None:
        if self.every < 1 or not 0 < self.stop_fraction <= 1:
            raise ConfigError(
                f"masks cannot change every {self.every} steps up to"
                f" {self.stop_fraction:g} of them; `every` is at least 1, and"
                " `stop_fraction` above 0 and at most 1"
            )

    @property
    def last(self) -> int:
        """The last step that masks change after; 0 if they never do."""
        # 100 * 0.29 is a little less than 29.
        stop = math.floor(self.total * self.stop_fraction + 1e-6)
        stop = min(stop, self.total - 1)
        return max(0, stop - stop % self.every)

    def __contains__(self, step: int) -> bool:
        """Whether masks change after this many steps."""
        return 0 < step <= self.last and step % self.every == 0

    def due(self, step: jax.Array) -> jax.Array:
        """Whether masks change after `step` steps, a traced number: a bool scalar."""
        return (step > 0) & (step <= self.last) & (step % self.every == 0)

    def of_change(self, values: np.ndarray, step: jax.Array) -> jax.Array:
        """That of the change after a step, of `values` `[changes, ...]`."""
        change = jnp.clip(step // self.every, 1, self.last // self.every) - 1
        return jnp.array(values)[change]

    def progress(self, step: jax.Array) -> jax.Array:
        """Which fraction of the steps with changes is done after `step` of them.

        float32 scalar in [0, 1]; 1 from `stop_fraction` of the training on.
        """
        done = jnp.asarray(step, jnp.float32) / (self.total * self.stop_fraction)
        return jnp.minimum(done, 1.0)

    def remaining(self) -> np.ndarray:
        """What is left to prune after each change, by the cubic schedule.

        `(1 - step / last)**3` (arXiv 1710.01878, equation 1): float64 from below 1 to
        exactly 0, of shape `[changes]`.
        """
        steps = np.arange(self.every, self.last + 1, self.every)
        return (1 - steps / max(self.last, 1)) ** 3
