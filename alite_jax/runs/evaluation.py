"""Evaluating a network on every example of the evaluation split."""

from collections.abc import Iterable
from statistics import fmean
from typing import Any, NamedTuple

import jax
import numpy as np

from alite_jax.data.pipeline import eval_batches
from alite_jax.data.sources import Data
from alite_jax.models.model import Model
from alite_jax.runs import parallel
from alite_jax.training.state import Variables
from alite_jax.training.step import make_eval_step


class Evaluation(NamedTuple):
    """How a network answers on the evaluation images.

    Attributes:
        accuracy: fraction of the images whose likeliest class is their own.
        loss: mean cross-entropy, nats.
        class_accuracy: `accuracy` of the images of each class, by label; None for a
            class without any.
        top5_accuracy: fraction of the images whose class is among the five likeliest;
            None with few classes (`alite_jax.training.step.TOP5_CLASSES`).
    """

    accuracy: float
    loss: float
    class_accuracy: list[float | None]
    top5_accuracy: float | None

    @property
    def mean_class_accuracy(self) -> float:
        """Mean over the classes with images (balanced accuracy)."""
        return fmean(found for found in self.class_accuracy if found is not None)


class Evaluator:
    """Evaluates one model, compiled once, on all examples, each counted once."""

    def __init__(self, model: Model, data: Data, batch_size: int) -> None:
        """Prepares; nothing is compiled before the first call.

        Args:
            model: the module.
            data: whose evaluation split is used.
            batch_size: examples in a batch, over all devices.

        Raises:
            ConfigError: the devices cannot share a batch equally.
        """
        self._step = parallel.spread(make_eval_step(model, data.spec))
        self._data = data
        self._batch_size = batch_size
        self._batches()  # A wrong batch size must stop the run now, not after an epoch.

    def __call__(self, variables: Variables) -> dict[str, float]:
        """Returns `eval_accuracy` (a fraction) and `eval_loss` (nats).

        Args:
            variables: `params` and `batch_stats`, replicated over the devices.
        """
        found = self.measure(variables)
        return {"eval_accuracy": found.accuracy, "eval_loss": found.loss}

    def measure(self, variables: Variables) -> Evaluation:
        """Returns all that is known of a network's answers.

        Args:
            variables: see `__call__`.
        """
        batches = jax.device_get(
            [self._step(variables, batch) for batch in self._batches()]
        )
        sums = {
            name: np.array([b[name][0] for b in batches], np.float64).sum(axis=0)
            for name in batches[0]
        }
        count = sums["count"].sum()
        return Evaluation(
            accuracy=float(sums["correct"].sum() / count),
            loss=float(sums["loss"] / count),
            class_accuracy=[
                float(correct / images) if images else None
                for correct, images in zip(sums["correct"], sums["count"], strict=True)
            ],
            top5_accuracy=float(sums["top5"] / count) if "top5" in sums else None,
        )

    def _batches(self) -> Iterable[Any]:
        return eval_batches(
            self._data.evaluation,
            self._batch_size,
            parallel.device_count(),
            parallel.own_devices(),
        )
