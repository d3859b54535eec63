"""The job `report`: one page about a finished run, with nothing left to look up."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from alite_jax.compiled_programs import keep_compiled_programs
from alite_jax.config.run_config import to_json
from alite_jax.counting.comparison import configured_costs
from alite_jax.data.pipeline import in_batches
from alite_jax.data.sources import Data
from alite_jax.deploy.program import forward_of
from alite_jax.errors import CheckpointError
from alite_jax.jax_settings import job
from alite_jax.jobs.command import Command
from alite_jax.models.model import Model
from alite_jax.pages import run_plots
from alite_jax.pages.attention_maps import attention_maps
from alite_jax.pages.class_sections import class_sections
from alite_jax.pages.cost_table import networks_table
from alite_jax.pages.report_page import Section, report_page
from alite_jax.pages.table import (
    COMPARISON_HEAD,
    UNKNOWN,
    card_rows,
    comparison_rows,
    seconds_of,
)
from alite_jax.paths import user_path
from alite_jax.provenance import written_by
from alite_jax.runs.data import load_data
from alite_jax.runs.folder import read_card, read_summary, settled, write_whole
from alite_jax.runs.given import Given
from alite_jax.runs.metrics import read_metrics
from alite_jax.runs.networks import create_networks
from alite_jax.sparsity.mask_matrices import mask_matrices
from alite_jax.training.state import Variables
from alite_jax.trees import named_leaves

FILE = Path("report", "index.html")
_PICTURES = 16  # images to show


def run(command: Command) -> None:
    """Writes the page of the run in the folder and says where it is."""
    keep_compiled_programs()
    print(f"written to {report(command.config(), command.workdir)}")


@job
def report(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    *,
    student: Any = None,
    teacher: Any = None,
) -> Path:
    """Writes `WORKDIR/report/index.html`, a page that carries all its pictures.

    Args:
        config: the run's own.
        workdir: the folder of a finished run; if it was exported, that is in the page.
        student: as for `train`, if it was given there.
        teacher: the same.

    Returns:
        The path of the page.

    Raises:
        CheckpointError: the run is not finished.
        AliteError: with one sentence, for whatever else is wrong.

    Example:
        >>> page = alite_jax.report(config, workdir)
        >>> page.relative_to(workdir).as_posix()
        'report/index.html'
    """
    given = Given(student, teacher)
    folder = user_path(workdir)
    config = settled(given.named(config), folder)
    summary = read_summary(folder)
    if summary is None or "student" not in summary:
        raise CheckpointError(
            f"{folder} holds no finished run, which a report is about; train it first"
        )
    data = load_data(config, folder)
    _, network = create_networks(config, data, folder, given)
    model, variables = network.model, network.restore(data.image_shape)
    records = read_metrics(folder)
    costs = configured_costs(config, data.spec, student, teacher)
    environment = summary.get("environment", {})
    page = report_page(
        f"{summary['student']['name']} on {summary['dataset']}",
        f"Trained by {written_by(environment)}{_machine(environment)}; seed"
        f" {summary['seed']}, {len(data.evaluation):,} evaluation images."
        f" {config.logging.note}".rstrip(),
        _figures(summary),
        [
            _comparison(summary),
            Section(
                "Learning",
                "The teacher, if it was trained in this run, and the student, which is"
                " distilled while it is pruned. The task loss, which both have, is the"
                f" cross-entropy with the labels{_smoothed(config)}.",
                run_plots.draw(run_plots.curves, records),
            ),
            *_layers(records, variables),
            *_attention(model, variables, data),
            *_predictions(model, variables, data, summary),
            Section(
                "Cost of each layer",
                "Parameters, MACs and bytes of one image, masks as the density says.",
                folded=networks_table(*costs, "table"),
            ),
            *_export(read_card(folder)),
            Section("Environment", rows=_environment(environment)),
            Section("Configuration", folded=to_json(config)),
        ],
    )
    write_whole(folder / FILE, page)
    return folder / FILE


def _figures(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What stands at the head of the page, with what it means."""
    figures = [(f"{100 * summary['student']['accuracy']:.2f} %", "accuracy")]
    if summary["teacher"] is None:
        density = 100 * summary["student"]["density"]
        return [*figures, (f"{density:.1f} %", "of the weights")]
    ratios = summary["ratios"]
    return [
        *figures,
        (f"{-summary['accuracy_drop']:+.2f}", "points against its teacher"),
        (f"{ratios['parameters']:.1f}x", "fewer non-zero parameters"),
        (f"{ratios['nonzero_macs']:.1f}x", "fewer non-zero MACs"),
    ]


def _smoothed(config: ConfigDict) -> str:
    """That targets were smoothed, which the curves of both are not alike by."""
    shares = {
        phase: config[phase].optimizer.label_smoothing
        for phase in ("teacher", "student")
    }
    told = [f"{share:g} of the {phase}'s" for phase, share in shares.items() if share]
    return f", smoothed by {' and '.join(told)} targets" if told else ""


def _machine(environment: Mapping[str, Any]) -> str:
    device, version = environment.get("device"), environment.get("jax")
    return f", on {device} with jax {version}" if device else ""


def _environment(environment: Mapping[str, Any]) -> list[list[str]]:
    """All that is known of it, below a head; summaries from before have less."""
    known = {name: text for name, text in environment.items() if text is not None}
    lines = [[name.replace("_", " "), str(text)] for name, text in known.items()]
    return [["", "value"], *lines] if lines else []


def _comparison(summary: Mapping[str, Any]) -> Section:
    teacher, student = summary["teacher"] or UNKNOWN, summary["student"]
    return Section(
        "Teacher and student",
        f"{teacher['name']}, and {student['name']} at density"
        f" {100 * student['density']:.1f} %.",
        rows=[
            COMPARISON_HEAD,
            *comparison_rows(summary),
            *(
                [f"{name}, seconds", "", f"{seconds:,.0f}", ""]
                for name, seconds in seconds_of(summary).items()
            ),
        ],
    )


def _layers(records: run_plots.Records, variables: Variables) -> list[Section]:
    """Densities and masks, for a student that is pruned."""
    shown = mask_matrices(variables["masks"], 8)
    if not shown:
        return []
    return [
        Section(
            "Density of each layer",
            "After each epoch; layers in the order in which they run.",
            run_plots.draw(run_plots.layers_over_time, records),
        ),
        Section(
            "Masks",
            "Inputs downwards, outputs to the right; kept weights are black.",
            run_plots.draw(run_plots.masks, shown),
        ),
    ]


def _attention(model: Model, variables: Variables, data: Data) -> list[Section]:
    """The maps of the first attention layer, for a student that has one."""
    paths = [
        path.removesuffix("/row_embeddings")
        for path, _ in named_leaves(variables["params"])
        if path.endswith("row_embeddings") and "stage" in path
    ]
    if not paths:
        return []
    images = data.evaluation.images[:8]
    maps = attention_maps(model, variables, images, data.spec, paths[0])
    middle = maps[:, maps.shape[1] // 2, maps.shape[2] // 2]
    return [
        Section(
            "Where attention looks",
            f"Weights of {paths[0]} over the window around the middle of each image.",
            run_plots.draw(run_plots.attention, images, middle),
        )
    ]


def _predictions(
    model: Model, variables: Variables, data: Data, summary: Mapping[str, Any]
) -> list[Section]:
    """Correct and wrong predictions of evaluation images, and how many of each."""
    classes = data.spec.class_names
    images, labels = data.evaluation.images, np.asarray(data.evaluation.labels)
    forward = jax.jit(partial(forward_of(model, data.spec), variables))
    probabilities = np.asarray(jax.nn.softmax(in_batches(forward, images)))
    predicted = probabilities.argmax(axis=1)
    correct = np.flatnonzero(predicted == labels)[:_PICTURES]
    wrong = np.flatnonzero(predicted != labels)
    # The mistakes that the network is surest of say most.
    wrong = wrong[np.argsort(-probabilities[wrong].max(axis=1))][:_PICTURES]
    sections = []
    for title, text, chosen in (
        ("Correct predictions", "The first, with the class's probability.", correct),
        ("Wrong predictions", "Those that the network is surest of.", wrong),
    ):
        if len(chosen):
            shown = images[chosen], labels[chosen], probabilities[chosen], classes
            picture = run_plots.draw(run_plots.examples, *shown)
            sections.append(Section(title, text, picture))
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (labels, predicted), 1)
    return [*class_sections(summary, counts, classes), *sections]


def _export(card: Mapping[str, Any] | None) -> list[Section]:
    """What the card says, for a run that was exported."""
    if card is None:
        return []
    parts = [[f"bytes, {n}", "", f"{s:,}", ""] for n, s in card["bytes"].items()]
    return [
        Section(
            "Exported",
            f"Weights as {card['values']}, timed on {card['environment']['device']}.",
            rows=[COMPARISON_HEAD, *card_rows(card), *parts],
        )
    ]
