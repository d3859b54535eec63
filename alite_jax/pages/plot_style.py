"""How plots look.

Colours are those of Okabe and Ito and viridis, which colour-blind readers can tell
apart.
"""

import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from PIL import Image

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#777777"
Point = tuple[float, float, str, str]  # x, y, name and colour
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": "#333333",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.minor.size": 0,
    "figure.facecolor": "white",
    "savefig.dpi": 130,
}


def in_order(names: Iterable[str]) -> list[str]:
    """Returns layers as they run, while leaves come in the order of their names."""

    def rank(name: str, *known: str) -> int:
        # What is not known comes last.
        return next((i for i, k in enumerate(known) if name.startswith(k)), len(known))

    def position(name: str) -> tuple[int, str, int, str]:
        place, _, part = name.partition("/")
        where = rank(place, "stem", "stage", "classifier")
        what = rank(part, "reduce", "spatial", "expand", "shortcut")
        return where, place, what, name

    return sorted(names, key=position)


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of one plot; sizes are in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def png(figure: Figure) -> bytes:
    """The file of a figure."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    # A palette makes it a third as large, and hardly anything is lost.
    image = Image.open(drawn).convert("RGB").quantize(method=Image.Quantize.MAXCOVERAGE)
    image.save(small, format="png", optimize=True)
    return small.getvalue()


def density_map(figure: Figure, axes: Axes, densities: np.ndarray) -> None:
    """Draws densities `[lines, columns]` as colours on a logarithmic scale."""
    # An empty layer has the colour of the smallest density.
    least = max(float(densities.min()), 1e-3)
    image = axes.imshow(
        np.maximum(densities, least),
        norm=LogNorm(vmin=least, vmax=1),
        cmap="viridis",
        aspect="auto",
        interpolation="nearest",
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=40, label="density")
    bar.ax.yaxis.set_major_formatter("{x:g}")
    bar.outline.set_visible(False)


def teacher_line(axes: Axes, accuracy: float, name: str) -> None:
    """Draws a dashed line at a teacher's accuracy."""
    axes.axhline(accuracy, color=GREY, linestyle="--", linewidth=1, zorder=0)
    place = axes.get_yaxis_transform()
    axes.text(0.005, accuracy, name, transform=place, color=GREY, va="bottom")


def log_axis(axes: Axes, values: Iterable[float], label: str) -> None:
    """Makes the x axis logarithmic, with ticks at the values that leave them room."""
    ticks: list[float] = []
    for value in sorted({float(f"{value:.2g}") for value in values}):
        if not ticks or value > 1.15 * ticks[-1]:
            ticks.append(value)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel(label)


def label_right(figure: Figure, axes: Axes, points: Iterable[Point]) -> None:
    """Names points in a column on the right, each joined to its point by a line."""
    low, high = axes.get_ylim()
    gap = (high - low) * 11 / (72 * figure.get_figheight() * 0.8)
    points = sorted(points, key=lambda point: point[1])
    heights = space_out([y for _, y, *_ in points], gap, low, high)
    for (x, y, name, colour), height in zip(points, heights, strict=True):
        axes.annotate(
            name,
            (x, y),
            xytext=(1.03, height),
            textcoords=axes.get_yaxis_transform(),
            color=colour,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "alpha": 0.5},
        )


def space_out(
    positions: Sequence[float], gap: float, low: float, high: float
) -> list[float]:
    """Moves ascending positions apart, as little as a pass up and a pass down do.

    They end at least `gap` apart and up to `high`; and from `low` on if there is room.
    """
    moved: list[float] = []
    for position in positions:
        moved.append(max(position, moved[-1] + gap if moved else low))
    limit = high
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - gap
    return moved
