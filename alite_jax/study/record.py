"""The result of one run, small enough to publish: JSON made from the run's folder."""

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alite_jax.config import describe_difference
from alite_jax.config.run_config import OTHER_RUNS, PLACES, from_json
from alite_jax.errors import ConfigError
from alite_jax.runs.folder import FREE_FIELDS, read_card, read_summary, write_whole
from alite_jax.runs.metrics import read_metrics
from alite_jax.runs.processes import by_first
from alite_jax.study.runs import Run

# Fields that name places of a machine, of no use on another one.
_FOLDERS = (*PLACES, *OTHER_RUNS)
_CURVES = ("loss", "task_loss", "distillation_loss", "accuracy")
_EVALUATIONS = ("eval_loss", "eval_accuracy")
_LAYER = "density/"


@by_first
def make_record(run: Run) -> dict[str, Any]:
    """Reads the result of a finished run.

    Returns:
        `row`; `date`, on which the run ended; `summary`, without folders; `curves`: by
        phase and metric, one number an epoch, the mean over its steps for what is
        measured in training and `density` at its end; `layers`: by layer, its density
        at the end of each epoch, after the masks have changed; `export`: the card of
        what was exported, only where that was done.

    Raises:
        CheckpointError: the summary or the card is damaged.
        TrainingError: the record of the training is damaged.
    """
    summary = read_summary(run.folder)
    if summary is None:
        raise ConfigError(f"{run.folder} holds no finished run; train it first")
    for name in _FOLDERS:
        section, field = name.split(".")
        summary["config"][section][field] = ""
    # It has folders, too; the study's page has a command for each row.
    summary.get("environment", {}).pop("command", None)
    lines = read_metrics(run.folder)
    phases = {line["phase"]: None for line in lines}
    card = read_card(run.folder)
    if card is not None:
        card.get("environment", {}).pop("command", None)
    return {
        "row": run.name,
        "date": time.strftime("%Y-%m-%d", time.gmtime(lines[-1]["time"])),
        "summary": summary,
        "curves": {
            phase: _curves([line for line in lines if line["phase"] == phase])
            for phase in phases
        },
        "layers": _layers(lines),
        **({} if card is None else {"export": card}),
    }


def _curves(lines: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    curves: dict[str, list[float]] = {}
    sums, previous, epoch_start = dict.fromkeys(_CURVES, 0.0), 0, 0
    for line in lines:
        step = line["step"]
        if "loss" in line:
            # A line is the mean over the steps since the one before.
            for name in _CURVES:
                sums[name] += line[name] * (step - previous)
            previous, density = step, line["density"]
        elif "eval_accuracy" in line:
            ended = {name: sums[name] / (step - epoch_start) for name in _CURVES}
            ended |= {name: line[name] for name in _EVALUATIONS}
            ended["density"] = density
            for name, value in ended.items():
                curves.setdefault(name, []).append(round(value, 5))
            sums, epoch_start = dict.fromkeys(_CURVES, 0.0), step
    return curves


def _layers(lines: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    layers: dict[str, list[float]] = {}
    for line in lines:
        for name, value in line.items():
            if name.startswith(_LAYER):
                layer = name.removeprefix(_LAYER)
                layers.setdefault(layer, []).append(round(value, 5))
    return layers


def record_file(results: Path, run: Run) -> Path:
    """Where the record of a run is: `results/ROW/seedN.json`."""
    return results / run.name / f"seed{run.seed}.json"


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes a record as JSON, a list to a line.

    Raises:
        CheckpointError: it cannot be written.
    """
    text = json.dumps(record, indent=2)
    lists = re.sub(r"\[[^][{}]*\]", lambda match: " ".join(match[0].split()), text)
    write_whole(path, lists + "\n")


def read_record(path: Path, run: Run) -> dict[str, Any]:
    """Reads a record and checks that it is of this run as it is declared now.

    Raises:
        ConfigError: the file is damaged, or was made with other settings.
    """
    cure = (
        f"delete it and run row {run.name!r} again, which makes it anew, or take it"
        " from where you have a copy"
    )
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        before = from_json(json.dumps(record["summary"]["config"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no record of a run ({error!r}); {cure}"
        ) from error
    changed = [
        f"{name} (was {old!r}, is {new!r})"
        for name, (old, new) in describe_difference(run.config, before).items()
        if not name.startswith((*_FOLDERS, *FREE_FIELDS))
        # The study leaves it to the machine, the record says what that took.
        and not (name == "compute.dtype" and new == "auto")
    ]
    if changed:
        raise ConfigError(
            f"{path} was made with another configuration: {', '.join(changed)}; {cure}"
        )
    return record
