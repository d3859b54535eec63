"""The jobs `train` and `evaluate`: from a configuration and a folder to a summary."""

import json
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from alite_jax import config as config_lib
from alite_jax.analysis.cost import network_cost
from alite_jax.analysis.table import comparison_table
from alite_jax.data.sources import load_split, shared_examples
from alite_jax.data.specs import dataset_spec
from alite_jax.errors import ConfigError
from alite_jax.jax_settings import job
from alite_jax.paths import user_path
from alite_jax.run_config import recorded
from alite_jax.sparsity.masks import density, nominal_density
from alite_jax.training import parallel
from alite_jax.training.evaluation import Data, Evaluator
from alite_jax.training.fit import Network, fit
from alite_jax.training.metrics import MetricWriter, NoWriter
from alite_jax.training.networks import create_networks
from alite_jax.training.processes import first_alone, is_first
from alite_jax.training.rewire import check_rewiring_steps, rewiring_steps
from alite_jax.training.run_folder import (
    at_work,
    claim,
    read_summary,
    write_whole,
)
from alite_jax.training.state import Variables


@job
def train(config: Any, workdir: str | os.PathLike[str]) -> dict[str, Any]:
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
    config_lib.validate(config)
    folder = user_path(workdir)
    with at_work(folder):
        return _train(config, folder)


def _train(config: Any, folder: Path) -> dict[str, Any]:
    claim(folder, config)
    finished = read_summary(folder)
    if finished and "student" in finished:
        _say(f"{folder} holds a finished run; its result was:\n")
        _say(comparison_table(finished))
        return finished
    data = load_data(config)
    # What would stop the student must not wait until the teacher is trained.
    steps_per_epoch = max(1, len(data.train) // config.data.batch_size)
    check_rewiring_steps(config, rewiring_steps(config, steps_per_epoch))
    teacher, student = create_networks(config, data, folder)
    evaluators = {
        network.phase: Evaluator(network.model, data, config.data.eval_batch_size)
        for network in (teacher, student)
    }
    if config.logging.progress and is_first():
        print(_announcement(config, data, folder, student), file=sys.stderr)
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
    results = _compare(
        _result(teacher, teacher_variables, evaluators["teacher"], data),
        _result(student, student_variables, evaluators["student"], data),
    )
    seconds["this_process"] = time.monotonic() - started
    summary = _finish(folder, config, results, seconds)
    _say(comparison_table(summary))
    return summary


@job
def train_teacher(config: Any, workdir: str | os.PathLike[str]) -> dict[str, Any]:
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
    config_lib.validate(config)
    folder = user_path(workdir)
    if config.teacher.workdir:
        raise ConfigError(
            f"teacher.workdir is {config.teacher.workdir}, whose teacher needs no"
            " training; set it to '' to train another one"
        )
    with at_work(folder):
        return _train_teacher(config, folder)


def _train_teacher(config: Any, folder: Path) -> dict[str, Any]:
    claim(folder, config)
    finished = read_summary(folder)
    if finished:
        return finished
    data = load_data(config)
    teacher, _ = create_networks(config, data, folder)
    evaluator = Evaluator(teacher.model, data, config.data.eval_batch_size)
    started = time.monotonic()
    with _open_writer(config, folder) as writer:
        variables, training = fit(teacher, None, config, data, evaluator, writer)
    results = {"teacher": _result(teacher, variables, evaluator, data)}
    seconds = {
        "teacher_training": training,
        "this_process": time.monotonic() - started,
    }
    return _finish(folder, config, results, seconds)


@job
def evaluate(config: Any, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Evaluates the newest checkpoints of a run on the evaluation split.

    Args:
        config: the run's own; the evaluation split and its batch size may differ.
        workdir: the run's folder.

    Returns:
        `dataset`, `seed`, `teacher`, `student`, `ratios`, `accuracy_drop` and `seconds`
        as in `summary.json`.

    Raises:
        AliteError: with one sentence, for example if there is no checkpoint.
    """
    config_lib.validate(config)
    data = load_data(config)
    started = time.monotonic()
    results = []
    for network in create_networks(config, data, user_path(workdir)):
        evaluator = Evaluator(network.model, data, config.data.eval_batch_size)
        variables = network.restore(data.image_shape)
        results.append(_result(network, variables, evaluator, data))
    summary = {
        "dataset": config.data.name,
        "seed": config.seed,
        **_compare(*results),
        "seconds": {"evaluation": time.monotonic() - started},
    }
    _say(comparison_table(summary))
    return summary


@job
def restore(
    config: Any, workdir: str | os.PathLike[str]
) -> dict[str, tuple[nn.Module, Variables]]:
    """Reads the networks of a run, to look at them or to use them.

    Args:
        config: the run's own.
        workdir: the run's folder.

    Returns:
        `teacher` and `student`: the module and its variables, `params`, `batch_stats`
        and `masks` as numpy arrays; `module.apply(variables, images, train=False)` are
        the logits of normalised images.

    Raises:
        AliteError: with one sentence, for example if there is no checkpoint.
    """
    config_lib.validate(config)
    data = load_data(config)
    return {
        network.phase: (network.model, network.restore(data.image_shape))
        for network in create_networks(config, data, user_path(workdir))
    }


def load_data(config: Any) -> Data:
    """Reads the training and evaluation split into memory.

    Raises:
        DataError: the data set is missing or damaged; says what to run.
    """
    spec = dataset_spec(config.data.name)
    read = first_alone(load_split)  # It may have to be made.
    return Data(spec, read(config.data, "train"), read(config.data, "eval"))


def _say(text: str) -> None:
    if is_first():
        print(text)


def _open_writer(config: Any, folder: Path) -> AbstractContextManager[Any]:
    if is_first():
        return MetricWriter(folder, tensorboard=config.logging.tensorboard)
    return nullcontext(NoWriter())


def _announcement(config: Any, data: Data, folder: Path, student: Network) -> str:
    """What is about to happen, since compiling makes the first epoch's line late."""
    shared = shared_examples(config.data)
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
        plan = student.structure.plan
        units = (
            f" and {plan.macs:,} of {plan.dense_macs:,} MACs"
            f" ({plan.macs / plan.dense_macs:.1%})"
        )
    devices = f"{parallel.device_count()} {jax.default_backend()} device(s)"
    return (
        f"{config.data.name}: {len(data.train):,} images to train and"
        f" {len(data.evaluation):,} to evaluate on{also_trained}; teacher"
        f" {config.teacher.model}, student {config.student.model} at {said}{units};"
        f" on {devices}, in {folder}; compiling comes first and takes a while"
    )


def _result(
    network: Network, variables: Variables, evaluator: Evaluator, data: Data
) -> dict[str, Any]:
    """One network's part of the summary."""
    return {
        "name": network.identity["model"],
        "accuracy": evaluator(parallel.replicate(variables))["eval_accuracy"],
        "density": density(variables["masks"]),
        **network_cost(
            network.model, data.image_shape, variables["params"], variables["masks"]
        ),
    }


def _finish(
    folder: Path, config: Any, results: dict[str, Any], seconds: dict[str, float]
) -> dict[str, Any]:
    """Writes the summary, which ends a run, and returns it."""
    summary = {
        "dataset": config.data.name,
        "seed": config.seed,
        **results,
        "seconds": seconds,
        "environment": {"jax": jax.__version__, "device": parallel.describe_devices()},
        "config": recorded(config, folder).to_dict(),
    }
    write_whole(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _compare(teacher: dict[str, Any], student: dict[str, Any]) -> dict[str, Any]:
    """The two networks, their ratios (teacher over student) and the drop in points."""
    return {
        "teacher": teacher,
        "student": student,
        "ratios": {
            "parameters": (
                teacher["nonzero_parameters"] / student["nonzero_parameters"]
            ),
            "macs": teacher["macs"] / student["macs"],
            "nonzero_macs": teacher["nonzero_macs"] / student["nonzero_macs"],
        },
        "accuracy_drop": 100 * (teacher["accuracy"] - student["accuracy"]),
    }
