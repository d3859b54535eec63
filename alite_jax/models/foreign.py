"""Modules that were not written for this project, behind the methods of `Model`.

Any linen or nnx module of images to logits will do: with BatchNorm, other statistics or
none, with dropout, told about training by an argument of any customary name or by none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from alite_jax.errors import ConfigError
from alite_jax.models.calls import (
    arguments_of,
    as_logits,
    call_with,
    in_mode,
    mode_of,
)
from alite_jax.models.model import Model, Variables
from alite_jax.models.nnx_model import NnxModel

_COLLECTION = "collection."  # Before the names of several.


def foreign_model(source: Any, name: str, **settings: Any) -> Model:
    """Makes a model of a module, or of what makes one.

    Args:
        source: a linen module; an nnx module, which starts with the weights that it
            has; or a function or class that makes either, called with those of the
            settings that its signature names. What takes `rngs` is called with
            `nnx.Rngs` and draws its weights from the run's seed.
        name: what to call it in errors.
        settings: such as `num_classes`.

    Raises:
        ConfigError: it is none of these, or cannot be made or called.
    """
    if isinstance(source, nn.Module):
        return linen_model(source, name)
    if isinstance(source, nnx.Module):
        return NnxModel(lambda rngs: source, name, mode_of(source.__call__, name), True)
    if not callable(source):
        raise ConfigError(
            f"{name} is a {type(source).__name__}, but must be a linen or nnx module of"
            " images to logits, or a function that makes one"
        )
    if "rngs" not in arguments_of(source):
        return foreign_model(call_with(source, name, settings), name)

    def make(rngs: nnx.Rngs) -> Any:
        return call_with(source, name, {**settings, "rngs": rngs})

    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    if not isinstance(module, nnx.Module):
        raise ConfigError(
            f"{name} takes rngs, but makes a {type(module).__name__} where an nnx"
            " module is expected"
        )
    return NnxModel(make, name, mode_of(module.__call__, name), False)


def linen_model(module: nn.Module, name: str) -> "LinenModel":
    """Makes a model of a linen module; see `foreign_model`."""
    return LinenModel(module, name, mode_of(module.__call__, name))


@dataclass(frozen=True, eq=False)
class LinenModel:
    """A linen module.

    Its collections besides `params` are `batch_stats` here, as they are if that is the
    only one, otherwise by their names.

    Attributes:
        module: it.
        name: what to call it in errors.
        mode: its arguments that depend on whether it is trained, and what they are
            then.
    """

    module: nn.Module
    name: str
    mode: Mapping[str, bool]

    def init(
        self, key: chex.PRNGKey, images: jax.Array, *, train: bool
    ) -> dict[str, Any]:
        """See `Model`."""
        call: Any = self.module.init
        variables = call(key, images, **in_mode(self.mode, train))
        return packed_variables(variables)

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
        others = variables.get("batch_stats") or {}
        if any(name.startswith(_COLLECTION) for name in others):
            others = {n.removeprefix(_COLLECTION): tree for n, tree in others.items()}
        else:
            others = {"batch_stats": others}
        function: Any = self.module.apply
        call = partial(
            function,
            {"params": variables["params"], **others},
            images,
            rngs=rngs,
            **in_mode(self.mode, train),
        )
        if not mutable:
            return as_logits(call(), self.name)
        recorded = [*others] if "batch_stats" in mutable else []
        logits, updates = call(mutable=[*recorded, *({"intermediates"} & set(mutable))])
        found = {"batch_stats": _packed({**others, **updates})}
        if "intermediates" in updates:
            found["intermediates"] = updates["intermediates"]
        return as_logits(logits, self.name), found


def packed_variables(variables: Variables) -> dict[str, Any]:
    """The variables of a linen module, as `LinenModel` has them."""
    return {"params": variables.get("params", {}), "batch_stats": _packed(variables)}


def _packed(variables: Variables) -> dict[str, Any]:
    names = set(variables) - {"params", "intermediates"}
    if names <= {"batch_stats"}:
        return dict(variables.get("batch_stats", {}))
    return {f"{_COLLECTION}{name}": variables[name] for name in names}


def check_logits(model: Model, name: str, shape: tuple[int, ...], classes: int) -> None:
    """Dry-runs a model, and checks how many logits it has.

    Args:
        model: the model.
        name: what to call it.
        shape: of an image, (height, width, channels).
        classes: of the data set.

    Raises:
        ConfigError: it cannot be run, or has other logits.
    """
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)

    def run(images: jax.Array) -> Any:
        key = jax.random.key(0)
        if isinstance(model, nn.Module):  # In one pass, half of the seconds.
            return model.init_with_output(key, images, train=False)[0]
        variables = model.init(key, images, train=False)
        return model.apply(variables, images, train=False)

    try:
        logits = jax.eval_shape(run, images)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{name} cannot be run on images {list(images.shape)}:"
            f" {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
    if logits.shape != (2, classes):
        raise ConfigError(
            f"{name} returns logits {list(logits.shape)} for 2 images, but the data set"
            f" has {classes} classes: [2, {classes}] are expected"
        )
