"""Where JAX keeps what it has compiled; whoever uses an export needs no more of JAX."""

import os

from alite_jax.errors import ConfigError
from alite_jax.paths import user_path


def keep_compiled_programs() -> None:
    """Lets JAX keep what it compiles in the user's cache folder, for the next start.

    A folder that the user gave JAX stays, and one that cannot be written is left alone.
    An entry that is damaged costs a warning and a compilation.
    """
    import jax

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
