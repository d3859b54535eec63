"""Gradient accumulation: a batch in several passes, for the memory of one of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from alite_jax.errors import ConfigError


def check_accumulation(parts: int, batch_size: int, num_shards: int) -> None:
    """Checks that each device's share of a batch can be cut into equal parts.

    Args:
        parts: `compute.accumulation`.
        batch_size: `data.batch_size`, over all devices.
        num_shards: number of devices that share a batch; divides `batch_size`.

    Raises:
        ConfigError: it cannot.
    """
    share = batch_size // num_shards
    if share % parts:
        raise ConfigError(
            f"compute.accumulation = {parts} does not divide the {share} images that "
            f"each device gets of data.batch_size = {batch_size}; use a divisor of "
            f"{share}"
        )


def mean_over_parts(function: Callable[[Any], Any], batch: Any, parts: int) -> Any:
    """Applies `function` to equal parts of a batch, one after another.

    Only one part's intermediate values are in memory at a time.

    Args:
        function: from a batch to a pytree of float arrays whose shapes do not depend
            on the size of the batch.
        batch: pytree of arrays `[batch, ...]`; part i is their i-th contiguous piece.
        parts: how many; divides the batch. With 1, this is `function(batch)`.

    Returns:
        The mean of the results.
    """
    if parts == 1:
        return function(batch)
    pieces = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), batch)
    piece = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), pieces)
    zeros = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(function, piece)
    )

    def add(total: Any, piece: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(piece)), None

    total, _ = jax.lax.scan(add, zeros, pieces)
    return jax.tree.map(lambda a: a / parts, total)
