"""What a run's page says of each class, however many there are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alite_jax.pages import run_plots
from alite_jax.pages.report_page import Section
from alite_jax.pages.table import CLASS_HEAD, aligned, class_rows

_HEAD = ["class", "images", *CLASS_HEAD[1:], "most frequent mistake of the student"]


def class_sections(
    summary: Mapping[str, Any], counts: np.ndarray, classes: Sequence[str]
) -> list[Section]:
    """A table of the classes, of which many are folded, and the confusion matrix.

    Args:
        summary: the content of `summary.json`, for the accuracy of the teacher; those
            from before, and of runs without a teacher, say nothing of it.
        counts: int `[classes, predicted classes]`, evaluation images of the student.
        classes: what they are called.
    """
    images = counts.sum(axis=1)
    correct = np.diag(counts)
    student = {
        name: int(correct[i]) / int(images[i]) if images[i] else None
        for i, name in enumerate(classes)
    }
    teacher = (summary["teacher"] or {}).get("class_accuracy") or {}
    places = {name: i for i, name in enumerate(classes)}
    mistakes = counts - np.diag(correct)
    rows = []
    for name, *accuracies in class_rows(teacher, student):
        place = places[name]
        wrong = int(mistakes[place].argmax())
        number = mistakes[place, wrong]
        mistake = f"{classes[wrong]} ({number:,})" if number else ""
        rows.append([name, f"{images[place]:,}", *accuracies, mistake])
    text = "The classes at which the student is worst come first."
    if missing := [name for name, accuracy in student.items() if accuracy is None]:
        text += f" Without evaluation images: {', '.join(missing)}."
    folded = ""
    if len(rows) > run_plots.NAMED:
        folded = "\n".join(aligned([_HEAD, *rows]))
        between = [f"{len(rows) - 20} more", *[""] * (len(_HEAD) - 1)]
        rows = [*rows[:10], between, *rows[-10:]]
    return [
        Section("Classes", text, rows=[_HEAD, *rows], folded=folded),
        Section(
            "Confusion matrix",
            "Of the student: a line for each class, and in it the percentage of its"
            " images that are predicted to be of each class"
            + ("." if len(classes) <= run_plots.NAMED else ", by label from 0."),
            run_plots.draw(run_plots.confusion_matrix, counts, classes),
        ),
    ]
