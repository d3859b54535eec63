"""Teachers from elsewhere, checked before a student listens, and for elsewhere."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alite_jax.data.augment import normalize
from alite_jax.data.logits import LogitsTable, read_table
from alite_jax.data.sources import Data
from alite_jax.data.views import views_digest
from alite_jax.errors import ConfigError, DataError
from alite_jax.models.given import GivenTeacher
from alite_jax.models.layers import Conv3x3
from alite_jax.models.resnet import ResNet
from alite_jax.models.torch_weights import to_safetensors
from alite_jax.paths import user_path
from alite_jax.runs.fit import Network
from alite_jax.runs.folder import write_whole
from alite_jax.runs.processes import by_first
from alite_jax.training.state import Variables

WEIGHTS = "teacher.safetensors"  # In the folder of a run.
_LOOKED_AT = 16  # images
_CHUNK = 4096  # Rows of a table.
_AGAIN = "run --job=views again, and compute the logits from what it writes"
_SAME = 1e-3  # By which probabilities may miss a sum of 1.


def check_answers(teacher: Network, data: Data) -> None:
    """Checks what a teacher that is given says of some training images.

    Args:
        teacher: the network, with its variables.
        data: has the images.

    Raises:
        ConfigError: it cannot be asked, or has other logits than the data set classes,
            or what it says is no number, or of the other kind.
    """
    model, name = teacher.model, teacher.identity["model"]
    assert isinstance(model, GivenTeacher)
    images = jnp.asarray(data.train.images[:_LOOKED_AT])
    some = normalize(images, data.spec.mean, data.spec.std)
    try:
        output = jax.jit(model.output)(teacher.variables, some)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"teacher {name} cannot be asked about the images of {data.spec.name}:"
            f" {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
    classes = data.spec.num_classes
    if output.shape[1] != classes:
        raise ConfigError(
            f"teacher {name} gives {output.shape[1]} logits, but {data.spec.name} has"
            f" {classes} classes; give a teacher that was trained or fine-tuned for"
            f" these {classes}"
        )
    check_output(np.asarray(output), f"teacher {name}", model.probabilities)


def check_output(output: np.ndarray, name: str, probabilities: bool) -> None:
    """Checks that some answers are finite, and the logits or probabilities wanted.

    Args:
        output: `[n, classes]`.
        name: whose they are, for errors.
        probabilities: whether they must be that.

    Raises:
        ConfigError: they are not.
    """
    if not np.isfinite(output).all():
        wrong = int(np.sum(~np.isfinite(output).all(axis=1)))
        raise ConfigError(
            f"{name} gives NaN or infinity for {wrong} of {len(output)} training"
            " images; check its weights and teacher.normalization"
        )
    sums = np.abs(output.sum(axis=1) - 1) < _SAME
    like_probabilities = bool(sums.all() and (output >= 0).all())
    if like_probabilities and not probabilities:
        raise ConfigError(
            f"{name} gives probabilities (no number is negative, and those of an image"
            " sum up to 1) where logits are expected; set teacher.output=probabilities"
        )
    if probabilities and not like_probabilities:
        raise ConfigError(
            f"{name} gives no probabilities (some are negative, or those of an image do"
            " not sum up to 1), but teacher.output is 'probabilities'; set it to"
            " 'logits'"
        )


def open_table(config: ConfigDict, data: Data) -> LogitsTable | None:
    """Opens the teacher's logits that a configuration names; None if it names none.

    All images are read for it, by the first process.

    Args:
        config: the whole configuration.
        data: whose training images they must be of.

    Raises:
        DataError: the file holds no such logits.
        ConfigError: it holds probabilities where logits are expected, or vice versa.
    """
    if not config.teacher.logits:
        return None
    path, spec = user_path(config.teacher.logits), data.spec
    table = read_table(path, config.teacher.output == "probabilities")
    place = f"teacher.logits is {path}, which has"
    views, count, classes = table.logits.shape
    if count != len(data.train):
        raise DataError(
            f"{place} logits of {count:,} images, but {len(data.train):,} of"
            f" {spec.name} are trained on; {_AGAIN}"
        )
    if classes != spec.num_classes:
        raise DataError(
            f"{place} {classes} logits for an image, but {spec.name} has"
            f" {spec.num_classes} classes; take a teacher that was trained or"
            f" fine-tuned for these {spec.num_classes}"
        )
    if table.digest != by_first(views_digest)(data.train, views, config.data):
        raise DataError(
            f"{place} the digest of other images than these {views} view(s): of another"
            " data set, split, size or order, another augmentation or number of views;"
            f" {_AGAIN}"
        )
    rows = table.logits.reshape(-1, classes)
    chunks = range(0, len(rows), _CHUNK)
    finite = [np.isfinite(rows[i : i + _CHUNK]).all(axis=1).sum() for i in chunks]
    if wrong := len(rows) - int(sum(finite)):
        raise DataError(
            f"{place} NaN or infinity in {wrong:,} of {len(rows):,} rows; compute them"
            " again"
        )
    some = rows[:: -(-len(rows) // _CHUNK)].astype(np.float32)
    check_output(some, f"teacher.logits = {path}", table.probabilities)
    return table


def write_weights(
    folder: Path, teacher: Network, variables: Variables, data: Data
) -> None:
    """Writes a trained teacher as `teacher.safetensors`, for `teacher.weights`.

    It has torchvision's names, by which other programs read it, too. A network that
    torchvision does not have is not written.

    Args:
        folder: of the run.
        teacher: the network.
        variables: its `params` and `batch_stats`.
        data: what it was trained on.

    Raises:
        CheckpointError: the file cannot be written.
    """
    model = teacher.model
    if not isinstance(model, ResNet) or any(op is not Conv3x3 for op in model.spatial):
        return
    metadata = {
        "model": teacher.identity["model"],
        "dataset": data.spec.name,
        "image_shape": ",".join(map(str, data.image_shape)),
        "mean": ",".join(map(str, data.spec.mean)),
        "std": ",".join(map(str, data.spec.std)),
        "classes": json.dumps(data.spec.class_names),
    }
    write_whole(folder / WEIGHTS, to_safetensors(model, variables, metadata))
