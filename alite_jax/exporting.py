"""The job `export`: from a finished run to a folder that works without it."""

import json
import os
import shutil
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alite_jax import config as config_lib
from alite_jax.analysis.cost import network_cost
from alite_jax.data.sources import class_names
from alite_jax.deploy import artefact
from alite_jax.deploy.card import card_text
from alite_jax.deploy.compact import widths_as_json
from alite_jax.deploy.export import compare, export_program, forward_of, milliseconds
from alite_jax.deploy.pack import pack, unpack
from alite_jax.deploy.precision import bounds, logits_change
from alite_jax.deploy.tflite import read_tflite, tflite_program, with_all_pairs
from alite_jax.jax_settings import job
from alite_jax.models.resnet import ResNet
from alite_jax.paths import user_path
from alite_jax.sparsity.masks import density
from alite_jax.training import parallel
from alite_jax.training.evaluation import Evaluator
from alite_jax.training.fit import Network
from alite_jax.training.loop import load_data
from alite_jax.training.networks import (
    compact_checked,
    compared_images,
    create_networks,
)
from alite_jax.training.run_folder import at_work, write_whole

BATCHES = (1, 64)


@job
def export(
    config: Any,
    workdir: str | os.PathLike[str],
    values: str = "int8",
    multiple: int = 1,
    tflite: bool = False,
) -> dict[str, Any]:
    """Writes the student of a run to `WORKDIR/export`, checked and timed.

    It replaces an earlier one only once its program was found to agree with the network
    on the whole evaluation split.

    Args:
        config: the run's own.
        workdir: the run's folder.
        values: how kept weights are stored, one of `alite_jax.deploy.pack.VALUES`.
        multiple: of the widths that compaction leaves; see `compact`.
        tflite: whether to write a program for LiteRT as well.

    Returns:
        The content of `card.json`.

    Raises:
        AliteError: with one sentence, for whatever is wrong.
    """
    config_lib.validate(config)
    folder = user_path(workdir)
    # A folder that is not there holds no run, and is not made by asking for one.
    with at_work(folder) if folder.is_dir() else nullcontext():
        return _export(config, folder, values, multiple, tflite)


def _export(
    config: Any, folder: Path, values: str, multiple: int, tflite: bool
) -> dict[str, Any]:
    data = load_data(config)
    images = data.evaluation.images
    teacher, student = create_networks(config, data, folder)

    def accuracy(network: Network, variables: Any) -> float:
        evaluator = Evaluator(network.model, data, config.data.eval_batch_size)
        return evaluator(parallel.replicate(variables))["eval_accuracy"]

    whole = student.restore(data.image_shape)
    assert isinstance(student.model, ResNet)
    some = compared_images(data)
    smaller = compact_checked(student.model, whole, some, multiple)
    compacted = replace(student, model=smaller.model)
    model = student.identity | {"widths": widths_as_json(smaller.model)}
    content = pack(model, smaller.variables, values)
    packed = unpack(content)
    before = (smaller.model, smaller.variables)
    packing = logits_change(before, (smaller.model, packed.variables), some)
    theirs = teacher.restore(data.image_shape)
    programs = {}
    for network, variables in ((teacher, theirs), (compacted, packed.variables)):
        weights = jax.device_put({n: variables[n] for n in ("params", "batch_stats")})
        forward = forward_of(network.model, data.spec)
        program = export_program(forward, weights, data.image_shape)
        programs[network.phase] = (forward, weights, program)
    lite = None
    if tflite:
        _, weights, _ = programs["student"]
        forward = forward_of(with_all_pairs(smaller.model), data.spec)
        lite = tflite_program(forward, weights, data.image_shape)
    # An earlier export stays until this one is whole.
    draft = folder / "export_draft"
    shutil.rmtree(draft, ignore_errors=True)
    write_whole(draft / artefact.WEIGHTS, content)
    write_whole(draft / artefact.GRAPH, programs["student"][2])
    card = {
        "name": student.identity["model"],
        "dataset": data.spec.name,
        "image_shape": list(data.image_shape),
        "classes": class_names(config.data),
        "density": density(whole["masks"]),
        "values": values,
        "accuracy": accuracy(compacted, packed.variables),
        "accuracy_before_packing": accuracy(student, whole),
        "packing_error": packing,
        "teacher": {
            "name": teacher.identity["model"],
            "accuracy": accuracy(teacher, theirs),
            "bytes": _float32_bytes(theirs),
            **_cost(teacher, theirs, data),
        },
        **_cost(compacted, smaller.variables, data),
        "macs_before_compaction": _cost(student, whole, data)["macs"],
        "bytes": packed.sizes | {"program": len(programs["student"][2])},
    }
    write_whole(draft / artefact.CARD, json.dumps(card))  # Needed to read it back.
    exported = artefact.load(draft)
    forward, weights, _ = programs["student"]
    allowed = bounds(smaller.model.dtype, weights)
    agreement = compare(exported.logits, forward, weights, images, allowed)
    card["agreement"] = agreement._asdict() | {"allowed": allowed._asdict()}
    if lite is not None:
        call = read_tflite(lite)
        card["tflite"] = {
            "agreement": compare(call, forward, weights, images, allowed)._asdict(),
            "milliseconds": milliseconds({"lite": call}, images[:1])["lite"],
            "bytes": len(lite),
        }
        write_whole(draft / artefact.TFLITE, lite)
    calls = {
        phase: artefact.compiled(program, weights)
        for phase, (_, weights, program) in programs.items()
    }
    times = {str(batch): milliseconds(calls, images[:batch]) for batch in BATCHES}
    card["milliseconds"] = {
        phase: {batch: found[phase] for batch, found in times.items()}
        for phase in calls
    }
    card["environment"] = {
        "jax": jax.__version__,
        "device": parallel.describe_devices(),
        "date": time.strftime("%Y-%m-%d"),
    }
    write_whole(draft / artefact.CARD_TEXT, card_text(card))
    write_whole(draft / artefact.CARD, json.dumps(card, indent=2) + "\n")
    target = folder / "export"
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
    return card


def _cost(network: Network, variables: Any, data: Any) -> dict[str, Any]:
    return network_cost(
        network.model, data.image_shape, variables["params"], variables["masks"]
    )


def _float32_bytes(variables: Any) -> int:
    kept = variables["params"], variables["batch_stats"]
    return sum(4 * np.size(leaf) for leaf in jax.tree.leaves(kept))
