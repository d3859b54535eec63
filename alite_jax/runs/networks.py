"""The networks of a run, as its configuration describes them."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from alite_jax.data.sources import Data
from alite_jax.errors import ConfigError
from alite_jax.jax_settings import job
from alite_jax.models.configured import (
    configured_model,
    model_settings,
    network_name,
)
from alite_jax.models.foreign import check_logits
from alite_jax.models.given import configured_teacher
from alite_jax.models.model import Model
from alite_jax.paths import user_path
from alite_jax.runs.data import load_data
from alite_jax.runs.fit import Network
from alite_jax.runs.folder import read_summary, settled
from alite_jax.runs.given import NOTHING, Given
from alite_jax.runs.starts import finished_run, from_another
from alite_jax.sparsity.masks import (
    dense_masks,
    init_masks,
    magnitude_masks,
    pruning_rules,
)
from alite_jax.sparsity.methods import find_method
from alite_jax.structure.configured import (
    Structure,
    create_structure,
)
from alite_jax.training.objective import Objective
from alite_jax.training.state import Variables
from alite_jax.training.step import AXIS

_UNITS = 1  # What the key of the masks is for, folded into it, besides weights.


def create_networks(
    config: ConfigDict, data: Data, folder: Path, given: Given = NOTHING
) -> tuple[Network | None, Network]:
    """Describes teacher and student; nothing is allocated.

    Args:
        config: the whole configuration.
        data: gives the shapes of images and logits.
        folder: of the run; the teacher's is another one if the config names it.
        given: what a program has handed over.

    Returns:
        Both; no teacher where there are only its logits.

    Raises:
        ConfigError: a model cannot be built as configured.
        CheckpointError: the folder of the teacher, or of the student's start, holds no
            finished run.
    """
    teacher = _create_teacher(config, data, folder, given)
    student = _network(config, "student", data, folder / "checkpoints", given)
    if config.distillation.feature_weight:
        _check_compared_maps(teacher, student, data)
    if config.student.init_workdir:
        student = from_another(student, config, folder, data)
    structure = create_structure(config, student.model, data.image_shape)
    if config.student.density < 1 or structure is not None:
        make_masks = partial(draw_masks, config, structure)
        student = replace(student, make_masks=make_masks, structure=structure)
    return teacher, student


def _create_teacher(
    config: ConfigDict, data: Data, folder: Path, given: Given
) -> Network | None:
    if config.teacher.logits:
        return None
    found = configured_teacher(config, data.spec, given.teacher)
    if found is None:
        teacher = _network(config, "teacher", data, folder / "teacher")
        if config.teacher.workdir:
            other = finished_run("teacher", "workdir", config)
            teacher = replace(teacher, folder=other / "teacher")
        return teacher
    model, variables = found
    return Network(
        phase="teacher",
        model=model,
        recipe=config.teacher,
        objective=Objective(),
        make_masks=_no_masks,
        identity={"model": model.name},
        folder=folder,
        variables={**variables, "masks": dense_masks(variables["params"])},
    )


def _check_compared_maps(teacher: Network | None, student: Network, data: Data) -> None:
    """Raises where the loss would compare maps of different sides, or none.

    Raises:
        ConfigError: it would.
    """
    images = jax.ShapeDtypeStruct((1, *data.image_shape), jnp.float32)

    def maps(network: Network) -> list[tuple[int, ...]]:
        def run(variables: Variables, images: jax.Array) -> Variables:
            found: Variables = network.model.apply(
                variables, images, train=False, mutable=["intermediates"]
            )[1]
            return found

        variables = network.template(data.image_shape)
        found = jax.eval_shape(run, variables, images).get("intermediates")
        return [leaf.shape[1:3] for leaf in jax.tree.leaves(found)]

    assert teacher is not None
    theirs, ours = maps(teacher), maps(student)
    if theirs != ours or not ours:
        raise ConfigError(
            "distillation.feature_weight compares maps of equal sides, which a module"
            f" sows as 'intermediates', but the teacher's are {_sides(theirs)} and the"
            f" student's {_sides(ours)}; give both the same stem, or set the weight to"
            " 0"
        )


def _sides(maps: list[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in maps) or "none"


def _network(
    config: ConfigDict, phase: str, data: Data, folder: Path, given: Given = NOTHING
) -> Network:
    """A network by itself, without masks and start, after a dry run of its model."""
    source = given.student if phase == "student" else None
    model = configured_model(config, phase, data.spec, AXIS, source)
    name = network_name(config, phase)
    # What cannot be built must stop the run now and not after hours of the teacher.
    check_logits(model, name, data.image_shape, data.spec.num_classes)
    distillation = config.distillation if phase == "student" else {}
    smoothing = config[phase].optimizer.label_smoothing
    return Network(
        phase=phase,
        model=model,
        recipe=config[phase],
        objective=Objective(label_smoothing=smoothing, **distillation),
        make_masks=_no_masks,
        identity={
            "model": name,
            "dataset": data.spec.name,
            "image_shape": list(data.image_shape),
            **model_settings(config, phase, data.spec),
        },
        folder=folder,
        optimizer=given.create_optimizer if phase == "student" else None,
    )


@job
def restore(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    *,
    student: Any = None,
    teacher: Any = None,
) -> dict[str, tuple[Model, Variables]]:
    """Reads the networks of a run, to look at them or to use them.

    Args:
        config: the run's own.
        workdir: the run's folder.
        student: as for `train`, if it was given there.
        teacher: the same.

    Returns:
        `teacher`, unless there were only its logits, and `student`, unless the teacher
        was trained alone: the model and its variables, `params`, `batch_stats` and
        `masks` as numpy arrays; `model.apply(variables, images, train=False)` are the
        logits of normalised images.

    Raises:
        AliteError: with one sentence, for example if there is no checkpoint.

    Example:
        >>> model, variables = alite_jax.restore(config, workdir)["student"]
        >>> images = jnp.zeros((2, 8, 8, 1))
        >>> model.apply(variables, images, train=False).shape
        (2, 10)
    """
    given = Given(student, teacher)
    folder = user_path(workdir)
    config = settled(given.named(config), folder)
    data, summary = load_data(config, folder), read_summary(folder)
    networks = create_networks(config, data, folder, given)
    # A run of the teacher alone is finished without a student.
    there = {"teacher", "student"} if summary is None else summary.keys()
    return {
        network.phase: (network.model, network.restore(data.image_shape))
        for network in networks
        if network is not None and network.phase in there
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
    how = density, pruning.distribution, pruning_rules(config.pruning.dense)
    trained = bool(student.init_workdir)
    masks = magnitude_masks(params, *how) if trained else init_masks(key, params, *how)
    if structure is None or dense:
        return masks
    units_key = jax.random.fold_in(key, _UNITS)
    return structure.start(units_key, params, masks, pruning.method, trained)


def _no_masks(key: chex.PRNGKey, params: chex.ArrayTree) -> chex.ArrayTree:
    return dense_masks(params)
