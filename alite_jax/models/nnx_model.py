"""nnx modules as functions of their numbers, behind the methods of `Model`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from alite_jax.models.calls import as_logits, in_mode
from alite_jax.models.model import Variables
from alite_jax.trees import nested


@dataclass(frozen=True, eq=False)
class NnxModel:
    """An nnx module, or what makes one, taken apart and put together for each call.

    Its parameters are nested dicts by the names of its attributes. Its random streams
    are no part of a network's numbers: training hands it a key in each step.

    Attributes:
        make: makes the module, with `nnx.Rngs`.
        name: what to call it in errors.
        mode: see `LinenModel`.
        is_made: whether `make` returns a module that has its weights already.
    """

    make: Callable[[nnx.Rngs], nnx.Module]
    name: str
    mode: Mapping[str, bool]
    is_made: bool
    # By path, what kind of variable is where.
    _parts: tuple[Any, ...] = field(init=False)

    def __post_init__(self) -> None:
        if self.is_made:
            module = self.make(nnx.Rngs(0))
        else:
            module = nnx.eval_shape(lambda: self.make(nnx.Rngs(0)))
        object.__setattr__(self, "_parts", _split(module))

    def init(
        self, key: chex.PRNGKey, images: jax.Array, *, train: bool
    ) -> dict[str, Any]:
        """See `Model`."""
        _, params, _, others = _split(self.make(nnx.Rngs(key)))
        return {"params": _as_dict(params), "batch_stats": _as_dict(others)}

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
        graph, params, streams, others = self._parts
        key = rngs["params"] if rngs else jax.random.key(0)
        module: Any = nnx.merge(
            graph,
            _with_values(params, variables["params"]),
            _seeded(streams, key),
            _with_values(others, variables.get("batch_stats") or {}),
        )
        module.train() if train else module.eval()
        logits = module(images, **in_mode(self.mode, train))
        if not mutable:
            return as_logits(logits, self.name)
        *_, recorded = _split(module)
        known = {path for path, _ in nnx.to_flat_state(others)}
        flat = [(p, leaf) for p, leaf in nnx.to_flat_state(recorded) if p in known]
        return as_logits(logits, self.name), {"batch_stats": _as_dict(dict(flat))}


def _split(module: Any) -> Any:
    """Its structure, parameters, random streams, and whatever else it records."""
    return nnx.split(module, nnx.Param, nnx.RngState, ...)


def _as_dict(state: Any) -> dict[str, Any]:
    """The values of a state as nested dicts, whose keys are texts."""
    flat = state.items() if isinstance(state, dict) else nnx.to_flat_state(state)
    return nested({"/".join(map(str, path)): leaf.get_value() for path, leaf in flat})


def _with_values(state: nnx.State, values: Mapping[str, Any]) -> nnx.State:
    """A state of the same variables with other values, from `_as_dict`."""

    def value(path: tuple[Any, ...]) -> Any:
        place: Any = values
        for name in path:
            place = place[str(name)]
        return place

    flat = [
        (path, leaf.replace(value(path))) for path, leaf in nnx.to_flat_state(state)
    ]
    return nnx.from_flat_state(flat)


def _seeded(streams: nnx.State, key: chex.PRNGKey) -> nnx.State:
    """Random streams that start anew, each from a key of its own."""
    flat = []
    for number, (path, leaf) in enumerate(nnx.to_flat_state(streams)):
        is_key = isinstance(leaf, nnx.RngKey)
        start = jax.random.fold_in(key, number) if is_key else jnp.zeros((), jnp.uint32)
        flat.append((path, leaf.replace(start)))
    return nnx.from_flat_state(flat)
