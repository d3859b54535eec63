"""How plots look.

Colours are those of Okabe and Ito and viridis, which colour-blind readers can tell
apart.
"""

import io
from collections.abc import Iterable, Sequence, Sized
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation
from PIL import Image

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#777777"
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


def marker(points: Sized) -> str:
    """Returns what marks the points of a line: one alone would not be seen."""
    return "o" if len(points) == 1 else ""


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


class Point(NamedTuple):
    """A row of a study in a plot.

    Attributes:
        x: where it is.
        y: the same.
        name: of the row.
        colour: of its marker or line.
        marker: "" for none.
        line: style of its line, "" for none.
        front: whether none is better in both.
    """

    x: float
    y: float
    name: str
    colour: str
    marker: str = ""
    line: Any = ""
    front: bool = False


def with_front(points: Iterable[Point]) -> list[Point]:
    """Marks the points than which none is both further left and higher, by x."""
    marked: list[Point] = []
    highest = -np.inf
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        marked.append(point._replace(front=point.y > highest))
        highest = max(highest, point.y)
    return marked


def height_for(rows: int) -> float:
    """Inches that a plot needs beside a list of its rows."""
    return max(4.2, 0.6 + 0.185 * rows)


def list_right(figure: Figure, axes: Axes, points: Iterable[Point]) -> None:
    """Lists points on the right, the highest first, and numbers them in the plot.

    Numbers stand on the right of the points, moved apart where these are close.
    """
    ranked = sorted(points, key=lambda point: -point.y)
    handles = []
    for number, point in enumerate(ranked, start=1):
        label = f"{number}  {point.name.replace('$', '')}"
        sample = Line2D(
            [],
            [],
            color=point.colour,
            marker=point.marker,
            linestyle=point.line or "none",
            label=label,
        )
        handles.append(sample)
    legend = figure.legend(
        handles=handles, loc="outside right upper", frameon=False, fontsize=8.5
    )
    for text, point in zip(legend.get_texts(), ranked, strict=True):
        text.set_fontweight("bold" if point.front else "normal")
    number_points(figure, axes, ranked)


def number_points(figure: Figure, axes: Axes, ranked: Sequence[Point]) -> None:
    """Writes its number, from 1, beside each point."""
    low, high = axes.get_ylim()
    gap = (high - low) * 8 / (72 * figure.get_figheight() * 0.85)
    # On a scale of the axis from 0 to 1; points in one column share room.
    places = axes.transAxes.inverted().transform(
        axes.transData.transform([(point.x, point.y) for point in ranked])
    )
    columns: list[list[int]] = []
    for i in np.argsort(places[:, 0], kind="stable").tolist():
        if columns and places[i, 0] - places[columns[-1][0], 0] < 0.05:
            columns[-1].append(i)
        else:
            columns.append([i])
    for column in columns:
        upwards = sorted(column, key=lambda i: ranked[i].y)
        heights = space_out([ranked[i].y for i in upwards], gap, low, high)
        right = max(ranked[i].x for i in column)
        for i, height in zip(upwards, heights, strict=True):
            place = axes.transData + ScaledTranslation(
                7 / 72, 0, figure.dpi_scale_trans
            )
            axes.text(
                *(right, height, f"{i + 1}"),
                transform=place,
                fontsize=7.5,
                color=ranked[i].colour,
                va="center",
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
