"""The metrics of the steps since the last line of the record."""

import jax
import numpy as np

from alite_jax.errors import TrainingError
from alite_jax.training.checkpoints import Checkpoints
from alite_jax.training.step import Metrics


class Window:
    """Metrics that are still on the device.

    Fetching those of each step would make the host wait for the device; so they are
    fetched together, and checked one by one to name the first step that went wrong.

    Args:
        phase: `teacher` or `student`, for the error.
        checkpoints: of this training, for the error.
    """

    def __init__(self, phase: str, checkpoints: Checkpoints) -> None:
        self._phase = phase
        self._checkpoints = checkpoints
        self._dispatches: list[tuple[range, Metrics]] = []

    def add(self, steps: range, metrics: Metrics) -> None:
        """Takes what `alite_jax.training.dispatch` returned, on all devices.

        Args:
            steps: the steps of the dispatch, counted from 0.
            metrics: arrays `[devices]`, or `[devices, n]` with n at least the number of
                steps.
        """
        self._dispatches.append((steps, metrics))

    def close(self) -> dict[str, float]:
        """Returns the means over the window's steps and starts a new one.

        Raises:
            TrainingError: a loss or a gradient is not finite.
        """
        fetched: list[dict[str, np.ndarray]] = []
        for steps, metrics in jax.device_get(self._dispatches):
            rows = {name: np.ravel(value[0]) for name, value in metrics.items()}
            for i, step in enumerate(steps):
                fetched.append({name: row[i] for name, row in rows.items()})
                self._check(step + 1, fetched[-1])
        self._dispatches = []
        return {
            name: float(np.mean([metrics[name] for metrics in fetched]))
            for name in fetched[0]
        }

    def _check(self, step: int, metrics: dict[str, np.ndarray]) -> None:
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
