"""The job `report`: one page about a finished run, with nothing left to look up."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alite_jax.analysis import run_plots
from alite_jax.analysis.attention_maps import attention_maps
from alite_jax.analysis.cost_table import networks_table
from alite_jax.analysis.networks import configured_costs
from alite_jax.analysis.report_page import Section, report_page
from alite_jax.config import validate
from alite_jax.data.augment import normalize
from alite_jax.data.sources import class_names
from alite_jax.errors import CheckpointError
from alite_jax.jax_settings import job
from alite_jax.paths import user_path
from alite_jax.run_config import to_json
from alite_jax.training.loop import load_data, restore
from alite_jax.training.metrics import read_metrics
from alite_jax.training.run_folder import (
    read_card,
    read_summary,
    write_whole,
)
from alite_jax.trees import named_leaves

FILE = Path("report", "index.html")
_PICTURES = 16  # images to show


@job
def report(config: Any, workdir: str | os.PathLike[str]) -> Path:
    """Writes `WORKDIR/report/index.html`, a page that carries all its pictures.

    Args:
        config: the run's own.
        workdir: the folder of a finished run; if it was exported, that is in the page.

    Returns:
        The path of the page.

    Raises:
        CheckpointError: the run is not finished.
        AliteError: with one sentence, for whatever else is wrong.
    """
    validate(config)
    folder = user_path(workdir)
    summary = read_summary(folder)
    if summary is None or "student" not in summary:
        raise CheckpointError(
            f"{folder} holds no finished run, which a report is about; train it first"
        )
    data = load_data(config)
    classes = class_names(config.data)
    model, variables = restore(config, folder)["student"]
    images, labels = data.evaluation.images, data.evaluation.labels
    probabilities = _probabilities(model, variables, images, data.spec)
    records = read_metrics(folder)
    sections = [
        _comparison(summary),
        Section(
            "Learning",
            "First the teacher, then the student, distilled while it is pruned.",
            run_plots.draw(run_plots.curves, records),
        ),
        *_layers(records, variables),
        *_attention(model, variables, images, data),
        *_answers(images, labels, probabilities, classes),
        _costs(config),
        *_export(folder),
        Section("Configuration", folded=to_json(config)),
    ]
    student, ratios = summary["student"], summary["ratios"]
    place = summary["environment"]
    page = report_page(
        f"{student['name']} on {summary['dataset']}",
        f"Seed {summary['seed']}; {len(labels):,} evaluation images; trained on"
        f" {place['device']} with jax {place['jax']}.",
        [
            (f"{100 * student['accuracy']:.2f} %", "accuracy"),
            (f"{-summary['accuracy_drop']:+.2f}", "points against its teacher"),
            (f"{ratios['parameters']:.1f}x", "fewer non-zero parameters"),
            (f"{ratios['nonzero_macs']:.1f}x", "fewer non-zero MACs"),
        ],
        sections,
    )
    write_whole(folder / FILE, page)
    return folder / FILE


def _comparison(summary: Any) -> Section:
    teacher, student = summary["teacher"], summary["student"]
    rows = [["", teacher["name"], student["name"], "teacher / student"]]
    for network in (teacher, student):
        network.setdefault("density", 1.0)
    rows.append(
        ["accuracy", *(f"{100 * n['accuracy']:.2f} %" for n in (teacher, student)), ""]
    )
    rows.append(
        ["density", *(f"{100 * n['density']:.1f} %" for n in (teacher, student)), ""]
    )
    for name, label in (
        ("parameters", "parameters"),
        ("nonzero_parameters", "non-zero parameters"),
        ("macs", "MACs"),
        ("nonzero_macs", "non-zero MACs"),
    ):
        theirs, ours = teacher[name], student[name]
        rows.append([label, f"{theirs:,}", f"{ours:,}", f"{theirs / ours:.2f}x"])
    for name, seconds in summary["seconds"].items():
        rows.append([f"{name.replace('_', ' ')}, seconds", "", f"{seconds:,.0f}", ""])
    return Section("Teacher and student", rows=rows)


def _probabilities(model: Any, variables: Any, images: np.ndarray, spec: Any) -> Any:
    """Softmax of the logits of all images, `[n, classes]`."""

    @jax.jit
    def run(images: jax.Array) -> Any:
        inputs = normalize(images, spec.mean, spec.std)
        return jax.nn.softmax(model.apply(variables, inputs, train=False))

    batch = min(256, len(images))
    missing = -len(images) % batch
    filled = np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)])
    parts = [run(filled[i : i + batch]) for i in range(0, len(filled), batch)]
    return np.concatenate(jax.device_get(parts))[: len(images)]


def _layers(records: Any, variables: Any) -> list[Section]:
    kernels = {
        path.removesuffix("/kernel"): np.asarray(mask)
        for path, mask in named_leaves(variables["masks"])
        if np.ndim(mask) == 2 and "stage" in path
    }
    if not kernels:
        return []
    # From each place of the network something.
    names = [name for name in kernels if name.endswith(("query", "value", "expand"))]
    names = (names or list(kernels))[:: max(1, len(names) // 8)][:8]
    return [
        Section(
            "Density of each layer",
            "After each epoch; layers in the order in which they run.",
            run_plots.draw(run_plots.layers_over_time, records),
        ),
        Section(
            "Masks",
            "Inputs downwards, outputs to the right; kept weights are black.",
            run_plots.draw(run_plots.masks, {name: kernels[name] for name in names}),
        ),
    ]


def _attention(
    model: Any, variables: Any, images: np.ndarray, data: Any
) -> list[Section]:
    paths = [
        path.removesuffix("/row_embeddings")
        for path, _ in named_leaves(variables["params"])
        if path.endswith("row_embeddings") and "stage" in path
    ]
    if not paths:
        return []
    shown = images[:8]
    maps = attention_maps(model, variables, shown, data.spec, paths[0])
    middle = maps[:, maps.shape[1] // 2, maps.shape[2] // 2]
    return [
        Section(
            "Where attention looks",
            f"Weights of {paths[0]} over the window around the middle of each image.",
            run_plots.draw(run_plots.attention, shown, middle),
        )
    ]


def _answers(
    images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, classes: Any
) -> list[Section]:
    guesses = probabilities.argmax(axis=1)
    right = np.flatnonzero(guesses == labels)[:_PICTURES]
    wrong = np.flatnonzero(guesses != labels)
    # The mistakes that the network is surest of say most.
    wrong = wrong[np.argsort(-probabilities[wrong].max(axis=1))][:_PICTURES]
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (labels, guesses), 1)
    sections = []
    for title, text, chosen in (
        ("Right", "The first ones, with the probability of the class.", right),
        ("Wrong", "The mistakes that the network is surest of.", wrong),
    ):
        if len(chosen):
            arguments = images[chosen], labels[chosen], probabilities[chosen], classes
            picture = run_plots.draw(run_plots.examples, *arguments)
            sections.append(Section(title, text, picture))
    picture = run_plots.draw(run_plots.confusion, counts, classes)
    return [*sections, Section("What is taken for what", picture=picture)]


def _costs(config: Any) -> Section:
    return Section(
        "Cost of each layer",
        "Parameters, MACs and bytes of one image, masks as the density says.",
        folded=networks_table(*configured_costs(config), "table"),
    )


def _export(folder: Path) -> list[Section]:
    card = read_card(folder)
    if card is None:
        return []
    times = card["milliseconds"]
    rows = [["", "teacher", "student", "teacher / student"]]
    for batch, ours in times["student"].items():
        theirs = times["teacher"][batch]
        label = f"milliseconds, batch of {batch}"
        rows.append([label, f"{theirs:.2f}", f"{ours:.2f}", f"{theirs / ours:.2f}x"])
    weights = sum(size for name, size in card["bytes"].items() if name != "program")
    theirs = card["teacher"]["bytes"]
    ratio = f"{theirs / weights:.1f}x"
    rows.append(["bytes of the weights", f"{theirs:,}", f"{weights:,}", ratio])
    rows += [[f"of these: {n}", "", f"{s:,}", ""] for n, s in card["bytes"].items()]
    return [
        Section(
            "Exported",
            f"Weights as {card['values']}, accuracy {100 * card['accuracy']:.2f} %;"
            f" timed on {card['environment']['device']}.",
            rows=rows,
        )
    ]
