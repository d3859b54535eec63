"""How plots look.

Colours are those of Okabe and Ito and viridis, which colour-blind readers can tell
apart.
"""

import io
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
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


def in_order(names: Iterable[str]) -> list[str]:
    """Returns layers as they run, while leaves come in the order of their names."""
    places = ("stem", "stage", "classifier")
    parts = ("reduce", "spatial", "expand", "shortcut")

    def position(name: str) -> tuple[Any, ...]:
        place, _, part = name.partition("/")
        where = [place.startswith(begin) for begin in places]
        what = [part.startswith(begin) for begin in parts]
        # What is not known here comes last, by its name.
        return (
            [not found for found in where],
            place,
            [not found for found in what],
            name,
        )

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


def label_right(figure: Figure, axes: Axes, ends: Sequence[Any]) -> None:
    """Names points in a column on the right, each joined to its point by a hair."""
    low, high = axes.get_ylim()
    gap = (high - low) * 11 / (72 * figure.get_figheight() * 0.8)
    order = sorted(range(len(ends)), key=lambda i: ends[i][1])
    heights = spread([ends[i][1] for i in order], gap, low, high)
    for i, height in zip(order, heights, strict=True):
        x, y, name, colour = ends[i]
        axes.annotate(
            name,
            (x, y),
            xytext=(1.03, height),
            textcoords=axes.get_yaxis_transform(),
            color=colour,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "alpha": 0.5},
        )


def spread(
    positions: Sequence[float], gap: float, low: float, high: float
) -> list[float]:
    """Moves ascending positions apart, as little as a pass up and a pass down do.

    Args:
        positions: in ascending order.
        gap: the least distance between two of them.
        low: the least position.
        high: the greatest, unless there is no room for all.
    """
    moved: list[float] = []
    for position in positions:
        moved.append(max(position, moved[-1] + gap if moved else low))
    limit = high
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - gap
    return moved
