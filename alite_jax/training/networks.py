"""Teacher and student as a configuration describes them."""

import json
from collections.abc import Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from alite_jax.data.augment import normalize
from alite_jax.deploy.compact import (
    Compacted,
    check_compaction,
    compact,
    widths_as_json,
    widths_from_json,
)
from alite_jax.errors import CheckpointError
from alite_jax.models.resnet import (
    STUDENT_OPTIONS,
    TRAINING_OPTIONS,
    ResNet,
    create_model,
)
from alite_jax.paths import user_path
from alite_jax.sparsity.masks import dense_masks, init_masks, magnitude_masks
from alite_jax.sparsity.methods import find_method
from alite_jax.training.checkpoints import Checkpoints
from alite_jax.training.evaluation import Data
from alite_jax.training.fit import Network, Start
from alite_jax.training.objective import Objective
from alite_jax.training.processes import by_first
from alite_jax.training.run_folder import read_config, read_summary, write_whole
from alite_jax.training.state import Variables
from alite_jax.training.step import AXIS
from alite_jax.training.structure import Structure, create_structure

_COMPARED = 256
_WIDTHS = "widths.json"  # In the folder of a run.
_UNITS = 1  # What the key of the masks is for, folded into it, besides weights.


def create_networks(config: Any, data: Data, folder: Path) -> tuple[Network, Network]:
    """Describes teacher and student; nothing is allocated.

    Args:
        config: the whole configuration.
        data: gives the shapes of images and logits.
        folder: of the run; the teacher's is another one if the config names it.

    Raises:
        ConfigError: a model cannot be built as configured.
        CheckpointError: the folder of the teacher, or of the student's start, holds no
            finished run.
    """
    teacher_folder = folder
    if config.teacher.workdir:
        teacher_folder = _finished("teacher", "workdir", config)

    student = config.student
    described = _model(student, config.compute, data, STUDENT_OPTIONS, TRAINING_OPTIONS)
    start: Start | None = None
    if student.init_workdir:
        start, described = _start(config, described, folder, data)
    structure = create_structure(config, described["model"], data.image_shape)
    prunes = student.density < 1 or structure is not None
    pupil = Network(
        phase="student",
        recipe=config.student,
        objective=Objective(
            label_smoothing=config.student.optimizer.label_smoothing,
            **config.distillation,
        ),
        make_masks=partial(draw_masks, config, structure) if prunes else _no_masks,
        folder=folder / "checkpoints",
        structure=structure,
        start=start,
        **described,
    )
    return (
        Network(
            phase="teacher",
            recipe=config.teacher,
            objective=Objective(
                label_smoothing=config.teacher.optimizer.label_smoothing
            ),
            make_masks=_no_masks,
            folder=teacher_folder / "teacher",
            **_model(config.teacher, config.compute, data),
        ),
        pupil,
    )


def draw_masks(
    config: Any, structure: Structure | None, key: jax.Array, params: Any
) -> Any:
    """The masks that the student of a configuration starts with.

    Args:
        config: the whole configuration.
        structure: from `create_structure`.
        key: PRNG key.
        params: the student's parameters.
    """
    student, pruning = config.student, config.pruning
    dense = find_method(pruning.method).starts_dense
    density = 1.0 if dense else student.density
    trained = bool(student.init_workdir)
    if trained:
        masks = magnitude_masks(params, density, pruning.distribution)
    else:
        masks = init_masks(key, params, density, pruning.distribution)
    if structure is None or dense:
        return masks
    units_key = jax.random.fold_in(key, _UNITS)
    return structure.start(units_key, params, masks, pruning.method, trained)


def _no_masks(key: jax.Array, params: Any) -> Any:
    return dense_masks(params)


def _finished(network: str, field: str, config: Any) -> Path:
    """The folder that a field names, once its run has finished the network.

    Raises:
        CheckpointError: it has not.
    """
    folder = user_path(config[network][field])
    summary = read_summary(folder)
    if summary is None or network not in summary:
        raise CheckpointError(
            f"{network}.{field} is {folder}, but that folder holds no finished run"
            f" of a {network} (none in its summary.json); give the workdir of a"
            f" finished one, or '' to train the {network} from scratch"
        )
    return folder


def _start(
    config: Any, described: dict[str, Any], folder: Path, data: Data
) -> tuple[Start | None, dict[str, Any]]:
    """What the student starts from, the student of another run.

    Returns:
        Its weights and statistics, None once this run has a checkpoint of its own: the
        other one may go then; and `described` with the widths that it has.
    """
    own = _with_widths(described, _read_widths(folder))
    mine = Checkpoints(folder / "checkpoints", keep=1, identity=own["identity"])
    with closing(mine) as checkpoints:
        if checkpoints.latest_step() is not None:
            return None, own
    other = _finished("student", "init_workdir", config)
    recorded = read_config(other)
    prunes = recorded.student.density < 1 or recorded.pruning.structure != "none"
    theirs = _read_widths(other) if recorded.student.init_workdir else []
    network = Network(
        phase="student",
        recipe=config.student,
        objective=Objective(),
        make_masks=partial(init_masks, density=1.0) if prunes else _no_masks,
        folder=other / "checkpoints",
        **_with_widths(described, theirs),
    )
    model = network.model
    assert isinstance(model, ResNet)
    start: Start = partial(network.restore, data.image_shape)
    if config.student.init_compact:
        smaller = compact_checked(model, start(), compared_images(data))
        model, start = smaller.model, partial(dict, smaller.variables)
    widths = widths_as_json(model)
    write_whole(folder / _WIDTHS, json.dumps(widths) + "\n")
    return start, _with_widths(described, widths)


def compact_checked(
    model: ResNet, variables: Variables, images: jax.Array, multiple: int = 1
) -> Compacted:
    """Compacts a network and compares the logits of some images.

    Args:
        model: the network.
        variables: its `params`, `batch_stats` and `masks`, numpy arrays.
        images: from `compared_images`.
        multiple: see `compact`.

    Raises:
        ArtefactError: the logits differ.
    """
    smaller = compact(model, variables, multiple)
    check_compaction(model, variables, smaller, images)
    return smaller


def compared_images(data: Data) -> jax.Array:
    """The first evaluation images, normalised: networks are compared on them."""
    some = jnp.asarray(data.evaluation.images[:_COMPARED])
    return normalize(some, data.spec.mean, data.spec.std)


@by_first
def _read_widths(folder: Path) -> list[list[int]]:
    """The widths that compaction left the student of a run; empty without one.

    Raises:
        CheckpointError: the file that says so is damaged.
    """
    path = folder / _WIDTHS
    try:
        widths: list[list[int]] = json.loads(path.read_text())
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise CheckpointError(
            f"{path} is damaged ({error}), and nothing else tells the student's widths;"
            " put it back, or start again in another --workdir"
        ) from error
    return widths


def _with_widths(described: dict[str, Any], widths: list[list[int]]) -> dict[str, Any]:
    """The fields `model` and `identity` of a network of these widths, if any."""
    if not widths:
        return described
    model = described["model"].clone(widths=widths_from_json(widths))
    return {"model": model, "identity": described["identity"] | {"widths": widths}}


def _model(
    config: Any,
    compute: Any,
    data: Data,
    options: Iterable[str] = (),
    training: Iterable[str] = (),
) -> dict[str, Any]:
    """The fields `model` and `identity` of a network, after a dry run of the model.

    How it is computed and trained is not part of the identity: the parameters are of
    the same model, and a teacher of one dtype may teach a student of another.

    Args:
        config: of the network.
        compute: the section of that name.
        data: gives the shapes of images and logits.
        options: fields of `config` that are options of the model.
        training: the same, of those that only say how it trains.
    """
    settings = {
        "width": config.width,
        "num_classes": data.spec.num_classes,
        **{name: config[name] for name in options},
    }
    model = create_model(
        config.model,
        axis_name=AXIS if compute.batch_norm == "global" else None,
        dtype=jnp.dtype(compute.dtype),
        **settings,
        **{name: config[name] for name in training},
    )
    images = jax.ShapeDtypeStruct((1, *data.image_shape), jnp.float32)
    # What cannot be built must stop the run now and not after hours of the teacher.
    jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    identity = {
        "model": config.model,
        "dataset": data.spec.name,
        "image_shape": list(data.image_shape),
        **settings,
    }
    return {"model": model, "identity": identity}
