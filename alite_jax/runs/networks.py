"""The networks of a run, as its configuration describes them."""

import json
import os
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from alite_jax.config import validate
from alite_jax.data.augment import normalize
from alite_jax.data.sources import Data
from alite_jax.errors import CheckpointError, ConfigError
from alite_jax.jax_settings import job
from alite_jax.models.configured import configured_model, model_settings
from alite_jax.models.resnet import ResNet
from alite_jax.paths import user_path
from alite_jax.runs.data import load_data
from alite_jax.runs.fit import Network
from alite_jax.runs.folder import read_config, read_summary, write_whole
from alite_jax.runs.processes import by_first
from alite_jax.sparsity.masks import dense_masks, init_masks, magnitude_masks
from alite_jax.sparsity.methods import find_method
from alite_jax.structure.compact import (
    Compacted,
    check_compaction,
    compact,
    widths_as_json,
    widths_from_json,
)
from alite_jax.structure.configured import Structure, create_structure
from alite_jax.training.objective import Objective
from alite_jax.training.state import Variables
from alite_jax.training.step import AXIS

_COMPARED = 256
_WIDTHS = "widths.json"  # In the folder of a run.
_UNITS = 1  # What the key of the masks is for, folded into it, besides weights.


def create_networks(
    config: ConfigDict, data: Data, folder: Path
) -> tuple[Network, Network]:
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
    teacher = _network(config, "teacher", data, folder / "teacher")
    if config.teacher.workdir:
        other = _finished("teacher", "workdir", config)
        teacher = replace(teacher, folder=other / "teacher")

    student = _network(config, "student", data, folder / "checkpoints")
    _check_compared_maps(config, teacher, student)
    if config.student.init_workdir:
        student = _from_another(student, config, folder, data)
    structure = create_structure(config, student.model, data.image_shape)
    if config.student.density < 1 or structure is not None:
        make_masks = partial(draw_masks, config, structure)
        student = replace(student, make_masks=make_masks, structure=structure)
    return teacher, student


def _check_compared_maps(
    config: ConfigDict, teacher: Network, student: Network
) -> None:
    """Raises where the loss would compare maps of different sides."""
    stems = teacher.identity["stem"], student.identity["stem"]
    if config.distillation.feature_weight and stems.count("imagenet") == 1:
        raise ConfigError(
            f"distillation.feature_weight compares maps of equal sides, but the"
            f" teacher's stem is {stems[0]!r} and the student's {stems[1]!r}; give both"
            " 'imagenet' or neither, or set the weight to 0"
        )


def _network(config: ConfigDict, phase: str, data: Data, folder: Path) -> Network:
    """A network by itself, without masks and start, after a dry run of its model."""
    model = configured_model(config, phase, data.spec, AXIS)
    images = jax.ShapeDtypeStruct((1, *data.image_shape), jnp.float32)
    # What cannot be built must stop the run now and not after hours of the teacher.
    jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    distillation = config.distillation if phase == "student" else {}
    smoothing = config[phase].optimizer.label_smoothing
    return Network(
        phase=phase,
        model=model,
        recipe=config[phase],
        objective=Objective(label_smoothing=smoothing, **distillation),
        make_masks=_no_masks,
        identity={
            "model": config[phase].model,
            "dataset": data.spec.name,
            "image_shape": list(data.image_shape),
            **model_settings(config, phase, data.spec),
        },
        folder=folder,
    )


@job
def restore(
    config: ConfigDict, workdir: str | os.PathLike[str]
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
    validate(config)
    data = load_data(config, user_path(workdir))
    return {
        network.phase: (network.model, network.restore(data.image_shape))
        for network in create_networks(config, data, user_path(workdir))
    }


def draw_masks(
    config: ConfigDict,
    structure: Structure | None,
    key: chex.PRNGKey,
    params: chex.ArrayTree,
) -> chex.ArrayTree:
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


def _no_masks(key: chex.PRNGKey, params: chex.ArrayTree) -> chex.ArrayTree:
    return dense_masks(params)


def _finished(network: str, field: str, config: ConfigDict) -> Path:
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


def _from_another(
    student: Network, config: ConfigDict, folder: Path, data: Data
) -> Network:
    """The student that starts from the weights and statistics of another run's.

    Once this run has a checkpoint of its own, the other one may go.
    """
    own = _with_widths(student, _read_widths(folder))
    with closing(own.checkpoints(keep=1)) as checkpoints:
        if checkpoints.latest_step() is not None:
            return own
    other = _finished("student", "init_workdir", config)
    recorded = read_config(other)
    widths = _read_widths(other) if recorded.student.init_workdir else []
    theirs = replace(_with_widths(student, widths), folder=other / "checkpoints")
    if recorded.student.density < 1 or recorded.pruning.structure != "none":
        theirs = replace(theirs, make_masks=partial(init_masks, density=1.0))
    model, start = theirs.model, partial(theirs.restore, data.image_shape)
    if config.student.init_compact:
        smaller = compact_checked(model, start(), compared_images(data))
        model, start = smaller.model, partial(dict, smaller.variables)
    widths = widths_as_json(model)
    write_whole(folder / _WIDTHS, json.dumps(widths) + "\n")
    return replace(_with_widths(student, widths), start=start)


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


def _with_widths(network: Network, widths: list[list[int]]) -> Network:
    """A network of these widths, or its own where there are none."""
    if not widths:
        return network
    return replace(
        network,
        model=network.model.clone(widths=widths_from_json(widths)),
        identity=network.identity | {"widths": widths},
    )
