"""Self-attention students, distilled and pruned in one pass, in JAX.

import alite_jax

config = alite_jax.get_config("digits", {"student.density": 0.05})
summary = alite_jax.train(config, "runs/digits")

What needs JAX is loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from alite_jax.config import get_config, override

if TYPE_CHECKING:
    from alite_jax.exporting import export
    from alite_jax.planning import plan
    from alite_jax.reporting import report
    from alite_jax.study.declaration import get_study
    from alite_jax.study.run import run_study
    from alite_jax.study.sweep import sweep
    from alite_jax.training.loop import evaluate, restore, train

__all__ = [
    "evaluate",
    "export",
    "get_config",
    "get_study",
    "override",
    "plan",
    "report",
    "restore",
    "run_study",
    "sweep",
    "train",
]

_MODULES = {
    "evaluate": "alite_jax.training.loop",
    "export": "alite_jax.exporting",
    "plan": "alite_jax.planning",
    "report": "alite_jax.reporting",
    "restore": "alite_jax.training.loop",
    "train": "alite_jax.training.loop",
    "get_study": "alite_jax.study.declaration",
    "run_study": "alite_jax.study.run",
    "sweep": "alite_jax.study.sweep",
}


def __getattr__(name: str) -> Any:
    # A command line with a mistake in it should not wait for JAX.
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
