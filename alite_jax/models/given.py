"""Teachers that were trained elsewhere, behind the methods of `Model`.

A teacher sees the images that the student sees, but normalised and sized as it was
trained. Images come here normalised as the data set says; one product and one sum for
each channel make of that what another normalisation would have given.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from alite_jax.data.augment import NORMALIZATIONS, Constants
from alite_jax.data.specs import DatasetSpec
from alite_jax.errors import ConfigError
from alite_jax.imports import find_object
from alite_jax.models.calls import as_logits, call_with
from alite_jax.models.configured import image_shape, network_name
from alite_jax.models.foreign import foreign_model, linen_model, packed_variables
from alite_jax.models.model import Model, Variables
from alite_jax.models.precision import computing_dtype
from alite_jax.models.torch_weights import read_weights
from alite_jax.paths import user_path


def configured_teacher(
    config: ConfigDict, dataset: DatasetSpec, source: Any = None
) -> "tuple[GivenTeacher, dict[str, Any]] | None":
    """The teacher of a configuration that is trained already, with its variables.

    Args:
        config: the whole configuration.
        dataset: gives the form in which images come.
        source: what a program has handed over; see `given_network`.

    Returns:
        The model, and its `params` and `batch_stats`; None where the configuration
        gives no such teacher.

    Raises:
        ConfigError: there is none where it says, or it is none.
    """
    fields, constants = config.teacher, None
    dtype = computing_dtype(config.compute.dtype)
    name = network_name(config, "teacher")
    if source is None and fields.module:
        source = find_object(fields.module, "teacher.module")
    if source is not None:
        network, variables = given_network(
            source,
            name,
            num_classes=dataset.num_classes,
            image_shape=image_shape(config, dataset),
            dtype=dtype,
            config=config,
        )
    elif fields.weights:
        resnet, variables, metadata = read_weights(user_path(fields.weights))
        network = resnet.clone(dtype=dtype)
        name = metadata.get("model", Path(fields.weights).stem)
        constants = _recorded(metadata) or NORMALIZATIONS["imagenet"]
    else:
        return None
    of_data: Constants = (dataset.mean, dataset.std)
    if fields.normalization == "dataset":
        constants = of_data
    elif fields.normalization != "auto":
        constants = NORMALIZATIONS[fields.normalization]
    teacher = GivenTeacher(
        network,
        name,
        before=of_data,
        wanted=constants or of_data,
        side=fields.image_size,
        probabilities=fields.output == "probabilities",
    )
    return teacher, variables


def _recorded(metadata: Mapping[str, str]) -> Constants | None:
    """Means and deviations that a file of weights was written with."""
    if not {"mean", "std"} <= metadata.keys():
        return None
    mean, std = (
        tuple(map(float, metadata[name].split(","))) for name in ("mean", "std")
    )
    return mean, std


@dataclass(frozen=True, eq=False)
class GivenTeacher:
    """A frozen network with its own form of the images and of the answers.

    Attributes:
        network: the network itself.
        name: what to call it in errors.
        before: constants by which images come normalised, those of the data set.
        wanted: those that the network wants.
        side: pixels to which images are resized; 0 leaves them.
        probabilities: whether it returns these; their logarithms are logits.
    """

    network: Model
    name: str
    before: Constants
    wanted: Constants
    side: int = 0
    probabilities: bool = False

    def init(
        self, key: chex.PRNGKey, images: jax.Array, *, train: bool
    ) -> dict[str, Any]:
        """See `Model`."""
        return self.network.init(key, self.seen(images), train=train)

    def apply(
        self,
        variables: Variables,
        images: jax.Array,
        *,
        train: bool,
        mutable: Sequence[str] = (),
        rngs: Mapping[str, chex.PRNGKey] | None = None,
    ) -> Any:
        """See `Model`."""
        if not mutable:
            return self._logits(self.output(variables, images))
        output, updates = self.network.apply(
            variables, self.seen(images), train=train, mutable=mutable, rngs=rngs
        )
        return self._logits(output), updates

    def output(self, variables: Variables, images: jax.Array) -> jax.Array:
        """What the network returns, logits or probabilities."""
        output: jax.Array = self.network.apply(
            variables, self.seen(images), train=False
        )
        return output

    def seen(self, images: jax.Array) -> jax.Array:
        """The images as the network wants them."""
        if len(self.wanted[0]) == 3 and images.shape[-1] == 1:
            images = jnp.repeat(images, 3, axis=-1)
        if self.wanted != self.before:
            (mean, std), (new_mean, new_std) = (
                np.array(constants, np.float32)
                for constants in (self.before, self.wanted)
            )
            factor, summand = std / new_std, (mean - new_mean) / new_std
            images = images * jnp.asarray(factor[None, None, None]) + jnp.asarray(
                summand[None, None, None]
            )
        if self.side and images.shape[1:3] != (self.side, self.side):
            shape = images.shape[0], self.side, self.side, images.shape[-1]
            images = jax.image.resize(images, shape, "bilinear")
        return images

    def _logits(self, output: jax.Array) -> jax.Array:
        """Logits of what the network returns."""
        if not self.probabilities:
            return output
        return jnp.log(jnp.maximum(output, jnp.finfo(output.dtype).tiny))


@dataclass(frozen=True, eq=False)
class FunctionModel:
    """A function of (variables, images) to logits.

    Attributes:
        function: it.
        name: what to call it in errors.
        bare: whether it takes `params` alone, not a dict with them and others.
    """

    function: Callable[[Any, jax.Array], jax.Array]
    name: str
    bare: bool

    def init(
        self, key: chex.PRNGKey, images: jax.Array, *, train: bool
    ) -> dict[str, Any]:
        """See `Model`; nobody knows how to draw its numbers."""
        raise ConfigError(f"{self.name} is a function, whose variables must be given")

    def apply(
        self,
        variables: Variables,
        images: jax.Array,
        *,
        train: bool,
        mutable: Sequence[str] = (),
        rngs: Mapping[str, chex.PRNGKey] | None = None,
    ) -> Any:
        """See `Model`; it is the same in training."""
        params, others = variables["params"], variables.get("batch_stats") or {}
        given = params if self.bare else {"params": params, **others}
        logits = as_logits(self.function(given, images), self.name)
        return (logits, {}) if mutable else logits


def given_network(
    source: Any, name: str, **settings: Any
) -> tuple[Model, dict[str, Any]]:
    """Makes a model of a trained network, with its variables.

    Args:
        source: a pair of a function of (variables, images) to logits, or of a linen
            module, and its variables; an nnx module with its weights; or a function
            that returns either, called with those of the settings that it names.
        name: what to call it in errors.
        settings: such as `num_classes`.

    Returns:
        The model and its `params` and `batch_stats`.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(source, nnx.Module):
        model = foreign_model(source, name)
        images = jnp.zeros((1, 1, 1, 1))  # Not looked at.
        return model, model.init(jax.random.key(0), images, train=False)
    if isinstance(source, tuple) and len(source) == 2:
        network, variables = source[0], jax.tree.map(_array, source[1])
        is_mapping = isinstance(variables, Mapping) and "params" in variables
        if isinstance(network, nn.Module) and is_mapping:
            return linen_model(network, name), packed_variables(variables)
        if callable(network):
            if not is_mapping:
                return FunctionModel(network, name, True), {"params": variables}
            others = {n: tree for n, tree in variables.items() if n != "params"}
            found = {"params": variables["params"], "batch_stats": others}
            return FunctionModel(network, name, False), found
    if inspect.isfunction(source):
        return given_network(call_with(source, name, settings), name)
    raise ConfigError(
        f"{name} is a {type(source).__name__}, but a teacher is a pair of a function"
        " (variables, images) -> logits and its variables, an nnx module with its"
        " weights, or a function that returns one of these"
    )


def _array(leaf: Any) -> Any:
    """A leaf of variables, numbers of Python made arrays."""
    return leaf if hasattr(leaf, "shape") else np.asarray(leaf)
