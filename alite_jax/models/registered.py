"""Networks that other packages register, by the name in `teacher.model`."""

from collections.abc import Callable
from typing import Any, TypeAlias

from alite_jax.models.resnet import MODELS, ModelSpec
from alite_jax.registry import Given, Registry

ModelFunction: TypeAlias = Callable[..., Any]

# Whatever a configuration may name: this project's networks, and registered ones.
KNOWN: Registry[ModelSpec | ModelFunction] = Registry(
    "model", "alite_jax.models", MODELS
)


def register_model(name: str) -> Callable[[Given], Given]:
    """A decorator that registers a network for `teacher.model` and `student.model`.

    What is decorated is a function or class that makes a module, of linen or nnx, which
    maps images `[batch, height, width, channels]` to logits `[batch, num_classes]`. It
    gets those of these keyword arguments that it has: `num_classes`; `image_shape`,
    (height, width, channels); `dtype`, in which to compute; `axis_name`, over which
    BatchNorm may share its statistics; `rngs`, if it makes an nnx module; and `config`,
    the whole configuration.

    Args:
        name: by which a configuration knows the network.

    Raises:
        ConfigError: something else has the name.

    Example:
        >>> @alite_jax.register_model("linear")
        ... class Linear(nn.Module):
        ...     num_classes: int
        ...
        ...     @nn.compact
        ...     def __call__(self, images):
        ...         return nn.Dense(self.num_classes)(images.reshape(len(images), -1))
        >>> alite_jax.override(config, "student.model=linear").student.model
        'linear'
    """
    return KNOWN.register(name)


def find_model(name: str) -> ModelFunction | None:
    """Returns a registered network's function, None for a name that is not registered.

    Raises:
        ConfigError: an entry point has the name, and cannot be loaded.
    """
    found = KNOWN.get(name)
    return None if isinstance(found, ModelSpec) else found
