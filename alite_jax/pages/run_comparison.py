"""Several runs beside each other: a table, what differs in them, and their curves."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from alite_jax.pages.plot_style import COLOURS, marker
from alite_jax.pages.report_page import Section, report_page
from alite_jax.pages.run_plots import draw

HEAD = [
    *("run", "data set", "student", "density", "accuracy", "teacher's accuracy"),
    *("non-zero parameters", "MACs", "non-zero MACs", "seconds", "state"),
]
_LINES = ("-", ":", "-.", (0, (6, 2)), (0, (1, 3)))


class ComparedRun(NamedTuple):
    """What is known of a run, be it finished or not.

    Attributes:
        name: by which it is told from the others.
        config: every field by its dotted name.
        summary: the content of `summary.json`, {} where there is none yet.
        records: the lines of `metrics.jsonl`.
        trains_teacher: whether it has a teacher that it trains itself.
    """

    name: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    trains_teacher: bool = True


def comparison(runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """A row for each run, None at what is not known of it.

    Accuracies are fractions; those of a run that is not finished are from its last
    evaluation.
    """
    return [_row(run) for run in runs]


def _row(run: ComparedRun) -> dict[str, Any]:
    teacher, student = (run.summary.get(n) or {} for n in ("teacher", "student"))
    evaluated = {r["phase"]: r for r in run.records if "eval_accuracy" in r}
    last = {phase: line["eval_accuracy"] for phase, line in evaluated.items()}
    seconds = run.summary.get("seconds", {})
    return {
        "run": run.name,
        "dataset": run.summary.get("dataset", run.config["data.name"]),
        "student": student.get("name", run.config["student.model"]),
        "density": student.get("density", run.config["student.density"]),
        "accuracy": student.get("accuracy", last.get("student")),
        "teacher_accuracy": teacher.get("accuracy", last.get("teacher")),
        "nonzero_parameters": student.get("nonzero_parameters"),
        "macs": student.get("macs"),
        "nonzero_macs": student.get("nonzero_macs"),
        "seconds": seconds.get("student_training"),
        "state": _state(run, evaluated),
    }


def _state(run: ComparedRun, evaluated: Mapping[str, Any]) -> str:
    if run.summary.get("student"):
        return "finished"
    begun = "student" in evaluated or not run.trains_teacher
    phase = "student" if begun else "teacher"
    done = len(_curve(run, phase, "eval_accuracy")[0])
    return f"{phase}, epoch {done} of {run.config[f'{phase}.epochs']}"


def table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The rows of `comparison` as text, below `HEAD`."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f} %"

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:,.0f}"

    cells = []
    for row in rows:
        counts = ("nonzero_parameters", "macs", "nonzero_macs", "seconds")
        line = [row["run"], row["dataset"], row["student"]]
        line += map(percent, (row["density"], row["accuracy"], row["teacher_accuracy"]))
        cells.append([*line, *(number(row[name]) for name in counts), row["state"]])
    return [HEAD, *cells]


def differences(runs: Sequence[ComparedRun]) -> list[list[str]]:
    """The fields that are not the same in all runs, a line each; [] without any."""
    fields = [
        field
        for field in sorted({field for run in runs for field in run.config})
        if len({repr(run.config.get(field)) for run in runs}) > 1
    ]
    lines = [[f, *(str(run.config.get(f)) or "''" for run in runs)] for f in fields]
    return [["field", *(run.name for run in runs)], *lines] if lines else []


def curves(runs: Sequence[ComparedRun]) -> Figure:
    """Task loss in training and accuracy of all runs; thin lines are teachers."""
    height = 3.4 + 0.19 * len(runs)
    figure = Figure(figsize=(9, height), layout="constrained")
    panels = figure.subplots(1, 2)
    handles = []
    for place, run in enumerate(runs):
        colour = COLOURS[place % len(COLOURS)]
        line = _LINES[place // len(COLOURS) % len(_LINES)]
        style: Any = {"color": colour, "linestyle": line}
        for phase, width in (("teacher", 0.6), ("student", 1.5)):
            for panel, name, scale in zip(
                panels, ("task_loss", "eval_accuracy"), (1, 100), strict=True
            ):
                epochs, values = _curve(run, phase, name)
                own = style | {"linewidth": width, "marker": marker(epochs)}
                panel.plot(epochs, scale * values, **own)
        handles.append(Line2D([], [], label=run.name.replace("$", r"\$"), **style))
    for panel, label in zip(
        panels,
        ("task loss in training, nats", "accuracy on the evaluation images, %"),
        strict=True,
    ):
        panel.set_xlabel("epoch")
        panel.set_title(label, loc="left", fontsize=9)
    figure.legend(handles=handles, loc="outside lower left", frameon=False)
    return figure


def _curve(run: ComparedRun, phase: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and values; none before the first has ended, whose steps count them."""
    lines = [line for line in run.records if line["phase"] == phase]
    ends = [line["step"] for line in lines if "eval_accuracy" in line]
    if not ends:
        return np.empty(0), np.empty(0)
    found = [line for line in lines if name in line]
    values = [np.nan if line[name] is None else line[name] for line in found]
    return np.array([line["step"] for line in found]) / ends[0], np.array(values)


def comparison_page(runs: Sequence[ComparedRun]) -> str:
    """The page, as that of a run looks."""
    rows = comparison(runs)
    text = "Accuracies of a run that is not finished are from its last evaluation."
    if len({row["dataset"] for row in rows}) > 1:
        text += " The runs are of different data sets, whose accuracies do not compare."
    differ = differences(runs)
    return report_page(
        f"{len(runs)} runs compared" if len(runs) > 1 else runs[0].name,
        text,
        [],
        [
            Section("Results", rows=table(rows)),
            Section(
                "What differs in their configurations",
                "" if differ else "Nothing but what has no part in a result.",
                rows=differ,
            ),
            Section(
                "Learning",
                "Students, and in thin lines the teachers that were trained in these"
                " runs.",
                draw(curves, runs),
            ),
        ],
    )
