"""What the students of a study are as files: their sizes and their measured speed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from alite_jax.analysis.plot_style import GREY, label_right
from alite_jax.analysis.study_rows import RowResult, looks, mean

_WITHIN = 1.0  # points below the teacher that count as no loss
_TICKS = [base * 10**power for power in range(-3, 6) for base in (1, 1.5, 2, 3, 5, 7)]


@dataclass(frozen=True)
class RowExport:
    """The exported students of a row, each number the mean over their seeds.

    Attributes:
        row: its results.
        seeds: those that were exported.
        accuracy: of the packed students, in percent.
        teacher_accuracy: of their teachers, in percent.
        bytes: of the packed weights.
        teacher_bytes: of the teachers' float32 weights.
        macs: after compaction.
        milliseconds: by batch, as the cards name it.
        teacher_milliseconds: the same of the teachers, timed beside them.
    """

    row: RowResult
    seeds: list[int]
    accuracy: float
    teacher_accuracy: float
    bytes: float
    teacher_bytes: float
    macs: float
    milliseconds: dict[str, float]
    teacher_milliseconds: dict[str, float]

    @property
    def drop(self) -> float:
        """Points that the students lie below their teachers."""
        return self.teacher_accuracy - self.accuracy


def row_exports(rows: Sequence[RowResult]) -> list[RowExport]:
    """Returns what was exported, without the rows of which nothing was."""
    return [_row_export(row) for row in rows if row.exports]


def _row_export(row: RowResult) -> RowExport:
    cards = row.exports

    def average(number: Callable[[dict[str, Any]], float]) -> float:
        return mean([number(card) for card in cards])

    def times(phase: str) -> dict[str, float]:
        each = [card["milliseconds"][phase] for card in cards]
        return {batch: mean([found[batch] for found in each]) for batch in each[0]}

    return RowExport(
        row=row,
        seeds=[r["summary"]["seed"] for r in row.records if "export" in r],
        accuracy=100 * average(lambda card: card["accuracy"]),
        teacher_accuracy=100 * average(lambda card: card["teacher"]["accuracy"]),
        bytes=average(lambda card: sum(card["bytes"].values()))
        - average(lambda card: card["bytes"]["program"]),
        teacher_bytes=average(lambda card: card["teacher"]["bytes"]),
        macs=average(lambda card: card["macs"]),
        milliseconds=times("student"),
        teacher_milliseconds=times("teacher"),
    )


def export_table(exports: Sequence[RowExport]) -> list[list[str]]:
    """Returns head and cells, a line for each row; [] if there is none."""
    if not exports:
        return []
    head = ["row", "seeds", "accuracy", "points below its teacher"]
    head += ["bytes of the weights", "teacher's float32 / row", "MACs"]
    for batch in exports[0].milliseconds:
        head += [f"ms, batch of {batch}", "teacher / row"]
    lines = [head]
    for found in exports:
        line = [
            found.row.name,
            ", ".join(map(str, found.seeds)),
            f"{found.accuracy:.2f} %",
            f"{found.drop:.2f}",
            f"{found.bytes:,.0f}",
            f"{found.teacher_bytes / found.bytes:.1f}x",
            f"{found.macs / 1e6:.3g} M",
        ]
        for batch, ours in found.milliseconds.items():
            line += [f"{ours:.2f}", f"{found.teacher_milliseconds[batch] / ours:.2f}x"]
        lines.append(line)
    return lines


def best(exports: Sequence[RowExport], batch: str) -> RowExport | None:
    """Returns the fastest within a point of its teacher, if one is."""
    near = [found for found in exports if found.drop <= _WITHIN]
    return min(near, key=lambda found: found.milliseconds[batch], default=None)


def front(exports: Sequence[RowExport], batch: str) -> list[RowExport]:
    """Returns those than which none is both faster and more accurate, by time."""
    kept: list[RowExport] = []
    for found in sorted(exports, key=lambda e: (e.milliseconds[batch], -e.accuracy)):
        if not kept or found.accuracy > kept[-1].accuracy:
            kept.append(found)
    return kept


def accuracy_by_milliseconds(rows: Sequence[RowResult]) -> Figure | None:
    """Accuracy against the time of the exported networks, a panel for each batch."""
    exports = row_exports(rows)
    if not exports:
        return None
    batches = list(exports[0].milliseconds)
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    for panel, batch in zip(panels, batches, strict=True):
        ends = _panel(panel, exports, batch)
    panels[0].set_ylabel("accuracy, %")
    label_right(figure, panels[-1], ends)
    return figure


def _panel(axes: Axes, exports: Sequence[RowExport], batch: str) -> list[Any]:
    """Draws one batch; returns the points as `label_right` wants them."""

    def point(found: RowExport) -> tuple[float, float]:
        return found.milliseconds[batch], found.accuracy

    ends = []
    styles = looks([found.row for found in exports])
    for found, (colour, _, marker) in zip(exports, styles, strict=True):
        axes.plot(*point(found), marker, color=colour, markersize=5, zorder=3)
        ends.append((*point(found), found.row.name, colour))
    line = [point(found) for found in front(exports, batch)]
    axes.plot(*zip(*line, strict=True), color=GREY, linewidth=0.8, zorder=1)
    if (ringed := best(exports, batch)) is not None:
        axes.plot(*point(ringed), "o", color="black", fillstyle="none", markersize=11)
    teacher = (
        mean([found.teacher_milliseconds[batch] for found in exports]),
        mean([found.teacher_accuracy for found in exports]),
    )
    axes.plot(*teacher, "D", color=GREY, markersize=5)
    axes.axhline(teacher[1], color=GREY, linestyle="--", linewidth=1, zorder=0)
    axes.annotate(
        "teacher",
        teacher,
        xytext=(0, -13),
        textcoords="offset points",
        ha="center",
        color=GREY,
    )
    times = [x for x, *_ in ends] + [teacher[0]]
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(0.85 * min(times), 1.2 * max(times))
    axes.set_xticks([t for t in _TICKS if 0.85 * min(times) <= t <= 1.2 * max(times)])
    axes.set_xlabel(f"milliseconds for a batch of {batch}")
    return ends
