"""The networks that a configuration describes."""

from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from alite_jax.data.specs import DatasetSpec
from alite_jax.models.resnet import STEMS, STUDENT_OPTIONS, ResNet, create_model

# What the field `stem` of a network may be; a teacher is convolutional.
STEM_CHOICES = {
    "teacher": ("conv", "imagenet", "auto"),
    "student": (*STEMS, "auto"),
}
# From this side on, in pixels, `"auto"` is the ImageNet form.
LARGE_IMAGE = 96


def configured_model(
    config: ConfigDict, phase: str, dataset: DatasetSpec, axis_name: str | None = None
) -> ResNet:
    """Builds the teacher or the student of a configuration.

    Args:
        config: the whole configuration.
        phase: `"teacher"` or `"student"`.
        dataset: gives the number of classes and the side of the images.
        axis_name: mapped axis for `compute.batch_norm = "global"`; see `ResNet`.

    Raises:
        ConfigError: there is no such model.
    """
    return create_model(
        config[phase].model,
        axis_name=axis_name if config.compute.batch_norm == "global" else None,
        dtype=jnp.dtype(config.compute.dtype),
        **model_settings(config, phase, dataset),
    )


def model_settings(
    config: ConfigDict, phase: str, dataset: DatasetSpec
) -> dict[str, Any]:
    """What the parameters of a network depend on besides its name.

    How it is computed is not among it: a teacher of one dtype may teach a student of
    another.
    """
    # A teacher is convolutional and has none of the student's other options.
    options = STUDENT_OPTIONS if phase == "student" else ()
    return {
        "width": config[phase].width,
        "num_classes": dataset.num_classes,
        **{name: config[phase][name] for name in options},
        "stem": _stem(config, phase, dataset),
    }


def _stem(config: ConfigDict, phase: str, dataset: DatasetSpec) -> str:
    """The stem of a network, `"auto"` resolved by the shorter side of its images."""
    stem: str = config[phase].stem
    if stem != "auto":
        return stem
    height, width, _ = image_shape(config, dataset)
    return "imagenet" if min(height, width) >= LARGE_IMAGE else "conv"


def image_shape(config: ConfigDict, dataset: DatasetSpec) -> tuple[int, int, int]:
    """(height, width, channels) of the images that the networks see."""
    return dataset.seen_shape(config.data.image_size)
