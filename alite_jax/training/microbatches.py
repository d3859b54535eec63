"""Gradient accumulation: a batch in microbatches, for the memory of one of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from alite_jax.errors import ConfigError


def check_microbatches(microbatches: int, batch_size: int, num_shards: int) -> None:
    """Checks that each device's shard of a batch can be cut into equal microbatches.

    Args:
        microbatches: `compute.accumulation`.
        batch_size: `data.batch_size`, over all devices.
        num_shards: number of devices that share a batch; divides `batch_size`.

    Raises:
        ConfigError: it cannot.
    """
    shard = batch_size // num_shards
    if shard % microbatches:
        raise ConfigError(
            f"compute.accumulation = {microbatches} does not divide the {shard} images"
            f" that each device gets of data.batch_size = {batch_size}; use a divisor"
            f" of {shard}"
        )


def in_microbatches(
    function: Callable[..., Any], microbatches: int
) -> Callable[..., Any]:
    """Transforms a function of a batch into its mean over microbatches of it.

    These go through it one after another: only one's intermediate values are in memory
    at a time.

    Args:
        function: of anything and, as its last argument, a batch, a pytree of arrays
            `[batch, ...]`; gives a pytree of float arrays whose shapes do not depend on
            the size of the batch.
        microbatches: equal parts of the batch, each contiguous, whose number divides
            it. With 1, `function` itself is returned.
    """
    if microbatches == 1:
        return function

    def mean(*arguments: Any) -> Any:
        *others, batch = arguments
        parts = jax.tree.map(lambda a: a.reshape(microbatches, -1, *a.shape[1:]), batch)
        first = jax.tree.map(lambda a: a[0], parts)
        zeros = jax.tree.map(
            lambda a: jnp.zeros(a.shape, a.dtype),
            jax.eval_shape(function, *others, first),
        )

        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, function(*others, part)), None

        total, _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda a: a / microbatches, total)

    return mean
