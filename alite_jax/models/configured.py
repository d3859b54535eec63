"""The networks that a configuration describes."""

from typing import Any

from ml_collections import ConfigDict

from alite_jax.data.specs import DatasetSpec
from alite_jax.imports import find_object
from alite_jax.models.foreign import foreign_model
from alite_jax.models.model import Model
from alite_jax.models.precision import computing_dtype
from alite_jax.models.registered import find_model
from alite_jax.models.resnet import STUDENT_OPTIONS, create_model

# From this side on, in pixels, `"auto"` is the ImageNet form.
LARGE_IMAGE = 96


def configured_model(
    config: ConfigDict,
    phase: str,
    dataset: DatasetSpec,
    axis_name: str | None = None,
    source: Any = None,
) -> Model:
    """Builds the teacher or the student of a configuration.

    Args:
        config: the whole configuration.
        phase: `"teacher"` or `"student"`.
        dataset: gives the number of classes and the side of the images.
        axis_name: mapped axis for `compute.batch_norm = "global"`; see `ResNet`.
        source: a module, or what makes one, instead of the configured network; see
            `foreign_model`.

    Raises:
        ConfigError: there is no such model.
    """
    axis_name = axis_name if config.compute.batch_norm == "global" else None
    dtype = computing_dtype(config.compute.dtype)
    if source is None:
        source = _source(config, phase)
    if source is not None:
        return foreign_model(
            source,
            network_name(config, phase),
            num_classes=dataset.num_classes,
            image_shape=image_shape(config, dataset),
            dtype=dtype,
            axis_name=axis_name,
            config=config,
        )
    return create_model(
        config[phase].model,
        axis_name=axis_name,
        dtype=dtype,
        attention=config.compute.attention,
        **model_settings(config, phase, dataset),
    )


def _source(config: ConfigDict, phase: str) -> Any:
    """What makes a network that is not this project's; None for one that is."""
    text: str = config[phase].module
    if text:
        return find_object(text, f"{phase}.module")
    return find_model(config[phase].model)


def network_name(config: ConfigDict, phase: str) -> str:
    """What to call a network: the name of its module, or of the model."""
    module: str = config[phase].module
    return module.rpartition(":")[2] or str(config[phase].model)


def model_settings(
    config: ConfigDict, phase: str, dataset: DatasetSpec
) -> dict[str, Any]:
    """What the parameters of a network depend on besides its name.

    How it is computed is not among it: a teacher of one dtype may teach a student of
    another.
    """
    if config[phase].module or find_model(config[phase].model):
        return {"num_classes": dataset.num_classes}
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
