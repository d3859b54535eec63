"""Tables as text: how rows are laid out, and the one that ends a run.

Nothing here needs JAX, so that a mistake in a command line shows before it is loaded.
"""

from collections.abc import Mapping, Sequence
from typing import Any

# How `--job=cost` prints (and `--job=config`), and what.
FORMATS = ("table", "markdown", "json")
TABLES = ("networks", "paper")

_ROWS = (
    # label, field of teacher and student, field of ratios
    ("parameters", "parameters", None),
    ("non-zero parameters", "nonzero_parameters", "parameters"),
    ("MACs", "macs", "macs"),
    ("non-zero MACs", "nonzero_macs", "nonzero_macs"),
)


def comparison_table(summary: Mapping[str, Any]) -> str:
    """Returns a run's result as aligned plain text of at most 80 columns.

    Args:
        summary: what `summary.json` holds. `ratios` are teacher over student, where
            `ratios.parameters` compares the non-zero ones; accuracies and densities are
            fractions and `accuracy_drop` points; a teacher without `nonzero_macs` is
            dense; `seconds` maps what took the time to a number.

    Returns:
        Lines without a trailing line break.
    """
    teacher, student = summary["teacher"], summary["student"]
    ratios = summary["ratios"]
    rows = [
        ["", "teacher", "student", "change"],
        [
            "accuracy",
            _percent(teacher["accuracy"]),
            _percent(student["accuracy"]),
            f"{0 - summary['accuracy_drop']:+.2f} points",
        ],
    ]
    for label, field, ratio_field in _ROWS:
        ours = student[field]
        theirs = teacher.get(field, teacher["macs"])
        ratio = ratios[ratio_field] if ratio_field else theirs / ours
        rows.append([label, f"{theirs:,}", f"{ours:,}", _times(ratio)])
    head = [
        f"{summary['dataset']}, seed {summary['seed']}",
        f"teacher: {teacher['name']}",
        f"student: {student['name']} at density {_percent(student['density'])}",
    ]
    times = [
        [name.replace("_", " "), f"{seconds:,.1f} s"]
        for name, seconds in summary["seconds"].items()
    ]
    return "\n".join([*head, "", *aligned(rows), "", *aligned(times)]).rstrip()


def _times(ratio: float) -> str:
    return f"{ratio:,.1f}x smaller" if ratio >= 1 else f"{1 / ratio:,.1f}x larger"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Joins cells into lines; the first `left` columns to the left, others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def markdown(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """The same as a Markdown table, whose first row is the head."""
    rule = ["---" if column < left else "---:" for column in range(len(rows[0]))]
    return [f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])]
