"""How plots look.

Colours are those of Okabe and Ito and viridis, which colour-blind readers can tell
apart.
"""

import io
from collections.abc import Iterable
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
