"""Self-attention students, distilled and pruned in one pass, in JAX.

import alite_jax

config = alite_jax.get_config("digits", {"student.density": 0.05})
summary = alite_jax.train(config, "runs/digits")

Everything is loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alite_jax.config import get_config, override
    from alite_jax.data.registered import register_dataset
    from alite_jax.distillation import register_loss
    from alite_jax.jobs.compare import compare
    from alite_jax.jobs.evaluate import evaluate
    from alite_jax.jobs.export import export
    from alite_jax.jobs.plan import plan
    from alite_jax.jobs.report import report
    from alite_jax.jobs.study import run_study
    from alite_jax.jobs.sweep import sweep
    from alite_jax.jobs.train import train, train_teacher
    from alite_jax.jobs.views import write_views
    from alite_jax.models.registered import register_model
    from alite_jax.runs.networks import restore
    from alite_jax.sparsity.masks import RULES, apply_masks
    from alite_jax.sparsity.methods import register_method
    from alite_jax.sparsity.pruner import Pruner
    from alite_jax.sparsity.schedules import RewiringSteps
    from alite_jax.study.declaration import get_study

__version__ = "0.1.0"

__all__ = [
    "RULES",
    "Pruner",
    "RewiringSteps",
    "apply_masks",
    "compare",
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
    "train_teacher",
    "write_views",
]

_MODULES = {
    "Pruner": "alite_jax.sparsity.pruner",
    "RULES": "alite_jax.sparsity.masks",
    "RewiringSteps": "alite_jax.sparsity.schedules",
    "apply_masks": "alite_jax.sparsity.masks",
    "compare": "alite_jax.jobs.compare",
    "evaluate": "alite_jax.jobs.evaluate",
    "export": "alite_jax.jobs.export",
    "get_config": "alite_jax.config",
    "override": "alite_jax.config",
    "plan": "alite_jax.jobs.plan",
    "register_dataset": "alite_jax.data.registered",
    "register_loss": "alite_jax.distillation",
    "register_method": "alite_jax.sparsity.methods",
    "register_model": "alite_jax.models.registered",
    "report": "alite_jax.jobs.report",
    "restore": "alite_jax.runs.networks",
    "train": "alite_jax.jobs.train",
    "train_teacher": "alite_jax.jobs.train",
    "get_study": "alite_jax.study.declaration",
    "run_study": "alite_jax.jobs.study",
    "sweep": "alite_jax.jobs.sweep",
    "write_views": "alite_jax.jobs.views",
}


def __getattr__(name: str) -> Any:
    # A command line with a mistake in it should not wait for JAX, and what was exported
    # is used where there is neither JAX nor ml_collections.
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
