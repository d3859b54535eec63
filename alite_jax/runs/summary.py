"""What a run found: its networks, how they compare, and the file that ends it."""

import json
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alite_jax.config.run_config import recorded
from alite_jax.counting.cost import network_cost
from alite_jax.data.digest import data_digest
from alite_jax.data.sources import Data
from alite_jax.jax_settings import is_deterministic
from alite_jax.models.precision import computing_dtype
from alite_jax.provenance import provenance
from alite_jax.runs import parallel
from alite_jax.runs.evaluation import Evaluator
from alite_jax.runs.fit import Network
from alite_jax.runs.folder import write_whole
from alite_jax.runs.timings import Timings
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


def environment(config: ConfigDict) -> dict[str, Any]:
    """What a job computed with: `provenance`, and the devices with their settings.

    `flags` are those of XLA and of libtpu, "" without any.
    """
    flags = (os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"))
    return {
        **provenance(),
        "device": parallel.describe_devices(),
        "deterministic": is_deterministic(),
        "precision": computing_dtype(config.compute.dtype).name,
        "matmul_precision": config.compute.matmul_precision,
        "flags": " ".join(filter(None, flags)),
    }


def write_summary(
    folder: Path,
    config: ConfigDict,
    data: Data,
    results: dict[str, Any],
    seconds: dict[str, float],
    timings: Timings,
) -> dict[str, Any]:
    """Writes `summary.json`, which ends a run, and returns its content."""
    with timings.spent("reading"):
        digest = data_digest(data)
    parts = timings.seconds()
    summary = {
        "dataset": data.spec.name,
        "seed": config.seed,
        **results,
        "seconds": {
            **seconds,
            "this_process": sum(parts.values()),
            "of_this_process": parts,
        },
        "environment": environment(config) | {"data": digest},
        "config": recorded(config, folder).to_dict(),
    }
    write_whole(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary
