"""The job `train`: from a configuration and a folder to a teacher and its student."""

import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from alite_jax.config import validate
from alite_jax.data.sources import Data, shared_examples
from alite_jax.errors import ConfigError
from alite_jax.jax_settings import job, keep_compiled_programs
from alite_jax.jobs.command import Command
from alite_jax.pages.table import comparison_table
from alite_jax.paths import user_path
from alite_jax.runs import parallel
from alite_jax.runs.data import load_data
from alite_jax.runs.evaluation import Evaluator
from alite_jax.runs.fit import Network, fit
from alite_jax.runs.folder import at_work, claim, read_summary, record_spec
from alite_jax.runs.metrics import MetricWriter, NoWriter
from alite_jax.runs.networks import create_networks
from alite_jax.runs.processes import is_first, say
from alite_jax.runs.summary import compare, network_summary, write_summary
from alite_jax.sparsity.masks import nominal_density
from alite_jax.training.rewire import check_rewiring_steps, rewiring_steps


def run(command: Command) -> None:
    """Trains both networks, or goes on where the folder's run was stopped."""
    keep_compiled_programs()
    train(command.config(), command.workdir)


@job
def train(config: ConfigDict, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Trains a teacher unless one is given, then distils and prunes a student.

    The same call again resumes; a finished run is reported and left as it is.

    Args:
        config: from `alite_jax.get_config`.
        workdir: the run's folder, made if missing.

    Returns:
        The content of `summary.json`; see the README.

    Raises:
        AliteError: with one sentence, for whatever stops the run.
    """
    validate(config)
    folder = user_path(workdir)
    with at_work(folder):
        claim(folder, config)
        finished = read_summary(folder)
        if finished and "student" in finished:
            say(f"{folder} holds a finished run; its result was:\n")
            say(comparison_table(finished))
            return finished

        # What would stop the student must not wait until the teacher is trained.
        data = load_data(config, folder)
        record_spec(folder, data.spec)
        steps_per_epoch = max(1, len(data.train) // config.data.batch_size)
        check_rewiring_steps(config, rewiring_steps(config, steps_per_epoch))
        teacher, student = create_networks(config, data, folder)
        evaluators = {
            network.phase: Evaluator(network.model, data, config.data.eval_batch_size)
            for network in (teacher, student)
        }
        if config.logging.progress and is_first():
            print(_announcement(config, data, folder, student), file=sys.stderr)

        # The teacher, then the student, which learns from it while it is pruned.
        started = time.monotonic()
        seconds = {}
        with _open_writer(config, folder) as writer:
            if config.teacher.workdir:
                teacher_variables = teacher.restore(data.image_shape)
            else:
                teacher_variables, seconds["teacher_training"] = fit(
                    teacher, None, config, data, evaluators["teacher"], writer
                )
            frozen = (teacher.model, teacher_variables)
            student_variables, seconds["student_training"] = fit(
                student, frozen, config, data, evaluators["student"], writer
            )

        summarize = partial(network_summary, data=data)
        results = compare(
            summarize(teacher, teacher_variables, evaluators["teacher"]),
            summarize(student, student_variables, evaluators["student"]),
        )
        seconds["this_process"] = time.monotonic() - started
        summary = write_summary(folder, config, data.spec.name, results, seconds)
    say(comparison_table(summary))
    return summary


@job
def train_teacher(
    config: ConfigDict, workdir: str | os.PathLike[str]
) -> dict[str, Any]:
    """Trains the teacher alone, for runs that name its folder as `teacher.workdir`.

    The same call again resumes, or returns what is finished; `train` in this folder
    goes on with the student.

    Args:
        config: as for `train`.
        workdir: the run's folder, made if missing.

    Returns:
        The content of `summary.json`, in which nothing is about a student.

    Raises:
        AliteError: with one sentence, for whatever stops the run.
    """
    validate(config)
    folder = user_path(workdir)
    if config.teacher.workdir:
        raise ConfigError(
            f"teacher.workdir is {config.teacher.workdir}, whose teacher needs no"
            " training; set it to '' to train another one"
        )
    with at_work(folder):
        claim(folder, config)
        if finished := read_summary(folder):
            return finished
        data = load_data(config, folder)
        record_spec(folder, data.spec)
        teacher, _ = create_networks(config, data, folder)
        evaluator = Evaluator(teacher.model, data, config.data.eval_batch_size)
        started = time.monotonic()
        with _open_writer(config, folder) as writer:
            variables, training = fit(teacher, None, config, data, evaluator, writer)
        found = network_summary(teacher, variables, evaluator, data)
        seconds = {
            "teacher_training": training,
            "this_process": time.monotonic() - started,
        }
        return write_summary(
            folder, config, data.spec.name, {"teacher": found}, seconds
        )


def _open_writer(config: ConfigDict, folder: Path) -> AbstractContextManager[Any]:
    if is_first():
        return MetricWriter(folder, tensorboard=config.logging.tensorboard)
    return nullcontext(NoWriter())


def _announcement(
    config: ConfigDict, data: Data, folder: Path, student: Network
) -> str:
    """What is about to happen, since compiling makes the first epoch's line late."""
    shared = shared_examples(config.data, data.spec)
    also_trained = f" ({shared:,} of them are trained on, too)" if shared else ""
    asked = config.student.density
    params = student.template(data.image_shape)["params"]
    reached = nominal_density(params, asked, config.pruning.distribution)
    # Rounding to whole weights is no news.
    said = f"density {asked:g}"
    if reached > 1.01 * asked:
        said = f"density {reached:.2g}, not {asked:g}: each layer keeps one weight"
    units = ""
    if student.structure is not None:
        chosen = student.structure.chosen
        units = (
            f" and {chosen.macs:,} of {chosen.dense_macs:,} MACs"
            f" ({chosen.macs / chosen.dense_macs:.1%})"
        )
    devices = f"{parallel.device_count()} {jax.default_backend()} device(s)"
    return (
        f"{data.spec.name}: {len(data.train):,} images to train and"
        f" {len(data.evaluation):,} to evaluate on{also_trained}; teacher"
        f" {config.teacher.model}, student {config.student.model} at {said}{units};"
        f" on {devices}, in {folder}; compiling comes first and takes a while"
    )
