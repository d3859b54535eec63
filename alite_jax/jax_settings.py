"""JAX as this project computes with it, whatever is set up around it."""

import os
import re
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import jax
from jax._src import xla_bridge
from ml_collections import ConfigDict

from alite_jax.allocator import has_gpu
from alite_jax.config import flatten, validate

P = ParamSpec("P")
T = TypeVar("T")

DETERMINISTIC = "--xla_gpu_deterministic_ops"


def job(
    function: Callable[Concatenate[ConfigDict, P], T],
) -> Callable[Concatenate[ConfigDict, P], T]:
    """Decorates a job, which then computes the same in any surroundings.

    Everything here is computed in 32 bits and less, promotes types as NumPy users
    expect, and moves arrays between host and devices where it means to; so a process in
    which JAX has 64 bits, strict promotion or a transfer guard for the sake of other
    code trains the same network. Products are as exact as `compute.matmul_precision`
    says, and sums as repeatable as `compute.deterministic`.

    Args:
        function: takes the whole configuration first, which is checked before.
    """

    @wraps(function)
    def call(config: ConfigDict, *args: P.args, **kwargs: P.kwargs) -> T:
        validate(config)
        fields = flatten(config)
        if fields["compute.deterministic"]:
            ask_for_determinism()
        precision = fields["compute.matmul_precision"]
        with (
            jax.enable_x64(False),
            jax.numpy_dtype_promotion("standard"),
            jax.transfer_guard("allow"),
            # JAX's own name for its default is None, and programs are kept by the name.
            jax.default_matmul_precision(None if precision == "default" else precision),
        ):
            return function(config, *args, **kwargs)

    return call


def ask_for_determinism() -> None:
    """Has XLA give equal results for equal programs on GPUs, if that can still be had.

    XLA reads its flags once, when JAX first looks for devices, which is later than its
    import. Where there are no GPUs nothing is done: XLA is deterministic elsewhere.
    """
    # A private name: without it nobody knows whether flags are still read.
    if getattr(xla_bridge, "backends_are_initialized", lambda: True)():
        return
    platforms = jax.config.jax_platforms or ""  # type: ignore[attr-defined]
    first = platforms.split(",")[0]
    flags = os.environ.get("XLA_FLAGS", "")
    if has_gpu() if first == "" else first in ("cuda", "rocm", "gpu"):
        os.environ["XLA_FLAGS"] = deterministic_flags(flags)


def deterministic_flags(flags: str) -> str:
    """Returns the value of `XLA_FLAGS` with `DETERMINISTIC` on.

    Args:
        flags: the value so far; what it says of that flag stays, and so does one that
            is the name of a file.
    """
    if DETERMINISTIC in flags or flags.strip()[:1] not in ("", "-"):
        return flags
    return f"{flags} {DETERMINISTIC}=true".strip()


def is_deterministic() -> bool:
    """Whether equal programs give equal results, to the last bit, on these devices."""
    if jax.default_backend() != "gpu":
        return True
    flags = os.environ.get("XLA_FLAGS", "")
    values = re.findall(rf"{DETERMINISTIC}(?:=(\S*))?(?:\s|$)", flags)
    return values[-1:] in (["true"], ["1"], [""])


def seed_key(seed: int) -> jax.Array:
    """Returns a PRNG key that depends on every bit of a seed.

    Args:
        seed: at least 0, of any size. Below 2**32 it is `jax.random.key(seed)`, which
            leaves out the bits beyond unless JAX has 64 of them.
    """
    key = jax.random.key(seed % 2**32)
    while seed := seed >> 32:
        key = jax.random.fold_in(key, seed % 2**32)
    return key
