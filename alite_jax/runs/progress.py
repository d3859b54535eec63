"""Progress of a run for the person who watches it."""

import numbers
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

import tqdm

_PERCENT = ("accuracy", "density")


class Progress:
    """Progress of one phase: a bar on a terminal, elsewhere one line an epoch.

    Args:
        phase: what the bar is called, `teacher` or `student`.
        total_steps: steps of the whole phase.
        initial_step: steps done before this process took over.
        images_per_step: global batch size.
        enabled: with `False` nothing is printed at all.
        file: where to print, standard error by default.
    """

    def __init__(
        self,
        phase: str,
        total_steps: int,
        initial_step: int,
        images_per_step: int,
        enabled: bool,
        file: TextIO | None = None,
    ) -> None:
        self._phase = phase
        self._total_steps = total_steps
        self._images_per_step = images_per_step
        self._enabled = enabled
        self._file = sys.stderr if file is None else file
        self._step = initial_step
        # The rate counts from here; moved to the first update, after compilation.
        self._since: tuple[int, float] | None = None
        self._bar: tqdm.tqdm | None = None
        if enabled and self._file.isatty():
            self._bar = tqdm.tqdm(
                desc=phase,
                total=total_steps,
                initial=initial_step,
                file=self._file,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
                "[{elapsed}<{remaining}{postfix}]",
            )

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Moves to `step` (steps of the phase that are done).

        Args:
            step: at least the one before.
            metrics: the newest values; `loss`, `accuracy` and `density` are shown.
        """
        now = time.monotonic()
        if self._since is None:
            self._since = (step, now)
        if self._bar is not None:
            shown = {n: metrics[n] for n in ("loss", *_PERCENT) if n in metrics}
            if shown:
                text = ", ".join([*_phrases(shown), *self._speed(step, now)[:1]])
                self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._step)
        self._step = step

    def epoch(self, epoch: int, total_epochs: int, metrics: Mapping[str, Any]) -> None:
        """Prints the line of a finished epoch, above the bar where there is one.

        Args:
            epoch: epochs done, from 1.
            total_epochs: epochs of the phase.
            metrics: all of them are shown, in their order.
        """
        if not self._enabled:
            return
        now = time.monotonic()
        parts = [*_phrases(metrics), *self._speed(self._step, now)]
        line = f"{self._phase} epoch {epoch}/{total_epochs}: " + ", ".join(parts)
        self._since = (self._step, now)
        if self._bar is not None:
            self._bar.write(line, file=self._file)
        else:
            print(line, file=self._file, flush=True)

    def close(self) -> None:
        """Leaves the bar as it stands and ends its line."""
        if self._bar is not None:
            self._bar.close()

    def _speed(self, step: int, now: float) -> list[str]:
        if self._since is None or step <= self._since[0] or now <= self._since[1]:
            return []
        steps_per_second = (step - self._since[0]) / (now - self._since[1])
        left = (self._total_steps - step) / steps_per_second
        phrases = [f"{steps_per_second * self._images_per_step:,.0f} images/s"]
        if left > 0:
            phrases.append(f"{tqdm.tqdm.format_interval(left)} left")
        return phrases


def _phrases(metrics: Mapping[str, Any]) -> list[str]:
    return [f"{name} {_format(name, value)}" for name, value in metrics.items()]


def _format(name: str, value: Any) -> str:
    if name.endswith(_PERCENT):
        return f"{100 * float(value):.2f} %"
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    return f"{float(value):.4g}"
