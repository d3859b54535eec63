"""The job `export`: from a finished run to a folder that works without it."""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from alite_jax.data.sources import Array, Data
from alite_jax.deploy import artefact
from alite_jax.deploy.card import card_text
from alite_jax.deploy.pack import pack, unpack
from alite_jax.deploy.program import (
    Forward,
    compare,
    export_program,
    forward_of,
    milliseconds,
)
from alite_jax.deploy.tflite import read_tflite, tflite_program, with_all_pairs
from alite_jax.jax_settings import job, keep_compiled_programs
from alite_jax.jobs.command import Command
from alite_jax.models.precision import bounds, logits_change
from alite_jax.models.resnet import ResNet
from alite_jax.paths import user_path
from alite_jax.runs import parallel
from alite_jax.runs.data import load_data
from alite_jax.runs.evaluation import Evaluator
from alite_jax.runs.fit import Network
from alite_jax.runs.folder import at_work, settled, write_whole
from alite_jax.runs.given import Given
from alite_jax.runs.networks import create_networks
from alite_jax.runs.starts import compact_checked, compared_images
from alite_jax.runs.summary import network_summary
from alite_jax.structure.compact import widths_as_json
from alite_jax.training.state import Variables

BATCHES = (1, 64)  # images, for which both networks are timed


def run(command: Command) -> None:
    """Exports the student of the run in the folder and prints its card."""
    keep_compiled_programs()
    flags = command.flags
    how = flags.values, flags.multiple, flags.tflite
    export(command.config(), command.workdir, *how)
    print((command.workdir / "export" / artefact.CARD_TEXT).read_text())


@job
def export(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    values: str = "int8",
    multiple: int = 1,
    tflite: bool = False,
    *,
    student: Any = None,
    teacher: Any = None,
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
        student: as for `train`, if it was given there. A network whose coupled channels
            nobody knows is exported without being compacted.
        teacher: the same.

    Returns:
        The content of `card.json`.

    Raises:
        AliteError: with one sentence, for whatever is wrong.

    Example:
        >>> card = alite_jax.export(config, workdir)
        >>> card["agreement"]["same_classes"], card["image_shape"]
        (1.0, [8, 8, 1])
        >>> sorted(path.name for path in (workdir / "export").iterdir())
        ['card.json', 'card.md', 'graph.stablehlo', 'weights.alite']
    """
    given = Given(student, teacher)
    folder = user_path(workdir)
    config = settled(given.named(config), folder)
    # A folder that is not there holds no run, and is not made by asking for one.
    with at_work(folder) if folder.is_dir() else nullcontext():
        return _export(config, folder, values, multiple, tflite, given)


def _export(
    config: ConfigDict,
    folder: Path,
    values: str,
    multiple: int,
    tflite: bool,
    given: Given,
) -> dict[str, Any]:
    data = load_data(config, folder)
    images = data.evaluation.images
    teacher, student = create_networks(config, data, folder, given)
    trained = student.restore(data.image_shape)

    # 1. Channels and heads that the masks leave without effect are cut out, where it is
    # known what is coupled.
    some, identity = compared_images(data), student.identity
    model, variables = student.model, trained
    if isinstance(student.model, ResNet):
        smaller = compact_checked(student.model, trained, some, multiple)
        model, variables = smaller.model, smaller.variables
        identity = identity | {"widths": widths_as_json(smaller.model)}
    compacted = replace(student, model=model)

    # 2. From here on the student is what a reader will unpack, rounded as it is stored.
    content = pack(identity, variables, values)
    packed = unpack(content)

    # 3. Both networks become programs in the same way, so that their times compare; but
    # a teacher from elsewhere may do what no exported program can. A missing converter
    # for LiteRT is noticed here, before anything is measured.
    forward, weights = _forward(compacted, packed.variables, data)
    program = export_program(forward, weights, data.image_shape)
    calls = {"student": artefact.compiled(program, weights)}
    if teacher is not None:
        taught_by = teacher.restore(data.image_shape)
        ask, numbers = _forward(teacher, taught_by, data)
        calls["teacher"] = jax.jit(partial(ask, numbers))
        if teacher.variables is None:
            theirs = export_program(ask, numbers, data.image_shape)
            calls["teacher"] = artefact.compiled(theirs, numbers)
    lite = None
    if tflite:
        simpler = with_all_pairs(model) if isinstance(model, ResNet) else model
        forward_lite = forward_of(simpler, data.spec)
        lite = tflite_program(forward_lite, weights, data.image_shape)

    # 4. Everything goes to a draft, since an earlier export stays until this one is
    # whole. Reading it back needs what the card says by now.
    measured = partial(_measured, config=config, data=data)
    before = measured(student, trained)
    card = {
        **measured(compacted, packed.variables),
        "dataset": data.spec.name,
        "image_shape": list(data.image_shape),
        "resize": data.spec.resize,
        "classes": data.spec.class_names,
        "density": before["density"],
        "values": values,
        "accuracy_before_packing": before["accuracy"],
        "macs_before_compaction": before["macs"],
        "packing_error": logits_change(
            (model, variables), (model, packed.variables), some
        ),
        "bytes": packed.sizes | {"program": len(program)},
        "teacher": None,
    }
    if teacher is not None:
        card["teacher"] = {
            **measured(teacher, taught_by),
            "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(numbers)),
        }
    draft = folder / "export_draft"
    shutil.rmtree(draft, ignore_errors=True)
    write_whole(draft / artefact.WEIGHTS, content)
    write_whole(draft / artefact.GRAPH, program)
    write_whole(draft / artefact.CARD, json.dumps(card))

    # 5. What is read back must predict what the network predicts, on every image.
    allowed = bounds(config.compute.dtype, weights)
    network = partial(jax.jit(forward), weights)
    check = partial(compare, network=network, images=images, allowed=allowed)
    agreement = check(artefact.load(draft).logits)
    card["agreement"] = agreement._asdict() | {"allowed": allowed._asdict()}
    if lite is not None:
        call = read_tflite(lite)
        card["tflite"] = {
            "agreement": check(call)._asdict(),
            "milliseconds": milliseconds({"lite": call}, images[:1])["lite"],
            "bytes": len(lite),
        }
        write_whole(draft / artefact.TFLITE, lite)

    # 6. Timed beside its teacher, it takes the place of an earlier export.
    card["milliseconds"] = _times(calls, images)
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


def _forward(
    network: Network, variables: Variables, data: Data
) -> tuple[Forward, Variables]:
    """A network's function and the weights that it is called with."""
    weights = {name: variables.get(name, {}) for name in ("params", "batch_stats")}
    return forward_of(network.model, data.spec), jax.device_put(weights)


def _measured(
    network: Network, variables: Variables, config: ConfigDict, data: Data
) -> dict[str, Any]:
    evaluator = Evaluator(network.model, data, config.data.eval_batch_size)
    return network_summary(network, variables, evaluator, data)


def _times(
    calls: Mapping[str, Callable[..., Any]], images: Array
) -> dict[str, dict[str, float]]:
    """Milliseconds of each network by batch."""
    times: dict[str, dict[str, float]] = {phase: {} for phase in calls}
    for batch in BATCHES:
        for phase, median in milliseconds(calls, images[:batch]).items():
            times[phase][str(batch)] = median
    return times
