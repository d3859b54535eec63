"""Self-attention students, distilled and pruned in one pass, in JAX.

import alite_jax

config = alite_jax.get_config("digits", {"student.density": 0.05})
summary = alite_jax.train(config, "runs/digits")

`train` and `evaluate` are loaded on first use.
"""

from typing import TYPE_CHECKING, Any

from alite_jax.config import get_config, override

if TYPE_CHECKING:
    from alite_jax.training.loop import evaluate, train

__all__ = ["evaluate", "get_config", "override", "train"]


def __getattr__(name: str) -> Any:
    # A command line with a mistake in it should not wait for JAX.
    if name in ("evaluate", "train"):
        from alite_jax.training import loop

        return getattr(loop, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
