"""Networks, data and runs so small that compiling them takes a second or two."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

# Defines flags of its own, which must be there before flags are saved and restored.
import array_record.python.array_record_data_source  # noqa: F401
import chex
import flax.linen as nn
import jax
import numpy as np
import pytest
from absl.testing import flagsaver
from ml_collections import ConfigDict

import alite_jax
from alite_jax.data.augment import augment
from alite_jax.data.sources import Data, Split
from alite_jax.data.specs import DATASETS
from alite_jax.deploy import program
from alite_jax.jobs import export as export_job
from alite_jax.models import resnet
from alite_jax.study.declaration import Row, Study
from alite_jax.training.step import AXIS

# Four steps an epoch.
SETTINGS = {
    "data.batch_size": 16,
    "data.eval_batch_size": 16,
    "data.train_split": "train[:64]",
    "data.eval_split": "test[:50]",
    "teacher.model": "tiny",
    "teacher.width": 8,
    "teacher.epochs": 2,
    "teacher.optimizer.warmup_epochs": 0.5,
    "student.model": "tiny_attention",
    "student.width": 8,
    "student.kernel_size": 3,
    "student.density": 0.25,
    "student.epochs": 3,
    "student.optimizer.warmup_epochs": 0.5,
    "logging.every_steps": 1,
    "logging.progress": False,
    "logging.tensorboard": False,
}

TINY = Study(
    name="tiny",
    title="A tiny study",
    description="Of nothing in particular.",
    config="digits",
    overrides=[SETTINGS, {"student.epochs": 2}],
    rows={
        "dense": Row("dense", "student.density=1"),
        "again": Row("sparse later", "pruning.method=gradual", start_from="dense"),
    },
    command="python launch.py --job=study --study=tiny",
)


class TwoLayers(nn.Module):
    """BatchNorm over the pixels, then two dense layers; the first counts as a stage.

    Attributes:
        axis_name: as for `ResNet`.
        hidden: features between the layers.
    """

    axis_name: str | None = AXIS
    hidden: int = 16

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = images.reshape(len(images), -1)
        x = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            axis_name=self.axis_name,
            name="norm",
        )(x)
        x = nn.relu(nn.Dense(self.hidden, name="hidden")(x))
        self.sow("intermediates", "stage1", x.reshape(len(x), -1, 1, 1))
        return nn.Dense(10, name="classifier")(x)


@contextmanager
def tiny_models() -> Iterator[None]:
    """Adds the models `tiny` and `tiny_attention`, of one block each, to the table.

    Exports are timed for no longer than they must be.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.BLOCKS, 2, (1,))
        for name, operator in (("tiny", "conv"), ("tiny_attention", "attention")):
            spec = resnet.ModelSpec(2, (operator,))  # type: ignore[arg-type]
            patch.setitem(resnet.MODELS, name, spec)
        brief = partial(program.milliseconds, at_least=0.0)
        patch.setattr(export_job, "milliseconds", brief)
        yield


def tiny_config(changes: dict[str, Any] | None = None) -> ConfigDict:
    """Returns a config of digits; needs `tiny_models` unless it names other models."""
    return alite_jax.get_config("digits", [SETTINGS, changes or {}])


def run_command(*arguments: str) -> int:
    """Runs the command line in this process and returns the exit status."""
    # Here, since a config file of these tests brings this module into a command line.
    from alite_jax import command_line

    with flagsaver.flagsaver():
        try:
            return command_line.main(command_line.parse(["launch.py", *arguments]))
        except SystemExit as stop:
            return int(str(stop.code))
        finally:
            command_line.FLAGS.unparse_flags()


# Views of images that are the images.
unaugmented = partial(augment, crop_padding=0, flip=False)


def random_split(count: int, seed: int = 0) -> Split:
    """Returns 8x8 images of noise in which a bright row gives the label away."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 8, count, np.int32)
    images = random.integers(0, 100, (count, 8, 8, 1), np.uint8)
    images[np.arange(count), labels] += 100
    return Split(images, labels)


def random_data() -> Data:
    """Returns 64 examples to train on and 50 to evaluate on."""
    return Data(DATASETS["digits"], random_split(64), random_split(50, seed=1))


# Two pytrees are equal to the last bit, types of numbers included.
assert_same = partial(chex.assert_trees_all_equal, strict=True)
