"""The plots of a study, drawn from its records alone.

Labels stand beside what they name.
"""

from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alite_jax.analysis.plot_style import (
    GREY,
    STYLE,
    in_order,
    label_right,
    new_figure,
    png,
)
from alite_jax.analysis.study_exports import accuracy_by_milliseconds
from alite_jax.analysis.study_rows import RowResult, looks, mean

Rows = Sequence[RowResult]


def accuracy_by_density(rows: Rows) -> Figure | None:
    """Accuracy against the density of the student; one recipe's densities joined."""
    return _accuracy_by(rows, "density", "density of the student", 1.0)


def accuracy_by_macs(rows: Rows) -> Figure | None:
    """Accuracy against non-zero MACs; one recipe's densities joined."""
    return _accuracy_by(rows, "nonzero_macs", "non-zero MACs an image, millions", 1e-6)


def learning_curves(rows: Rows) -> Figure | None:
    """Evaluation accuracy after each epoch, the mean over the seeds."""
    rows = [row for row in rows if row.curves("eval_accuracy")]
    if not rows:
        return None
    figure, axes = new_figure(7.5, 4.6)
    by_name = {row.name: row for row in rows}
    ends = []
    for row, (colour, line, _) in zip(rows, looks(rows), strict=True):
        curves = 100 * np.array(row.curves("eval_accuracy"))
        # What starts from another row goes on where that one ends.
        before = by_name[row.start].epochs if row.start in by_name else 0
        epochs = before + np.arange(1, curves.shape[1] + 1)
        axes.plot(epochs, curves.mean(axis=0), color=colour, linestyle=line)
        if len(curves) > 1:
            low, high = curves.min(axis=0), curves.max(axis=0)
            axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
        ends.append((epochs[-1], curves.mean(axis=0)[-1], row.name, colour))
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    label_right(figure, axes, ends)
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
    # An empty layer has the colour of the smallest density.
    least = max(kept.min(), 1e-3)
    norm = LogNorm(vmin=least, vmax=1)
    image = axes.imshow(
        np.maximum(kept, least), norm=norm, cmap="viridis", aspect="auto"
    )
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6.5)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, pad=0.01)
    bar.set_label("density")
    bar.ax.yaxis.set_major_formatter("{x:g}")
    bar.outline.set_visible(False)
    return figure


_PLOTS: dict[str, tuple[Callable[[Rows], Figure | None], str]] = {
    "accuracy_by_density": (accuracy_by_density, "Accuracy against density"),
    "accuracy_by_macs": (accuracy_by_macs, "Accuracy against non-zero MACs"),
    "accuracy_by_milliseconds": (
        accuracy_by_milliseconds,
        "Accuracy against milliseconds of the exported networks. Ringed: the fastest"
        " within a point of its teacher; joined: those that none beats in both",
    ),
    "learning_curves": (learning_curves, "Learning curves"),
    "layers_over_time": (layers_over_time, "Density of each layer during training"),
    "layers_at_the_end": (layers_at_the_end, "What each layer kept"),
}


@matplotlib.rc_context(STYLE)
def study_plots(rows: Rows) -> dict[str, tuple[str, bytes]]:
    """Draws every plot for which the rows have something to show.

    Args:
        rows: of a study, each with at least one record.

    Returns:
        Caption and PNG by file name; the same rows give the same bytes.
    """
    figures = {name: draw(rows) for name, (draw, _) in _PLOTS.items()}
    return {
        f"{name}.png": (_PLOTS[name][1], png(figure))
        for name, figure in figures.items()
        if figure is not None
    }


def _accuracy_by(rows: Rows, field: str, label: str, unit: float) -> Figure | None:
    students = [row for row in rows if row.phase == "student"]
    if not students:
        return None
    figure, axes = new_figure(7.5, 4.2)
    ends = []
    for row, (colour, _, marker) in zip(students, looks(students), strict=True):
        x = unit * mean(row.values(field))
        accuracies = [100 * value for value in row.values("accuracy")]
        axes.plot(x, mean(accuracies), marker, color=colour, markersize=5, zorder=3)
        axes.plot([x, x], [min(accuracies), max(accuracies)], color=colour, zorder=2)
        ends.append((x, mean(accuracies), row.name, colour))
    for recipe in {row.recipe: None for row in students}:
        alike = sorted(
            (unit * mean(row.values(field)), 100 * mean(row.values("accuracy")))
            for row in students
            if row.recipe == recipe
        )
        axes.plot(*zip(*alike, strict=True), color=GREY, linewidth=0.8, zorder=1)
    for row in rows:
        if row.phase == "teacher":
            level = 100 * mean(row.values("accuracy"))
            axes.axhline(level, color=GREY, linestyle="--", linewidth=1)
            axes.annotate(
                row.name,
                (0, level),
                xycoords=axes.get_yaxis_transform(),
                xytext=(2, 3),
                textcoords="offset points",
                color=GREY,
            )
    axes.set_xscale("log")
    ticks = sorted({float(f"{end[0]:.2g}") for end in ends})
    axes.minorticks_off()
    axes.set_xticks(_apart(ticks), [f"{tick:g}" for tick in _apart(ticks)])
    axes.set_xlabel(label)
    axes.set_ylabel("accuracy, %")
    label_right(figure, axes, ends)
    return figure


def _apart(ticks: Sequence[float]) -> list[float]:
    """The ticks of a logarithmic axis that leave one another room."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or tick > 1.15 * kept[-1]:
            kept.append(tick)
    return kept
