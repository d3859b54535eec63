"""The metrics of the steps since the last line of the record."""

from collections.abc import Iterable, Mapping

import jax
import numpy as np

from alite_jax.errors import TrainingError
from alite_jax.runs.background import BackgroundSaves
from alite_jax.training.step import Metrics


class StepMetrics:
    """Metrics of steps, still on the device.

    Fetching those of each step would make the host wait for the device; so they are
    fetched together, and checked one by one to name the first step that went wrong.

    Args:
        phase: `teacher` or `student`, for the error.
        checkpoints: of this training, for the error.
        open_steps: what `open_steps` returned before this process, if a checkpoint was
            written between two lines of the record.
    """

    def __init__(
        self,
        phase: str,
        checkpoints: BackgroundSaves,
        open_steps: Iterable[Mapping[str, float]] = (),
    ) -> None:
        self._phase = phase
        self._checkpoints = checkpoints
        self._on_device: list[tuple[int, Metrics]] = []
        self._fetched = [dict(metrics) for metrics in open_steps]

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step.

        Args:
            step: of the training, counted from 1.
            metrics: arrays `[devices]`, the same on all of them.
        """
        self._on_device.append((step, metrics))

    def means(self) -> dict[str, float]:
        """Returns the means over the steps since the last line, and starts a new one.

        Raises:
            TrainingError: a loss or a gradient is not finite.
        """
        steps = self.open_steps()
        self._fetched = []
        return {
            name: float(np.mean([metrics[name] for metrics in steps]))
            for name in steps[0]
        }

    def open_steps(self) -> list[dict[str, float]]:
        """Returns the metrics of each step since the last line, as JSON values.

        Raises:
            TrainingError: a loss or a gradient is not finite.
        """
        for step, metrics in jax.device_get(self._on_device):
            of_step = {name: float(value[0]) for name, value in metrics.items()}
            self._check(step, of_step)
            self._fetched.append(of_step)
        self._on_device = []
        return self._fetched

    def _check(self, step: int, metrics: dict[str, float]) -> None:
        # A gradient of NaN ruins the weights now, the loss only at the next step.
        for name in ("loss", "gradient_norm"):
            if np.isfinite(metrics[name]):
                continue
            saved = self._checkpoints.latest_step()
            kept = (
                "no checkpoint was written yet"
                if saved is None
                else f"step {saved} is the last good checkpoint"
            )
            raise TrainingError(
                f"{self._phase}: the {name.replace('_', ' ')} is {metrics[name]} at"
                f" step {step}; {kept} in {self._checkpoints.directory}: lower"
                f" {self._phase}.optimizer.learning_rate or set its clip_norm, in a new"
                " workdir"
            )
