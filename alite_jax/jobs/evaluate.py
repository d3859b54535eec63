"""The job `evaluate`: how good the networks of a run are, measured again."""

import os
import time
from typing import Any

from ml_collections import ConfigDict

from alite_jax.compiled_programs import keep_compiled_programs
from alite_jax.jax_settings import job
from alite_jax.jobs.command import Command
from alite_jax.pages.table import comparison_table
from alite_jax.paths import user_path
from alite_jax.runs.data import load_data
from alite_jax.runs.evaluation import Evaluator
from alite_jax.runs.folder import settled
from alite_jax.runs.given import Given
from alite_jax.runs.networks import create_networks
from alite_jax.runs.processes import say
from alite_jax.runs.summary import compare, network_summary


def run(command: Command) -> None:
    """Evaluates the networks of the run in the folder."""
    keep_compiled_programs()
    evaluate(command.config(), command.workdir)


@job
def evaluate(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    *,
    student: Any = None,
    teacher: Any = None,
) -> dict[str, Any]:
    """Evaluates the newest checkpoints of a run on the evaluation split.

    Args:
        config: the run's own; the evaluation split and its batch size may differ.
        workdir: the run's folder.
        student: as for `train`, if it was given there.
        teacher: the same.

    Returns:
        `dataset`, `seed`, `teacher`, `student`, `ratios`, `accuracy_drop` and `seconds`
        as in `summary.json`.

    Raises:
        AliteError: with one sentence, for example if there is no checkpoint.

    Example:
        >>> found = alite_jax.evaluate(config, workdir)
        >>> trained = alite_jax.train(config, workdir)  # It is finished.
        >>> found["student"]["accuracy"] == trained["student"]["accuracy"]
        True
    """
    given = Given(student, teacher)
    folder = user_path(workdir)
    config = settled(given.named(config), folder)
    data = load_data(config, folder)
    started = time.monotonic()
    results: list[Any] = []
    for network in create_networks(config, data, folder, given):
        if network is None:
            results.append(None)
            continue
        evaluator = Evaluator(network.model, data, config.data.eval_batch_size)
        variables = network.restore(data.image_shape)
        results.append(network_summary(network, variables, evaluator, data))
    summary = {
        "dataset": data.spec.name,
        "seed": config.seed,
        **compare(*results),
        "seconds": {"evaluation": time.monotonic() - started},
    }
    say(comparison_table(summary))
    return summary
