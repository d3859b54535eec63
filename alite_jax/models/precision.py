"""In which numbers networks compute, and how far programs of one may lie apart.

A factor of `p` significant bits is rounded by up to `2**-p` of itself. The roundings of
different layers have nothing to do with one another, so over `n` products in a row they
add up like a random walk, to about `sqrt(n)` of one; four times that is allowed.
"""

import math
import re
from functools import partial
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from alite_jax.models.model import Model

Network = tuple[Model, chex.ArrayTree]  # With its variables.

# Of the largest logit, whatever the precision: programs may add in another order.
_LEAST = 1e-3

# What a float32 factor of a product keeps at JAX's default precision and at `high`: in
# TF32 on an NVIDIA GPU; on a TPU in one pass in bfloat16, and in three.
_FLOAT32_BITS = {"cpu": (24, 24), "gpu": (11, 11), "tpu": (8, 16)}


def computing_dtype(name: str) -> np.dtype:
    """Returns the number format that `compute.dtype` names.

    Args:
        name: `"float32"`, `"bfloat16"`, or `"auto"`: bfloat16 where all devices have
            it, which are TPUs and GPUs (NVIDIA's of compute capability 8.0 and more),
            else float32.
    """
    if name != "auto":
        return jnp.dtype(name)
    fast = all(map(_has_bfloat16, jax.devices()))
    return jnp.dtype(jnp.bfloat16 if fast else jnp.float32)


def _has_bfloat16(device: jax.Device) -> bool:
    if device.platform != "gpu":
        return device.platform == "tpu"
    # AMD's are called by letters; those that JAX runs on have it.
    capability = re.match(r"(\d+)\.", str(device.compute_capability))
    return capability is None or int(capability[1]) >= 8


class Bounds(NamedTuple):
    """What two programs of one network may differ by.

    Attributes:
        bits: significant ones of the factors of their products.
        products: kernels, each a product.
        logits_error: of a logit, as a fraction of the largest one.
    """

    bits: int
    products: int
    logits_error: float

    @property
    def exact(self) -> bool:
        """Whether products are as exact as float32 itself."""
        return self.bits == 24


def bounds(dtype: DTypeLike, weights: chex.ArrayTree) -> Bounds:
    """Returns the bounds for programs that run here, on the default backend.

    Args:
        dtype: in which the network computes, float32 or bfloat16.
        weights: `params` and `batch_stats` of the network.
    """
    bits = _significant_bits(dtype)
    leaves = jax.tree.leaves(weights["params"])
    products = sum(np.ndim(leaf) >= 2 for leaf in leaves)
    return Bounds(bits, products, max(_LEAST, 4 * math.sqrt(products) * 2.0**-bits))


def _significant_bits(dtype: DTypeLike) -> int:
    if jnp.dtype(dtype) == jnp.bfloat16:
        return 8
    asked = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    if asked in ("highest", "float32"):
        return 24
    return _FLOAT32_BITS.get(jax.default_backend(), (8, 8))[asked == "high"]


def logits_change(before: Network, after: Network, images: jax.Array) -> float:
    """The largest difference of a logit, as a fraction of the largest of `before`.

    Both networks compute at the highest precision, those of this project in float32,
    whatever their dtype.

    Args:
        before: a module and its variables.
        after: another one.
        images: normalised, float32 `[batch, height, width, channels]`.
    """

    def logits(model: Model, variables: chex.ArrayTree) -> np.ndarray:
        weights = {n: variables.get(n, {}) for n in ("params", "batch_stats")}
        if isinstance(model, nn.Module):  # One of this project, all of which have it.
            model = model.clone(dtype=jnp.float32)
        exact = partial(model.apply, train=False)
        with jax.default_matmul_precision("highest"):
            return np.asarray(jax.jit(exact)(weights, images))

    first, second = logits(*before), logits(*after)
    return float(np.abs(second - first).max() / np.abs(first).max())
