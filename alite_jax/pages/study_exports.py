"""What the students of a study are as files: their sizes and their measured speed."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alite_jax.pages.plot_style import (
    GREY,
    Point,
    height_for,
    list_right,
    log_axis,
    number_points,
    teacher_line,
    with_front,
)
from alite_jax.pages.study_rows import RowResult, line_styles
from alite_jax.pages.table import weight_bytes

_WITHIN = 1.0  # points below the teacher that count as no loss


class Exported(NamedTuple):
    """What an exported network measures.

    Attributes:
        accuracy: in percent.
        bytes: of the packed weights, or of the teacher's float32 weights.
        milliseconds: by batch, as the card names it.
    """

    accuracy: float
    bytes: float
    milliseconds: dict[str, float]


class RowExport(NamedTuple):
    """The exported students of a row, each number the mean over their seeds.

    Attributes:
        row: its results.
        student: after compaction and packing.
        teacher: exported and timed beside it.
        macs: of the student.
    """

    row: RowResult
    student: Exported
    teacher: Exported
    macs: float


def row_exports(rows: Sequence[RowResult]) -> list[RowExport]:
    """Returns what was exported, without the rows of which nothing was."""
    return [_row_export(row) for row in rows if row.exports]


def _row_export(row: RowResult) -> RowExport:
    cards = row.exports
    teachers = [card["teacher"] for card in cards]

    def averages(phase: str, networks: Sequence[Any], sizes: Sequence[int]) -> Exported:
        times = [card["milliseconds"][phase] for card in cards]
        return Exported(
            100 * fmean(network["accuracy"] for network in networks),
            fmean(sizes),
            {batch: fmean(each[batch] for each in times) for batch in times[0]},
        )

    return RowExport(
        row,
        averages("student", cards, [weight_bytes(card) for card in cards]),
        averages("teacher", teachers, [teacher["bytes"] for teacher in teachers]),
        fmean(card["macs"] for card in cards),
    )


def export_table(exports: Sequence[RowExport]) -> list[list[str]]:
    """Returns head and cells, a line for each row; [] if there is none."""
    if not exports:
        return []
    head = ["row", "seeds", "accuracy", "points below its teacher"]
    head += ["bytes of the weights", "teacher's float32 / row", "MACs"]
    for batch in exports[0].student.milliseconds:
        head += [f"ms, batch of {batch}", "teacher / row"]
    lines = [head]
    for row, student, teacher, macs in exports:
        seeds = [r["summary"]["seed"] for r in row.records if "export" in r]
        line = [
            row.name,
            ", ".join(map(str, seeds)),
            f"{student.accuracy:.2f} %",
            f"{teacher.accuracy - student.accuracy:.2f}",
            f"{student.bytes:,.0f}",
            f"{teacher.bytes / student.bytes:.1f}x",
            f"{macs / 1e6:.3g} M",
        ]
        for batch, ours in student.milliseconds.items():
            line += [f"{ours:.2f}", f"{teacher.milliseconds[batch] / ours:.2f}x"]
        lines.append(line)
    return lines


def runtime_table(rows: Sequence[RowResult]) -> list[list[str]]:
    """Returns head and cells, a line for each program of each row; [] without any.

    JAX's has a line only beside another runtime's.
    """
    lines = []
    for row in rows:
        cards = [card for card in row.exports if _programs(card)]
        for name in _programs(cards[0]) if cards else ():
            lines.append([row.name, name, *_runtime_cells(name, cards)])
    if not lines:
        return []
    head = ["row", "runs as", "MACs", "teacher / row", "accuracy", "teacher's"]
    head += ["bytes", "teacher / row"]
    for batch in ("1", "64"):
        head += [f"ms, batch of {batch}", "teacher / row"]
    return [head, *lines]


def _programs(card: Mapping[str, Any]) -> list[str]:
    """The formats of a card that are timed programs, after JAX's if there are any."""
    timed = [
        name
        for name, found in card.get("formats", {}).items()
        if "milliseconds" in found
    ]
    return ["jax", *timed] if timed else []


def _runtime_cells(name: str, cards: Sequence[Mapping[str, Any]]) -> list[str]:
    """Means over the seeds of a row."""
    teacher = fmean(card["teacher"]["macs"] for card in cards)
    macs = fmean(card["macs"] for card in cards)
    found = [
        _as_format(card) if name == "jax" else card["formats"][name] for card in cards
    ]
    cells = [f"{macs / 1e6:.3g} M", f"{teacher / macs:.2f}x"]
    cells.append(f"{100 * fmean(each['accuracy'] for each in found):.2f} %")
    theirs = fmean(card["teacher"]["accuracy"] for card in cards)
    cells.append(f"{100 * theirs:.2f} %")
    ours = fmean(each["bytes"] for each in found)
    theirs = fmean(each["teacher_bytes"] for each in found)
    cells += [f"{ours:,.0f}", f"{theirs / ours:.2f}x"]
    for batch in ("1", "64"):
        times = [each["milliseconds"] for each in found]
        if not all(batch in time["student"] for time in times):
            cells += ["", ""]
            continue
        ours = fmean(time["student"][batch] for time in times)
        theirs = fmean(time["teacher"][batch] for time in times)
        cells += [f"{ours:.2f}", f"{theirs / ours:.2f}x"]
    return cells


def _as_format(card: Mapping[str, Any]) -> dict[str, Any]:
    """JAX's files as the card has those of the other formats."""
    teacher = card["teacher"]
    return {
        "accuracy": card["accuracy"],
        "bytes": sum(card["bytes"].values()),
        "teacher_bytes": teacher["bytes"] + teacher["program_bytes"],
        "milliseconds": card["milliseconds"],
    }


def best(exports: Sequence[RowExport], batch: str) -> RowExport | None:
    """Returns the fastest within a point of its teacher, if one is."""
    near = [e for e in exports if e.teacher.accuracy - e.student.accuracy <= _WITHIN]
    return min(near, key=lambda e: e.student.milliseconds[batch], default=None)


def front(exports: Sequence[RowExport], batch: str) -> list[RowExport]:
    """Returns those than which none is both faster and more accurate, by time."""
    kept: list[RowExport] = []
    for export in sorted(
        exports, key=lambda e: (e.student.milliseconds[batch], -e.student.accuracy)
    ):
        if not kept or export.student.accuracy > kept[-1].student.accuracy:
            kept.append(export)
    return kept


def accuracy_by_milliseconds(rows: Sequence[RowResult]) -> Figure | None:
    """Accuracy against the time of the exported networks, a panel for each batch."""
    exports = row_exports(rows)
    if not exports:
        return None
    batches = list(exports[0].student.milliseconds)
    figure = Figure(figsize=(11, height_for(len(exports))), layout="constrained")
    panels = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    drawn = [
        _panel(panel, exports, batch)
        for panel, batch in zip(panels, batches, strict=True)
    ]
    panels[0].set_ylabel("accuracy, %")
    # A row has the same accuracy, and so the same number, in each of them.
    for panel, points in zip(panels[:-1], drawn[:-1], strict=True):
        number_points(figure, panel, sorted(points, key=lambda point: -point.y))
    list_right(figure, panels[-1], drawn[-1])
    return figure


def _panel(axes: Axes, exports: Sequence[RowExport], batch: str) -> list[Point]:
    """Draws one batch; returns the points of the students."""

    def place(network: Exported) -> tuple[float, float]:
        return network.milliseconds[batch], network.accuracy

    line = [place(export.student) for export in front(exports, batch)]
    axes.plot(*zip(*line, strict=True), color=GREY, linewidth=0.8, zorder=1)
    points = []
    styles = line_styles([export.row for export in exports])
    for export, (colour, _, marker) in zip(exports, styles, strict=True):
        x, y = place(export.student)
        axes.plot(x, y, marker, color=colour, markersize=5, zorder=3)
        points.append(Point(x, y, export.row.name, colour, marker))
    if (ringed := best(exports, batch)) is not None:
        x, y = place(ringed.student)
        axes.plot(x, y, "o", color="black", fillstyle="none", markersize=11)
    x, y = np.mean([place(export.teacher) for export in exports], axis=0)
    axes.plot(x, y, "D", color=GREY, markersize=5)
    teacher_line(axes, y, "teacher")
    times = [x, *(point.x for point in points)]
    log_axis(axes, times, f"milliseconds for a batch of {batch}")
    return with_front(points)
