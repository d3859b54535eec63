"""The pictures of one run: curves, densities, masks, attention, predictions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alite_jax.pages.plot_style import (
    COLOURS,
    GREY,
    STYLE,
    density_map,
    in_order,
    marker,
    new_figure,
    png,
)

Records = Sequence[Mapping[str, Any]]  # The lines of `metrics.jsonl`.
NAMED = 20  # With more classes than that, a page names only some of them.
_PHASES = {"teacher": GREY, "student": COLOURS[0]}


def draw(function: Callable[..., Figure], *arguments: Any) -> bytes:
    """Calls one of the functions below and returns the file of its figure, PNG."""
    with matplotlib.rc_context(STYLE):
        return png(function(*arguments))


def curves(records: Records) -> Figure:
    """Task loss in training, and accuracy after each epoch, of both networks.

    What is minimised, `loss`, is not the same quantity for both: the student's has the
    distillation in it, times the square of the temperature.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, name, label, scale in (
        (panels[0], "task_loss", "task loss in training: cross-entropy, nats", 1),
        (panels[1], "eval_accuracy", "accuracy on the evaluation images, %", 100),
    ):
        for phase, colour in _PHASES.items():
            lines = [r for r in records if r["phase"] == phase and name in r]
            steps = [line["step"] for line in lines]
            values = [np.nan if r[name] is None else scale * r[name] for r in lines]
            style = {"color": colour, "linewidth": 1.3, "marker": marker(steps)}
            panel.plot(steps, values, label=phase, **style)
        panel.set_xlabel("step")
        panel.set_title(label, loc="left", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower left", ncols=2)
    return figure


def layers_over_time(records: Records) -> Figure:
    """Density of each layer after each epoch, from the records that have it."""
    lines = [r for r in records if any(name.startswith("density/") for name in r)]
    names = in_order(
        name.removeprefix("density/")
        for name in (lines[0] if lines else {})
        if name.startswith("density/")
    )
    figure, axes = new_figure(9, 0.9 + 0.19 * len(names))
    if not names:
        axes.set_axis_off()
        axes.text(0, 0.5, "nothing was pruned")
        return figure
    kept = np.array([[line[f"density/{name}"] for line in lines] for name in names])
    density_map(figure, axes, kept)
    shown = [_layer_name(name, 40) for name in names]
    axes.set_yticks(range(len(names)), shown, fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axes.xaxis.set_major_formatter(lambda place, _: f"{place + 1:g}")
    return figure


def masks(kernels: Mapping[str, np.ndarray]) -> Figure:
    """Which weights of some layers are there.

    Args:
        kernels: bool `[inputs, outputs]` by name.
    """
    tallest = max(mask.shape[0] / mask.shape[1] for mask in kernels.values())
    height = 0.5 + 2 * min(tallest, 1.2)
    figure, panels = _grid(len(kernels), columns=4, height=height)
    for panel, (name, mask) in zip(panels, kernels.items(), strict=False):
        panel.imshow(mask, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        density = 100 * mask.mean()
        title = f"{_layer_name(name, 28)}\n{density:.1f} % kept"
        panel.set_title(title, loc="left", fontsize=8)
    return figure


def attention(images: np.ndarray, maps: np.ndarray) -> Figure:
    """What each head of a layer looks at from the middle of some images.

    Args:
        images: uint8 `[n, height, width, channels]`.
        maps: of the middle pixel, `[n, heads, kernel_size, kernel_size]`.
    """
    count, heads = maps.shape[:2]
    figure = Figure(figsize=(9, 9 * heads / 16 + 1.1), layout="constrained")
    panels = figure.subplots(1 + heads, count, squeeze=False)
    for panel in panels.flat:
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    for column in range(count):
        _show(panels[0, column], images[column])
        for head in range(heads):
            panels[1 + head, column].imshow(maps[column, head], cmap="viridis", vmin=0)
    panels[0, 0].set_ylabel("image", fontsize=8)
    for head in range(heads):
        panels[1 + head, 0].set_ylabel(f"head {head + 1}", fontsize=8)
    return figure


def examples(
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
) -> Figure:
    """Images with the predicted class; mistakes in another colour, with the label.

    Args:
        images: uint8 `[n, height, width, channels]`.
        labels: int `[n]`.
        probabilities: `[n, classes]`.
        classes: what the classes are called.
    """
    figure, panels = _grid(len(images), columns=8, height=1.65)
    for panel, image, label, row in zip(
        panels, images, labels, probabilities, strict=False
    ):
        _show(panel, image)
        predicted = int(row.argmax())
        text = f"{_shortened(classes[predicted])} {100 * row[predicted]:.0f} %"
        if predicted != label:
            text += f"\nis {_shortened(classes[label])}, {100 * row[label]:.0f} %"
        colour = "#333333" if predicted == label else COLOURS[1]
        panel.set_title(text, fontsize=7, color=colour, loc="left")
    return figure


def confusion_matrix(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """How often images of a class (lines) are predicted to be of another (columns).

    Args:
        counts: `[classes, classes]`.
        classes: what they are called; written down where there are at most `NAMED`.
    """
    figure, axes = new_figure(5.6, 5)
    percentages = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(percentages, cmap="viridis", vmin=0, vmax=100)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("class")
    if len(classes) <= NAMED:
        names = [_shortened(name, 24) for name in classes]
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
        axes.set_yticks(range(len(names)), names)
        for (line, column), percentage in np.ndenumerate(percentages):
            if percentage >= 0.5:
                axes.text(
                    *(column, line, f"{percentage:.0f}"),
                    color="black" if percentage > 60 else "white",
                    fontsize=7,
                    ha="center",
                    va="center",
                )
    figure.colorbar(image, ax=axes, pad=0.01, label="% of the class")
    return figure


def _shortened(name: str, length: int = 11) -> str:
    """A name for which there is little room, without formulas."""
    short = name if len(name) <= length else name[: length - 1] + "…"
    return short.replace("$", r"\$")  # Between two of them is one, to Matplotlib.


def _layer_name(path: str, length: int) -> str:
    """A layer's path, its middle left out where it is longer than there is room."""
    if len(path) > length:
        end = path[-(length // 2) :]
        path = f"{path[: length - len(end) - 1]}…{end}"
    return path.replace("$", r"\$")


def _grid(count: int, columns: int, height: float) -> tuple[Figure, Sequence[Axes]]:
    """A page-wide figure of panels without axes; a line of them is `height` inches."""
    columns = min(columns, count)
    lines = -(-count // columns)
    figure = Figure(figsize=(9, height * lines), layout="constrained")
    panels: list[Axes] = figure.subplots(lines, columns, squeeze=False).ravel().tolist()
    for panel in panels:
        panel.set_axis_off()
    return figure, panels


def _show(panel: Axes, image: np.ndarray) -> None:
    if image.shape[-1] == 1:
        panel.imshow(image[..., 0], cmap="gray_r", interpolation="nearest")
    else:
        panel.imshow(image, interpolation="nearest")
