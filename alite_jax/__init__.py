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
    from alite_jax.data.registered import register_dataset
    from alite_jax.distillation import register_loss
    from alite_jax.jobs.evaluate import evaluate
    from alite_jax.jobs.export import export
    from alite_jax.jobs.plan import plan
    from alite_jax.jobs.report import report
    from alite_jax.jobs.study import run_study
    from alite_jax.jobs.sweep import sweep
    from alite_jax.jobs.train import train
    from alite_jax.models.registered import register_model
    from alite_jax.runs.networks import restore
    from alite_jax.sparsity.methods import register_method
    from alite_jax.study.declaration import get_study

__all__ = [
    "evaluate",
    "export",
    "get_config",
    "get_study",
    "override",
    "plan",
    "register_dataset",
    "register_loss",
    "register_method",
    "register_model",
    "report",
    "restore",
    "run_study",
    "sweep",
    "train",
]

_MODULES = {
    "evaluate": "alite_jax.jobs.evaluate",
    "export": "alite_jax.jobs.export",
    "plan": "alite_jax.jobs.plan",
    "register_dataset": "alite_jax.data.registered",
    "register_loss": "alite_jax.distillation",
    "register_method": "alite_jax.sparsity.methods",
    "register_model": "alite_jax.models.registered",
    "report": "alite_jax.jobs.report",
    "restore": "alite_jax.runs.networks",
    "train": "alite_jax.jobs.train",
    "get_study": "alite_jax.study.declaration",
    "run_study": "alite_jax.jobs.study",
    "sweep": "alite_jax.jobs.sweep",
}


def __getattr__(name: str) -> Any:
    # A command line with a mistake in it should not wait for JAX.
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
