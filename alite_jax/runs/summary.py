"""What a run found: its networks, how they compare, and the file that ends it."""

import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from alite_jax.config.run_config import recorded
from alite_jax.counting.cost import network_cost
from alite_jax.data.sources import Data
from alite_jax.jax_settings import is_deterministic
from alite_jax.runs import parallel
from alite_jax.runs.evaluation import Evaluator
from alite_jax.runs.fit import Network
from alite_jax.runs.folder import write_whole
from alite_jax.sparsity.masks import density
from alite_jax.training.state import Variables


def network_summary(
    network: Network, variables: Variables, evaluator: Evaluator, data: Data
) -> dict[str, Any]:
    """One network's part of the summary."""
    found = evaluator.measure(parallel.replicate(variables))
    top5 = found.top5_accuracy
    return {
        "name": network.identity["model"],
        "accuracy": found.accuracy,
        "mean_class_accuracy": found.mean_class_accuracy,
        **({} if top5 is None else {"top5_accuracy": top5}),
        "density": density(variables["masks"]),
        **network_cost(network.model, data.image_shape, variables),
        "class_accuracy": dict(
            zip(data.spec.class_names, found.class_accuracy, strict=True)
        ),
    }


def compare(teacher: dict[str, Any] | None, student: dict[str, Any]) -> dict[str, Any]:
    """The two networks, their ratios (teacher over student) and the drop in points.

    Nothing is known of a teacher of which there are only logits: None.
    """
    if teacher is None:
        return {"teacher": None, "student": student, "ratios": {}}
    return {
        "teacher": teacher,
        "student": student,
        "ratios": {
            "parameters": (
                teacher["nonzero_parameters"] / student["nonzero_parameters"]
            ),
            "macs": teacher["macs"] / student["macs"],
            "nonzero_macs": teacher["nonzero_macs"] / student["nonzero_macs"],
        },
        "accuracy_drop": 100 * (teacher["accuracy"] - student["accuracy"]),
    }


def write_summary(
    folder: Path,
    config: ConfigDict,
    dataset: str,
    results: dict[str, Any],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Writes `summary.json`, which ends a run, and returns its content."""
    summary = {
        "dataset": dataset,
        "seed": config.seed,
        **results,
        "seconds": seconds,
        "environment": {
            "jax": jax.__version__,
            "device": parallel.describe_devices(),
            "deterministic": is_deterministic(),
        },
        "config": recorded(config, folder).to_dict(),
    }
    write_whole(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary
