"""The job `export`: from a finished run to a folder that works without it."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from alite_jax.compiled_programs import keep_compiled_programs
from alite_jax.data.digest import data_digest
from alite_jax.data.pipeline import in_batches
from alite_jax.data.sources import Array, Data
from alite_jax.deploy import artefact
from alite_jax.deploy.card import card_text
from alite_jax.deploy.formats import FORMATS, Exportable, parse_formats
from alite_jax.deploy.onnx_int8 import MOST_LOST
from alite_jax.deploy.pack import pack, unpack
from alite_jax.deploy.program import (
    compare,
    export_program,
    forward_of,
    milliseconds,
)
from alite_jax.deploy.runtimes import GRAPH, WEIGHTS, compiled
from alite_jax.errors import ArtefactError
from alite_jax.jax_settings import job
from alite_jax.jobs.command import Command
from alite_jax.models.precision import bounds, logits_change
from alite_jax.models.resnet import ResNet
from alite_jax.paths import user_path
from alite_jax.runs.data import load_data
from alite_jax.runs.evaluation import Evaluator
from alite_jax.runs.fit import Network
from alite_jax.runs.folder import at_work, settled, write_whole
from alite_jax.runs.given import Given
from alite_jax.runs.networks import create_networks
from alite_jax.runs.starts import compact_checked, compared_images
from alite_jax.runs.summary import environment, network_summary
from alite_jax.structure.compact import widths_as_json
from alite_jax.training.state import Variables

BATCHES = (1, 64)  # images, for which both networks are timed


def run(command: Command) -> None:
    """Exports the student of the run in the folder and prints its card."""
    keep_compiled_programs()
    flags = command.flags
    how = flags.values, flags.multiple, flags.formats
    export(command.config(), command.workdir, *how)
    print((command.workdir / "export" / artefact.CARD_TEXT).read_text())


@job
def export(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    values: str = "int8",
    multiple: int = 1,
    formats: Sequence[str] = (),
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
        formats: what to write besides, names of `alite_jax.deploy.formats.FORMATS`;
            `"tflite:64"` is a program for 64 images at a time.
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
    wanted = parse_formats(formats)  # What is not installed stops it here.
    given = Given(student, teacher)
    folder = user_path(workdir)
    config = settled(given.named(config), folder)
    # A folder that is not there holds no run, and is not made by asking for one.
    with at_work(folder) if folder.is_dir() else nullcontext():
        return _export(config, folder, (values, multiple, wanted), given)


def _export(
    config: ConfigDict,
    folder: Path,
    how: tuple[str, int, Mapping[str, int | None]],
    given: Given,
) -> dict[str, Any]:
    values, multiple, formats = how
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
    # a teacher from elsewhere may do what no exported program can. What a converter
    # cannot take is noticed here, before anything is measured.
    ours = _exportable(compacted, identity, packed.variables, data)
    program = _program(ours)
    calls = {"student": _compiled(program, ours)}
    written = {name: FORMATS[name].write(ours, formats[name]) for name in formats}
    theirs, their_program, theirs_written = None, None, dict[str, bytes]()
    if teacher is not None:
        numbers = teacher.restore(data.image_shape)
        theirs = _exportable(teacher, teacher.identity, numbers, data)
        forward = forward_of(theirs.model, theirs.spec)
        calls["teacher"] = jax.jit(partial(forward, theirs.weights))
        if teacher.variables is None:
            their_program = _program(theirs)
            calls["teacher"] = _compiled(their_program, theirs)
        if isinstance(teacher.model, ResNet):
            theirs_written = {
                name: FORMATS[name].write(theirs, formats[name])
                for name in formats
                if FORMATS[name].timed
            }

    # 4. Everything goes to a draft, since an earlier export stays until this one is
    # whole. Reading it back needs what the card says by now.
    contents = {WEIGHTS: content, GRAPH: program}
    contents |= {FORMATS[name].file: written[name] for name in formats}
    measured = partial(_measured, config=config, data=data)
    before = measured(student, trained)
    card = {
        **measured(compacted, packed.variables),
        "dataset": data.spec.name,
        "split": config.data.eval_split or data.spec.eval_split,
        "image_shape": list(data.image_shape),
        "resize": data.spec.resize,
        "mean": list(data.spec.mean),
        "std": list(data.spec.std),
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
        "files": {name: _named(content) for name, content in contents.items()},
    }
    if teacher is not None and theirs is not None:
        leaves = jax.tree.leaves(theirs.weights)
        card["teacher"] = {
            **measured(teacher, theirs.variables),
            "bytes": sum(leaf.nbytes for leaf in leaves),
            "program_bytes": len(their_program) if their_program else None,
        }
    draft = folder / "export_draft"
    shutil.rmtree(draft, ignore_errors=True)
    for name, content in contents.items():
        write_whole(draft / name, content)
    write_whole(draft / artefact.CARD, json.dumps(card))

    # 5. What is read back must predict what the network predicts, on every image.
    allowed = bounds(config.compute.dtype, ours.weights)
    network = partial(jax.jit(forward_of(model, data.spec)), ours.weights)
    logits = in_batches(network, images)
    check = partial(compare, theirs=logits, allowed=allowed)
    agreement = check(in_batches(artefact.load(draft).logits, images))
    card["agreement"] = agreement._asdict() | {"allowed": allowed._asdict()}

    # 6. Timed beside its teacher, it takes the place of an earlier export.
    card["milliseconds"] = _times(calls, images)
    card["formats"] = {}
    for name, batch in formats.items():
        known = FORMATS[name]
        call = known.read((draft / known.file).read_bytes(), ours)
        found: dict[str, Any] = {
            **{"file": known.file, "program": known.program, "batch": batch},
            "bytes": len(written[name]),
        }
        answers = in_batches(call, images)
        found["accuracy"] = _accuracy(answers, data)
        if known.exact:
            found["agreement"] = check(answers)._asdict()
        else:
            _check_accuracy(name, found["accuracy"], card["accuracy"])
        if known.timed:
            peers = {"student": call}
            if name in theirs_written:
                assert theirs is not None
                found["teacher_bytes"] = len(theirs_written[name])
                peers["teacher"] = known.read(theirs_written[name], theirs)
            found["milliseconds"] = _times(peers, images)
        card["formats"][name] = found
    card["environment"] = environment(config) | {"data": data_digest(data)}
    write_whole(draft / artefact.CARD_TEXT, card_text(card))
    write_whole(draft / artefact.CARD, json.dumps(card, indent=2) + "\n")
    target = folder / "export"
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
    return card


def _accuracy(logits: np.ndarray, data: Data) -> float:
    labels = np.asarray(data.evaluation.labels)
    return float(np.mean(logits.argmax(axis=1) == labels))


def _check_accuracy(name: str, accuracy: float, before: float) -> None:
    """Raises ArtefactError where a program in fewer bits loses half a point."""
    if accuracy < before - MOST_LOST:
        raise ArtefactError(
            f"the {name} program has an accuracy of {accuracy:.2%}, the network one of"
            f" {before:.2%}, and {MOST_LOST:.1%} may be lost; nothing was written,"
            f" export it without {name}"
        )


def _exportable(
    network: Network, identity: dict[str, Any], variables: Variables, data: Data
) -> Exportable:
    """A network with numbers on the device, where each array is handed over once."""
    moved = jax.device_put(dict(variables))
    about = data.spec, data.image_shape, data.train.images
    return Exportable(network.model, moved, identity, *about)


def _program(network: Exportable) -> bytes:
    forward = forward_of(network.model, network.spec)
    return export_program(forward, network.weights, network.image_shape)


def _compiled(program: bytes, network: Exportable) -> Callable[[Any], jax.Array]:
    return compiled(program, network.weights)


def _named(content: bytes) -> dict[str, Any]:
    """What `artefact.load` knows a file again by."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


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
