"""The plots of a study, drawn from its records alone.

Labels stand beside what they name.
"""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alite_jax.pages.plot_style import (
    GREY,
    STYLE,
    Point,
    density_map,
    height_for,
    in_order,
    list_right,
    log_axis,
    new_figure,
    png,
    teacher_line,
    with_front,
)
from alite_jax.pages.study_exports import accuracy_by_milliseconds
from alite_jax.pages.study_rows import RowResult, line_styles

Rows = Sequence[RowResult]


def accuracy_by(field: str, label: str, unit: float, rows: Rows) -> Figure | None:
    """Accuracy against a field of the student, and those that none beats in both."""
    students = [row for row in rows if row.phase == "student"]
    if not students:
        return None
    figure, axes = new_figure(9, height_for(len(students)))
    ends: list[Point] = []
    recipes: dict[str, list[tuple[float, float]]] = {}
    for row, (colour, _, marker) in zip(students, line_styles(students), strict=True):
        accuracies = [100 * value for value in row.values("accuracy")]
        x, y = unit * fmean(row.values(field)), fmean(accuracies)
        axes.plot(x, y, marker, color=colour, markersize=5, zorder=3)
        axes.plot([x, x], [min(accuracies), max(accuracies)], color=colour, zorder=2)
        ends.append(Point(x, y, row.name, colour, marker))
        recipes.setdefault(row.recipe, []).append((x, y))
    for points in recipes.values():
        x_and_y = zip(*sorted(points), strict=True)
        axes.plot(*x_and_y, ":", color=GREY, linewidth=0.8, zorder=1)
    ends = with_front(ends)
    front = sorted((point.x, point.y) for point in ends if point.front)
    axes.plot(*zip(*front, strict=True), color=GREY, linewidth=1.6, zorder=1)
    for row in rows:
        if row.phase == "teacher":
            teacher_line(axes, 100 * fmean(row.values("accuracy")), row.name)
    log_axis(axes, [point.x for point in ends], label)
    axes.set_ylabel("accuracy, %")
    list_right(figure, axes, ends)
    return figure


def learning_curves(rows: Rows) -> Figure | None:
    """Evaluation accuracy after each epoch, the mean over the seeds."""
    rows = [row for row in rows if row.curves("eval_accuracy")]
    if not rows:
        return None
    figure, axes = new_figure(9, height_for(len(rows)))
    by_name = {row.name: row for row in rows}
    ends = []
    for row, (colour, line, _) in zip(rows, line_styles(rows), strict=True):
        curves = 100 * np.array(row.curves("eval_accuracy"))
        # What starts from another row goes on where that one ends.
        before = by_name[row.start].epochs if row.start in by_name else 0
        epochs = before + np.arange(1, curves.shape[1] + 1)
        axes.plot(epochs, curves.mean(axis=0), color=colour, linestyle=line)
        if len(curves) > 1:
            low, high = curves.min(axis=0), curves.max(axis=0)
            axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
        end = float(curves.mean(axis=0)[-1])
        ends.append(Point(float(epochs[-1]), end, row.name, colour, line=line))
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    list_right(figure, axes, ends)
    return figure


def layers_over_time(rows: Rows) -> Figure | None:
    """Density of each layer after each epoch, a panel for each row that prunes."""
    rows = [row for row in rows if row.layers]
    if not rows:
        return None
    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(9, 0.5 + 2.1 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for panel, row in zip(panels.flat, rows, strict=False):
        shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.95, len(row.layers)))
        for name, shade in zip(in_order(row.layers), shades, strict=True):
            densities = row.layers[name]
            epochs = range(1, len(densities) + 1)
            panel.plot(epochs, densities, color=shade, linewidth=0.9)
        panel.set_title(row.name, loc="left", fontsize=9)
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for panel in panels.flat[len(rows) :]:
        panel.set_visible(False)
    for panel in panels[:, 0]:
        panel.set_ylabel("density")
    for panel in panels.flat[max(0, len(rows) - columns) : len(rows)]:
        panel.set_xlabel("epoch")
    scale = matplotlib.cm.ScalarMappable(cmap="viridis")
    bar = figure.colorbar(scale, ax=panels, aspect=40, pad=0.01, ticks=[0, 1])
    bar.set_ticklabels(["first\nlayer", "last\nlayer"])
    bar.outline.set_visible(False)
    return figure


def layers_at_the_end(rows: Rows) -> Figure | None:
    """The fraction that each layer kept at the end, a line for each row that prunes."""
    rows = [row for row in rows if row.layers]
    if not rows:
        return None
    names = in_order(rows[0].layers)
    rows = [row for row in rows if set(row.layers) == set(names)]
    kept = np.array([[row.layers[name][-1] for name in names] for row in rows])
    figure, axes = new_figure(9.5, 2.4 + 0.24 * len(rows))
    density_map(figure, axes, kept)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6.5)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    return figure


_HOW_TO_READ = (
    "Numbered by accuracy; joined and bold: those that none beats in both; dotted: the"
    " same row at other densities"
)
_PLOTS: dict[str, tuple[Callable[[Rows], Figure | None], str]] = {
    "accuracy_by_density": (
        partial(accuracy_by, "density", "density of the student", 1.0),
        "Accuracy against density. " + _HOW_TO_READ,
    ),
    "accuracy_by_macs": (
        partial(accuracy_by, "nonzero_macs", "non-zero MACs an image, millions", 1e-6),
        "Accuracy against non-zero MACs. " + _HOW_TO_READ,
    ),
    "accuracy_by_milliseconds": (
        accuracy_by_milliseconds,
        "Accuracy against milliseconds of the exported networks. Ringed: the fastest"
        " within a point of its teacher; joined and bold: those that none beats in"
        " both (in the last panel)",
    ),
    "learning_curves": (
        learning_curves,
        "Learning curves, numbered by the accuracy at their ends",
    ),
    "layers_over_time": (layers_over_time, "Density of each layer during training"),
    "layers_at_the_end": (layers_at_the_end, "What each layer kept"),
}


@matplotlib.rc_context(STYLE)
def study_plots(rows: Rows) -> dict[str, tuple[str, bytes]]:
    """Caption and PNG by file name of every plot for which the rows have something.

    The same rows give the same bytes.
    """
    return {
        f"{name}.png": (caption, png(figure))
        for name, (draw, caption) in _PLOTS.items()
        if (figure := draw(rows)) is not None
    }
