"""JAX as this project computes with it, whatever is set up around it."""

import os
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax

from alite_jax.errors import ConfigError
from alite_jax.paths import user_path

P = ParamSpec("P")
T = TypeVar("T")


def job(function: Callable[P, T]) -> Callable[P, T]:
    """Decorates a job, which then computes the same in any surroundings.

    Everything here is computed in 32 bits and less, promotes types as NumPy users
    expect, and moves arrays between host and devices where it means to; so a process in
    which JAX has 64 bits, strict promotion or a transfer guard for the sake of other
    code trains the same network.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with (
            jax.enable_x64(False),
            jax.numpy_dtype_promotion("standard"),
            jax.transfer_guard("allow"),
        ):
            return function(*args, **kwargs)

    return call


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


def keep_compiled_programs() -> None:
    """Lets JAX keep what it compiles in the user's cache folder, for the next start.

    A folder that the user gave JAX stays, and one that cannot be written is left alone.
    An entry that is damaged costs a warning and a compilation.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    try:
        folder = user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
        folder = folder / "alite_jax"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ConfigError):  # The latter where there is no home.
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
