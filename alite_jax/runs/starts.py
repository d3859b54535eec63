"""The student that starts from another run's: its weights, widths, or both."""

import json
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from alite_jax.data.augment import normalize
from alite_jax.data.sources import Data
from alite_jax.errors import CheckpointError
from alite_jax.models.resnet import ResNet
from alite_jax.paths import user_path
from alite_jax.runs.fit import Network
from alite_jax.runs.folder import read_config, read_summary, write_whole
from alite_jax.runs.processes import by_first
from alite_jax.sparsity.masks import init_masks, pruning_rules
from alite_jax.structure.compact import (
    Compacted,
    check_compaction,
    compact,
    widths_as_json,
    widths_from_json,
)
from alite_jax.structure.configured import compactable
from alite_jax.training.state import Variables

_COMPARED = 256
_WIDTHS = "widths.json"  # In the folder of a run.


def finished_run(network: str, field: str, config: ConfigDict) -> Path:
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


def from_another(
    student: Network, config: ConfigDict, folder: Path, data: Data
) -> Network:
    """The student that starts from the weights and statistics of another run's.

    Once this run has a checkpoint of its own, the other one may go.
    """
    own = _with_widths(student, _read_widths(folder))
    with closing(own.checkpoints(keep=1)) as checkpoints:
        if checkpoints.latest_step() is not None:
            return own
    other = finished_run("student", "init_workdir", config)
    recorded = read_config(other)
    widths = _read_widths(other) if recorded.student.init_workdir else []
    theirs = replace(_with_widths(student, widths), folder=other / "checkpoints")
    if recorded.student.density < 1 or recorded.pruning.structure != "none":
        rules = pruning_rules(recorded.pruning.dense)
        theirs = replace(
            theirs, make_masks=partial(init_masks, density=1.0, rules=rules)
        )
    model, start = theirs.model, partial(theirs.restore, data.image_shape)
    if config.student.init_compact:
        model = compactable(model, "student.init_compact is true")
        smaller = compact_checked(model, start(), compared_images(data))
        model, start = smaller.model, partial(dict, smaller.variables)
    widths = widths_as_json(model) if isinstance(model, ResNet) else []
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
    model = compactable(network.model, "it was compacted")
    return replace(
        network,
        model=model.clone(widths=widths_from_json(widths)),
        identity=network.identity | {"widths": widths},
    )
