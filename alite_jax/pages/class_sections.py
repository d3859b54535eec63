"""What a run's page says of each class, however many there are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alite_jax.pages import run_plots
from alite_jax.pages.report_page import Section
from alite_jax.pages.table import CLASS_HEAD, aligned, class_rows


def accuracy_of_classes(summary: Mapping[str, Any]) -> list[Section]:
    """Both networks beside each other; of many classes, the others are folded.

    Args:
        summary: the content of `summary.json`; those from before say nothing of it.
    """
    teacher, student = (
        (summary[network] or {}).get("class_accuracy")
        for network in ("teacher", "student")
    )
    if not teacher or not student:
        return []
    text = "The classes at which the student is worst come first."
    if missing := [name for name, accuracy in student.items() if accuracy is None]:
        text += f" Without evaluation images: {', '.join(missing)}."
    rows, folded = class_rows(teacher, student), ""
    if len(rows) > run_plots.NAMED:
        folded = "\n".join(aligned([CLASS_HEAD, *rows]))
        between = [f"{len(rows) - 20} more", "", "", ""]
        rows = [*rows[:10], between, *rows[-10:]]
    title = "Accuracy of each class"
    return [Section(title, text, rows=[CLASS_HEAD, *rows], folded=folded)]


def confusion(counts: np.ndarray, classes: Sequence[str]) -> Section:
    """The matrix; where it has no room for names, the most frequent mistakes, too.

    Args:
        counts: int `[classes, predicted classes]`, images.
        classes: what they are called.
    """
    title = "Confusion matrix"
    picture = run_plots.draw(run_plots.confusion_matrix, counts, classes)
    if len(classes) <= run_plots.NAMED:
        return Section(title, picture=picture)
    rows = [["class", "predicted as", "images"]]
    mistakes = counts - np.diag(np.diag(counts))
    for place in np.argsort(-mistakes, axis=None, kind="stable")[:10]:
        label, predicted = divmod(int(place), len(classes))
        if mistakes[label, predicted]:
            part = f"{mistakes[label, predicted]:,} of {counts[label].sum():,}"
            rows.append([classes[label], classes[predicted], part])
    text = "The most frequent mistakes by name, and all by label, counted from 0."
    return Section(title, text, picture, rows)
