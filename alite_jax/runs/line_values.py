"""What a training line says of its step besides what the step measured."""

import jax
import optax

from alite_jax.training.objective import Objective


class LineValues:
    """The settings of a step that have a schedule, and the pace of the training.

    Args:
        schedule: the learning rate by step; None where a program gave the optimizer.
        objective: whose alpha and temperature are told if it has logits to learn from.
        total_steps: of the training.
        batch_size: images in a step.
    """

    def __init__(
        self,
        schedule: optax.Schedule | None,
        objective: Objective,
        total_steps: int,
        batch_size: int,
    ) -> None:
        def values(done: jax.Array) -> dict[str, jax.Array | float]:
            rate = {} if schedule is None else {"learning_rate": schedule(done)}
            if not objective.needs_logits:
                return rate
            alpha, temperature = objective.weights(done, total_steps)
            return rate | {"alpha": alpha, "temperature": temperature}

        self._values = jax.jit(values)
        self._batch_size = batch_size
        self._last: tuple[int, float] | None = None

    def at(self, step: int, seconds: float) -> dict[str, float]:
        """Returns what held in the update that led to `step`.

        Args:
            step: of the training, counted from 1.
            seconds: of training until now, without evaluations.

        Returns:
            `learning_rate`, `alpha` and `temperature` as far as there are any, and
            `images_per_second` since the line before. A process's first line has none,
            since it waited for compilations.
        """
        # float32 has no more digits than that.
        told = {
            name: float(f"{float(value):.6g}")
            for name, value in jax.device_get(self._values(step - 1)).items()
        }
        if self._last is not None and seconds > self._last[1]:
            images = self._batch_size * (step - self._last[0])
            told["images_per_second"] = round(images / (seconds - self._last[1]), 1)
        self._last = step, seconds
        return told
