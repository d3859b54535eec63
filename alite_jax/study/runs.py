"""A list of runs around shared teachers, trained one after another."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alite_jax.errors import TrainingError
from alite_jax.runs.processes import is_first

Key = tuple[str, int]  # The name and the seed of a run, which no other run of it has.


@dataclass(frozen=True)
class Run:
    """One run of a study or a sweep.

    Attributes:
        name: of its row in a study, of its folder in a sweep.
        seed: its seed.
        folder: where it is trained.
        config: its whole configuration; `teacher.workdir` and `student.init_workdir`
            are folders of other runs.
        needs: names of the runs that must be finished before, with the same seed.
    """

    name: str
    seed: int
    folder: Path
    config: ConfigDict
    needs: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        """What tells it from the others."""
        return self.name, self.seed


def train_runs(
    title: str, runs: Sequence[Run], train: Callable[[Run], dict[str, Any]]
) -> Iterator[tuple[Run, dict[str, Any] | TrainingError]]:
    """Trains runs, of which one that fails keeps only those back that need it.

    Args:
        title: what the runs are together.
        runs: each after those that it needs.
        train: trains one of them, or resumes it, and returns its summary.

    Yields:
        Each run when it is finished, with its summary, or with what it failed of.
    """
    failed: set[Key] = set()
    for number, run in enumerate(runs, start=1):
        result: dict[str, Any] | TrainingError
        if any((name, run.seed) in failed for name in run.needs):
            result = TrainingError("what it starts from failed")
        else:
            if run.config.logging.progress and is_first():
                place = f"{title}, run {number} of {len(runs)}"
                print(f"{place}: {run.name}, seed {run.seed}", file=sys.stderr)
            try:
                result = train(run)
            except TrainingError as error:
                result = error
        if isinstance(result, TrainingError):
            failed.add(run.key)
        yield run, result
