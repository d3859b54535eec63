"""The job `train`: from a configuration and a folder to a teacher and its student."""

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from alite_jax.compiled_programs import keep_compiled_programs
from alite_jax.config import flatten
from alite_jax.config.run_config import to_json
from alite_jax.config.validation import given_teacher
from alite_jax.data.sources import Data, shared_examples
from alite_jax.errors import ConfigError
from alite_jax.jax_settings import (
    DETERMINISTIC,
    is_deterministic,
    job,
)
from alite_jax.jobs.command import Command
from alite_jax.pages.table import comparison_table
from alite_jax.paths import user_path
from alite_jax.runs import parallel
from alite_jax.runs.data import load_data
from alite_jax.runs.evaluation import Evaluator
from alite_jax.runs.fit import Network, fit
from alite_jax.runs.folder import at_work, claim, read_summary, record_spec, settled
from alite_jax.runs.given import Given, Optimizer
from alite_jax.runs.metrics import MetricWriter, NoWriter, Sink
from alite_jax.runs.networks import create_networks
from alite_jax.runs.processes import is_first, say
from alite_jax.runs.summary import compare, network_summary, write_summary
from alite_jax.runs.teachers import check_answers, open_table, write_weights
from alite_jax.runs.tensorboard import TensorBoard
from alite_jax.runs.timings import Timings
from alite_jax.runs.trackers import check_trackers, open_trackers
from alite_jax.sparsity.masks import nominal_density, pruning_rules
from alite_jax.training.rewire import check_rewiring_steps, rewiring_steps


def run(command: Command) -> None:
    """Trains both networks, or goes on where the folder's run was stopped."""
    keep_compiled_programs()
    train(command.config(), command.workdir)


@job
def train(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    *,
    student: Any = None,
    teacher: Any = None,
    optimizer: Optimizer | None = None,
) -> dict[str, Any]:
    """Trains a teacher unless one is given, then distils and prunes a student.

    The same call again resumes; a finished run is reported and left as it is.

    Args:
        config: from `alite_jax.get_config`.
        workdir: the run's folder, made if missing.
        student: a network instead of the one that the configuration names: a linen or
            nnx module of images `[batch, height, width, channels]` to logits `[batch,
            classes]`, or a function that makes one; see
            `alite_jax.models.foreign.foreign_model`.
        teacher: one that is trained already: a pair of a function (variables, images)
            -> logits and its variables, or an nnx module; see
            `alite_jax.models.given.given_network`. The fields `teacher.output`,
            `teacher.normalization` and `teacher.image_size` say more about it.
        optimizer: of the student: an optax transformation, or a function that makes one
            from the number of its steps.

    Returns:
        The content of `summary.json`; see the README.

    Raises:
        AliteError: with one sentence, for whatever stops the run.

    Example:
        >>> summary = alite_jax.train(config, workdir)
        >>> student, teacher = summary["student"], summary["teacher"]
        >>> student["nonzero_parameters"] < teacher["parameters"]
        True
        >>> alite_jax.train(config, workdir) == summary  # Nothing is trained again.
        True
    """
    given = Given(student, teacher, optimizer)
    folder = user_path(workdir)
    config = settled(given.named(config), folder)
    with at_work(folder), Timings() as timings:
        claim(folder, config)
        finished = read_summary(folder)
        if finished and "student" in finished:
            say(f"{folder} holds a finished run; its result was:\n")
            say(comparison_table(finished))
            return finished

        # What would stop the student must not wait until the teacher is trained.
        check_trackers(config)
        with timings.spent("reading"):
            data = load_data(config, folder)
        record_spec(folder, data.spec)
        steps_per_epoch = max(1, len(data.train) // config.data.batch_size)
        check_rewiring_steps(config, rewiring_steps(config, steps_per_epoch))
        networks = create_networks(config, data, folder, given)
        table = open_table(config, data)
        evaluators = {
            network.phase: Evaluator(network.model, data, config.data.eval_batch_size)
            for network in networks
            if network is not None
        }
        if config.logging.progress and is_first():
            print(_announcement(config, data, folder, *networks), file=sys.stderr)

        # The teacher, then the student, which learns from it while it is pruned.
        seconds: dict[str, float] = {}
        frozen = None
        taught, learner = networks
        with timings.spent("training"), _open_writer(config, folder) as writer:
            if taught is not None:
                if given_teacher(config):
                    numbers = taught.restore(data.image_shape)
                    if taught.variables is not None:
                        check_answers(taught, data)
                else:
                    numbers, seconds["teacher_training"] = fit(
                        *(taught, None, config, data),
                        *(evaluators["teacher"], writer, timings),
                    )
                    with timings.spent("writing"):
                        write_weights(folder, taught, numbers, data)
                frozen = (taught.model, numbers)
            variables, seconds["student_training"] = fit(
                *(learner, frozen or table, config, data),
                *(evaluators["student"], writer, timings),
            )

        summarize = partial(network_summary, data=data)
        with timings.spent("evaluating"):
            results = compare(
                summarize(taught, frozen[1], evaluators["teacher"])
                if taught is not None and frozen is not None
                else None,
                summarize(learner, variables, evaluators["student"]),
            )
        summary = write_summary(folder, config, data, results, seconds, timings)
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
        The content of `summary.json`: of the teacher alone, or, in the folder of a
        whole run that is finished, of both networks.

    Raises:
        AliteError: with one sentence, for whatever stops the run.

    Example:
        >>> summary = alite_jax.train_teacher(config, workdir)
        >>> summary["teacher"]["density"]
        1.0
        >>> other = {"teacher.workdir": str(workdir), "student.density": 0.5}
        >>> other = alite_jax.override(config, other)  # A run with this teacher.
    """
    folder = user_path(workdir)
    config = settled(config, folder)
    if field := given_teacher(config):
        raise ConfigError(
            f"{field} is {flatten(config)[field]}, whose teacher needs no training; set"
            " it to '' to train another one"
        )
    with at_work(folder), Timings() as timings:
        claim(folder, config)
        if finished := read_summary(folder):
            return finished
        check_trackers(config)
        with timings.spent("reading"):
            data = load_data(config, folder)
        record_spec(folder, data.spec)
        teacher, _ = create_networks(config, data, folder)
        assert teacher is not None
        evaluator = Evaluator(teacher.model, data, config.data.eval_batch_size)
        with timings.spent("training"), _open_writer(config, folder) as writer:
            variables, training = fit(
                teacher, None, config, data, evaluator, writer, timings
            )
        with timings.spent("writing"):
            write_weights(folder, teacher, variables, data)
        with timings.spent("evaluating"):
            found = network_summary(teacher, variables, evaluator, data)
        seconds = {"teacher_training": training}
        results = {"teacher": found}
        return write_summary(folder, config, data, results, seconds, timings)


def _open_writer(config: ConfigDict, folder: Path) -> AbstractContextManager[Any]:
    if not is_first():
        return nullcontext(NoWriter())
    sinks: list[Sink] = [*open_trackers(config, folder)]
    if config.logging.tensorboard:
        sinks.append(TensorBoard(folder / "tensorboard", to_json(config)))
    return MetricWriter(folder, sinks)


def _announcement(
    config: ConfigDict,
    data: Data,
    folder: Path,
    teacher: Network | None,
    student: Network,
) -> str:
    """What is about to happen, since compiling makes the first epoch's line late."""
    shared = shared_examples(config.data, data.spec)
    also_trained = f" ({shared:,} of them are trained on, too)" if shared else ""
    asked = config.student.density
    params = student.template(data.image_shape)["params"]
    rules = pruning_rules(config.pruning.dense)
    reached = nominal_density(params, asked, config.pruning.distribution, rules)
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
    taught_by = config.teacher.logits
    if teacher is not None:
        taught_by = teacher.identity["model"]
    devices = f"{parallel.device_count()} {jax.default_backend()} device(s)"
    computed = config.compute.dtype
    if config.compute.matmul_precision != "default":
        computed += f" (products at {config.compute.matmul_precision!r} precision)"
    return (
        f"{data.spec.name}: {len(data.train):,} images to train and"
        f" {len(data.evaluation):,} to evaluate on{also_trained}; teacher"
        f" {taught_by}, student {student.identity['model']} at {said}{units};"
        f" in {computed} on {devices}, in {folder}{_repeats(config)}; compiling comes"
        " first and takes a while"
    )


def _repeats(config: ConfigDict) -> str:
    """Whether equal runs give equal results, where that is a question."""
    if jax.default_backend() != "gpu":
        return ""
    if is_deterministic():
        return "; equal runs give equal results"
    if not config.compute.deterministic:
        return "; equal runs may differ"
    return (
        "; equal runs may differ, since XLA read its flags before this run could ask:"
        f" start Python with XLA_FLAGS={DETERMINISTIC}=true"
    )
