"""Evaluating a network on every example of the evaluation split."""

from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from alite_jax.data.pipeline import eval_batches
from alite_jax.data.sources import Data
from alite_jax.runs import parallel
from alite_jax.training.state import Variables
from alite_jax.training.step import make_eval_step


class Evaluator:
    """Evaluates one model, compiled once, on all examples, each counted once."""

    def __init__(self, model: nn.Module, data: Data, batch_size: int) -> None:
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
        sums = jax.device_get(
            [self._step(variables, batch) for batch in self._batches()]
        )
        totals = {
            name: np.sum([s[name][0] for s in sums], dtype=np.float64)
            for name in sums[0]
        }
        return {
            "eval_accuracy": float(totals["correct"] / totals["count"]),
            "eval_loss": float(totals["loss"] / totals["count"]),
        }

    def _batches(self) -> Iterable[Any]:
        return eval_batches(
            self._data.evaluation,
            self._batch_size,
            parallel.device_count(),
            parallel.own_devices(),
        )
