"""Traces of some training steps, for TensorBoard's profiler and for Perfetto."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from alite_jax.runs.processes import is_first

# Steps before the traced ones: they compile, and fill the queues.
WARM_STEPS = 10


class Trace:
    """Traces the steps of a training after its first ones; does nothing if asked for 0.

    Args:
        folder: of the trace, `plugins/profile/<time>` below it.
        first_step: steps done before this process took over.
        steps: how many to trace.
    """

    def __init__(self, folder: Path, first_step: int, steps: int) -> None:
        self._folder = folder
        self._start = first_step + WARM_STEPS
        self._stop = self._start + steps
        self._enabled = steps > 0 and is_first()
        self._running = False

    def annotate(self, step: int, program: Callable[..., Any]) -> Callable[..., Any]:
        """Gives the program of the steps from `step` on, as a step of the trace."""
        if not self._running:
            return program

        def traced(*arguments: Any) -> Any:
            with jax.profiler.StepTraceAnnotation("step", step_num=step):
                return program(*arguments)

        return traced

    def update(self, step: int, results: Any) -> None:
        """Starts or ends the trace.

        Args:
            step: steps of the training that are done.
            results: of the last one; the trace waits for them.
        """
        if self._enabled and not self._running and self._start <= step < self._stop:
            jax.block_until_ready(results)
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._running = True
        elif self._running and step >= self._stop:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends a trace that is still running."""
        if self._running:
            jax.profiler.stop_trace()
        self._running = self._enabled = False
