"""Networks that other packages register, by the name in `teacher.model`."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import flax.linen as nn
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from alite_jax.errors import ConfigError
from alite_jax.models.resnet import MODELS, ModelSpec
from alite_jax.registry import Given, Registry

if TYPE_CHECKING:
    from flax import nnx

Module: TypeAlias = "nn.Module | nnx.Module"
ModelFunction = Callable[..., Module]

# Whatever a configuration may name: this project's networks, and registered ones.
KNOWN: Registry[ModelSpec | ModelFunction] = Registry(
    "model", "alite_jax.models", MODELS
)


def register_model(name: str) -> Callable[[Given], Given]:
    """A decorator that registers a network for `teacher.model` and `student.model`.

    What is decorated is a function that returns a module, of linen or nnx, which maps
    images `[batch, height, width, channels]` to logits `[batch, num_classes]`. It gets
    those of these keyword arguments that it has: `num_classes`; `image_shape`, (height,
    width, channels); `dtype`, in which to compute; and `config`, the whole
    configuration.

    Args:
        name: by which a configuration knows the network.

    Raises:
        ConfigError: something else has the name.
    """
    return KNOWN.register(name)


def find_model(name: str) -> ModelFunction | None:
    """Returns a registered network's function, None for a name that is not registered.

    Raises:
        ConfigError: an entry point has the name, and cannot be loaded.
    """
    found = KNOWN.get(name)
    return None if isinstance(found, ModelSpec) else found


def build_model(
    function: ModelFunction,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    dtype: DTypeLike,
    config: ConfigDict,
) -> Module:
    """Calls a registered function with what it asks for; see `register_model`.

    Raises:
        ConfigError: it asks for something else, or returns no module.
    """
    settings = {
        "num_classes": num_classes,
        "image_shape": image_shape,
        "dtype": dtype,
        "config": config,
    }
    from flax import nnx  # Half a second, which checking a configuration need not wait.

    what = getattr(function, "__qualname__", repr(function))
    parameters = inspect.signature(function).parameters.values()
    if not any(x.kind is x.VAR_KEYWORD for x in parameters):
        names = {x.name for x in parameters}
        settings = {name: value for name, value in settings.items() if name in names}
    try:
        inspect.signature(function).bind(**settings)
    except TypeError as error:
        raise ConfigError(
            f"the registered model {what} cannot be called ({error}); it may ask for"
            " the keyword arguments num_classes, image_shape, dtype and config"
        ) from error
    module = function(**settings)
    if not isinstance(module, nn.Module | nnx.Module):
        raise ConfigError(
            f"the registered model {what} returns {type(module).__name__}, not a module"
            " of flax.linen or flax.nnx"
        )
    return module
