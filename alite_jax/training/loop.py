"""The jobs `train` and `evaluate`: from a configuration and a folder to a summary."""

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from alite_jax import config as config_lib
from alite_jax.analysis.cost import network_cost
from alite_jax.analysis.table import comparison_table
from alite_jax.data.sources import load_split
from alite_jax.data.specs import dataset_spec
from alite_jax.errors import CheckpointError, ConfigError
from alite_jax.models.resnet import STUDENT_OPTIONS, create_model
from alite_jax.sparsity.masks import dense_masks, density, init_masks
from alite_jax.training import parallel
from alite_jax.training.evaluation import Data, Evaluator
from alite_jax.training.fit import Network, fit
from alite_jax.training.metrics import MetricWriter
from alite_jax.training.objective import Objective
from alite_jax.training.rewire import starts_dense
from alite_jax.training.state import Variables
from alite_jax.training.step import AXIS

# Fields that a run may change when it resumes: none of them changes its result.
_FREE_FIELDS = (
    *("logging.", "checkpoint."),
    *("data.data_dir", "data.manual_dir", "data.on_device"),
)

# Any of these in a folder means that something was computed there.
_RESULTS = ("teacher", "checkpoints", "summary.json")


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
    folder = Path(workdir)
    _claim(folder, config)
    summary_file = folder / "summary.json"
    if summary_file.exists():
        try:
            summary = json.loads(summary_file.read_text())
        except ValueError as error:
            raise CheckpointError(
                f"{summary_file} is not valid JSON ({error}); delete it and run the"
                " same command again, which makes it anew from the checkpoints"
            ) from error
        print(f"{folder} holds a finished run; its result was:\n")
        print(comparison_table(summary))
        return summary
    data = load_data(config)
    teacher, student = create_networks(config, data, folder)
    evaluators = {
        network.phase: Evaluator(network.model, data, config.data.eval_batch_size)
        for network in (teacher, student)
    }
    if config.logging.progress:
        print(_announcement(config, data, folder), file=sys.stderr)
    started = time.monotonic()
    seconds = {}
    with MetricWriter(folder, tensorboard=config.logging.tensorboard) as writer:
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
    summary = {
        "dataset": config.data.name,
        "seed": config.seed,
        **_compare(
            _result(teacher, teacher_variables, evaluators["teacher"], data),
            _result(student, student_variables, evaluators["student"], data),
        ),
        "seconds": seconds | {"this_process": time.monotonic() - started},
        "config": config.to_dict(),
    }
    _write(summary_file, json.dumps(summary, indent=2) + "\n")
    print(comparison_table(summary))
    return summary


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
    for network in create_networks(config, data, Path(workdir)):
        evaluator = Evaluator(network.model, data, config.data.eval_batch_size)
        variables = network.restore(data.image_shape)
        results.append(_result(network, variables, evaluator, data))
    summary = {
        "dataset": config.data.name,
        "seed": config.seed,
        **_compare(*results),
        "seconds": {"evaluation": time.monotonic() - started},
    }
    print(comparison_table(summary))
    return summary


def load_data(config: Any) -> Data:
    """Reads the training and evaluation split into memory.

    Raises:
        DataError: the data set is missing or damaged; says what to run.
    """
    spec = dataset_spec(config.data.name)
    return Data(spec, load_split(config.data, "train"), load_split(config.data, "eval"))


def create_networks(config: Any, data: Data, folder: Path) -> tuple[Network, Network]:
    """Describes teacher and student; nothing is allocated.

    Args:
        config: the whole configuration.
        data: gives the shapes of images and logits.
        folder: of the run; the teacher's is another one if the config names it.

    Raises:
        ConfigError: a model cannot be built as configured.
        CheckpointError: the teacher's folder holds no finished run.
    """
    teacher_folder = folder
    if config.teacher.workdir:
        teacher_folder = Path(config.teacher.workdir)
        if not (teacher_folder / "summary.json").exists():
            raise CheckpointError(
                f"teacher.workdir is {teacher_folder}, but that folder holds no"
                " finished run (no summary.json); give the workdir of a finished one,"
                " or '' to train the teacher here"
            )
    prunes = config.student.density < 1

    def draw_masks(key: jax.Array, params: Any) -> Any:
        density = 1.0 if starts_dense(pruning.method) else config.student.density
        return init_masks(key, params, density, pruning.distribution)

    student, pruning = config.student, config.pruning
    options = {name: student[name] for name in STUDENT_OPTIONS}
    return (
        Network(
            phase="teacher",
            recipe=config.teacher,
            objective=Objective(
                label_smoothing=config.teacher.optimizer.label_smoothing
            ),
            make_masks=lambda key, params: dense_masks(params),
            folder=teacher_folder / "teacher",
            **_model(config.teacher, config.compute.dtype, data, {}),
        ),
        Network(
            phase="student",
            recipe=config.student,
            objective=Objective(
                label_smoothing=config.student.optimizer.label_smoothing,
                **config.distillation,
            ),
            make_masks=draw_masks
            if prunes
            else lambda key, params: dense_masks(params),
            folder=folder / "checkpoints",
            **_model(config.student, config.compute.dtype, data, options),
        ),
    )


def _model(
    config: Any, dtype: str, data: Data, options: dict[str, Any]
) -> dict[str, Any]:
    """The fields `model` and `identity` of a network, after a dry run of the model.

    The dtype of the computation is not part of the identity: the parameters are of the
    same model, and a teacher of one dtype may teach a student of another.
    """
    settings = {"width": config.width, "num_classes": data.spec.num_classes, **options}
    model = create_model(
        config.model, axis_name=AXIS, dtype=jnp.dtype(dtype), **settings
    )
    images = jax.ShapeDtypeStruct((1, *data.image_shape), jnp.float32)
    # What cannot be built must stop the run now and not after hours of the teacher.
    jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    if settings.get("stem") == "conv":
        del settings[
            "stem"
        ]  # Checkpoints from before there was another do not name it.
    identity = {
        "model": config.model,
        "dataset": data.spec.name,
        "image_shape": list(data.image_shape),
        **settings,
    }
    return {"model": model, "identity": identity}


def _announcement(config: Any, data: Data, folder: Path) -> str:
    """What is about to happen, since compiling makes the first epoch's line late."""
    devices = f"{parallel.device_count()} {jax.default_backend()} device(s)"
    return (
        f"{config.data.name}: {len(data.train):,} images to train and"
        f" {len(data.evaluation):,} to evaluate on; teacher {config.teacher.model},"
        f" student {config.student.model} at density {config.student.density:g}; on"
        f" {devices}, in {folder}; compiling comes first and takes a while"
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


def _claim(folder: Path, config: Any) -> None:
    """Makes the run's folder, or checks that it belongs to this configuration.

    Raises:
        ConfigError: the folder holds another run.
        CheckpointError: the folder cannot be written.
    """
    recorded = folder / "config.json"
    # Before its first checkpoint a run has nothing to resume: a mistake that stopped
    # it at once must not keep the folder from the corrected command.
    begun = any((folder / name).exists() for name in _RESULTS)
    if not begun or not recorded.exists():
        _write(recorded, config_lib.to_json(config))
        return
    try:
        before = config_lib.from_json(recorded.read_text())
    except (OSError, ConfigError) as error:
        raise ConfigError(f"{recorded} cannot be used: {error}") from error
    changed = [
        f"{name} (was {old!r}, is {new!r})"
        for name, (old, new) in config_lib.describe_difference(config, before).items()
        if not name.startswith(_FREE_FIELDS)
    ]
    if changed:
        raise ConfigError(
            f"{folder} holds a run with another configuration: {', '.join(changed)};"
            " use another --workdir, or the settings of that run to resume it"
        )


def _write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path} ({error.strerror}); choose a --workdir that can be"
            " written, or free some space"
        ) from error
