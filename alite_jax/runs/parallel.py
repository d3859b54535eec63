"""The only module that knows how the pure steps are mapped over devices.

It is `jax.pmap` over all devices of all processes, with the axis name `AXIS`. Of the
forms that JAX has, this is the one in which each process hands over its own shards of a
batch as plain numpy arrays, and in today's JAX it is jit of shard_map and costs no
more. A single device is mapped over as well, since BatchNorm and the steps name the
axis. Moving to `jax.shard_map` is a change of this file.
"""

import os
import weakref
from collections.abc import Callable
from typing import Any

import chex
import jax
import numpy as np
from flax import jax_utils
from jax._src import pmap
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alite_jax.training.step import AXIS

# Elsewhere nobody says which of the cores a process may use.
_ON_LINUX = hasattr(os, "sched_getaffinity")


def device_count() -> int:
    """The number of devices that share a batch, in all processes."""
    return jax.device_count()


def own_devices() -> slice:
    """Which of them are of this process; pmap counts process by process."""
    count = jax.local_device_count()
    return slice(jax.process_index() * count, (jax.process_index() + 1) * count)


def spread(
    step: Callable[..., Any], *, donate_state: bool = False
) -> Callable[..., Any]:
    """Maps `step` over the devices; every argument and result has a leading axis.

    That axis is as long as this process has devices.

    Args:
        step: a pure function of one device's shard.
        donate_state: whether the first argument's memory may be reused for the result.
    """
    donated = (0,) if donate_state else ()
    program = jax.pmap(step, axis_name=AXIS, donate_argnums=donated)
    weakref.finalize(program, _forget, step)
    return program


def _forget(step: Callable[..., Any]) -> None:
    """Lets go what `jax.pmap` has compiled of a step.

    Its own table refers from each entry to the key of that entry, the step, and so
    would keep the programs of every run, 50 MB of a tiny one, as long as the process.
    """
    evict = getattr(pmap, "_cached_shard_map", None)
    if evict is not None:
        evict.evict_function(step)


def replicate(tree: chex.ArrayTree) -> chex.ArrayTree:
    """Copies a pytree to every device of this process.

    The axis name must be pmap's own: with another the step would compile twice, once
    for these arrays and once for its own results.
    """
    return jax_utils.replicate(tree, axis_name=AXIS)


def shard(tree: chex.ArrayTree) -> chex.ArrayTree:
    """Puts numpy arrays on the devices, as `spread` takes them: one row for each."""
    return jax.device_put(tree, _sharding())


def to_host(tree: chex.ArrayTree) -> chex.ArrayTree:
    """One device's copy of a replicated pytree, as numpy arrays."""
    return jax.device_get(jax_utils.unreplicate(tree))


def describe_devices() -> str:
    """What computes here, in words: `"2 CPU cores"` or `"4 x NVIDIA H100"`."""
    if jax.default_backend() == "cpu":
        cores = len(os.sched_getaffinity(0)) if _ON_LINUX else os.cpu_count() or 1
        return f"{cores} CPU core{'s' * (cores > 1)}"
    return f"{device_count()} x {jax.local_devices()[0].device_kind}"


def run_once(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a jitted function on one device, compiled for a single call.

    On CPU, optimising the code of a network's start takes longer than running it.
    """
    on_cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 0} if on_cpu else None
    return jax.jit(function, compiler_options=options)(*arguments)


def _sharding() -> NamedSharding:
    """A row for each device, as pmap has it."""
    return NamedSharding(
        Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec(AXIS)
    )
