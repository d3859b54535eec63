"""Tables as text, and teacher beside student as rows of one.

Nothing here needs JAX, so that a mistake in a command line shows before it is loaded.
"""

from collections.abc import Callable, Mapping, Sequence
from math import isclose
from typing import Any

# How `--job=cost` prints (and `--job=config`), and what.
FORMATS = ("table", "markdown", "json")
TABLES = ("networks", "paper")

# In the place of a teacher of which there are only logits.
UNKNOWN: Mapping[str, Any] = {"name": "a table of its logits"}
_NOTHING = "-"

COMPARISON_HEAD = ["", "teacher", "student", "change"]
CLASS_HEAD = ["class", *COMPARISON_HEAD[1:]]
# Not in summaries from before; top-5 only with many classes.
_OTHER_ACCURACIES = (
    ("mean of the classes", "mean_class_accuracy"),
    ("top-5", "top5_accuracy"),
)
_COUNTS = (
    ("parameters", "parameters"),
    ("non-zero parameters", "nonzero_parameters"),
    ("MACs", "macs"),
    ("non-zero MACs", "nonzero_macs"),
)


def comparison_table(summary: Mapping[str, Any]) -> str:
    """Returns a run's result as aligned plain text of at most 80 columns.

    Args:
        summary: the content of `summary.json`, in which accuracies and densities are
            fractions; `seconds` maps what took the time to a number.

    Returns:
        Lines without a trailing line break.
    """
    student = summary["student"]
    head = [
        f"{summary['dataset']}, seed {summary['seed']}",
        f"teacher: {(summary['teacher'] or UNKNOWN)['name']}",
        f"student: {student['name']} at density {_percent(student['density'])}",
    ]
    rows = [COMPARISON_HEAD, *comparison_rows(summary)]
    times = [[name, f"{s:,.1f} s"] for name, s in seconds_of(summary).items()]
    note = summary.get("config", {}).get("logging", {}).get("note", "")
    lines = [*head, "", *aligned(rows), "", *aligned(times), "", note]
    return "\n".join(lines).rstrip()


def seconds_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """What took the time, in words, the parts of a process indented below it."""
    seconds = dict(summary["seconds"])
    parts = seconds.pop("of_this_process", {})  # Not in summaries from before.
    found = {name.replace("_", " "): s for name, s in seconds.items()}
    return found | {f"  {name}": s for name, s in parts.items()}


def comparison_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """The networks of `summary.json` beside each other, below `COMPARISON_HEAD`."""
    teacher, student = summary["teacher"] or UNKNOWN, summary["student"]
    # Without `nonzero_macs`, a teacher is dense.
    return _network_rows({"nonzero_macs": teacher.get("macs"), **teacher}, student)


def card_rows(card: Mapping[str, Any]) -> list[list[str]]:
    """The networks of `card.json` beside each other, below `COMPARISON_HEAD`."""
    teacher, times = card["teacher"] or UNKNOWN, card["milliseconds"]
    rows = _network_rows(teacher, card)
    ours, program = weight_bytes(card), card["bytes"]["program"]
    theirs, their_program = teacher.get("bytes"), teacher.get("program_bytes")
    rows.append(compared("bytes of the weights", theirs, ours))
    rows.append(compared("bytes of the program", their_program, program))
    both = theirs + their_program if theirs and their_program else None
    rows.append(compared("bytes, weights and program", both, ours + program))
    for batch, ours in times["student"].items():
        theirs = times.get("teacher", {}).get(batch)
        label = f"milliseconds, batch of {batch}"
        rows.append(compared(label, theirs, ours, ".2f", _faster))
    return rows


def weight_bytes(card: Mapping[str, Any]) -> int:
    """The bytes of an export's weights, everything but its program."""
    return sum(size for part, size in card["bytes"].items() if part != "program")


def class_rows(
    teacher: Mapping[str, float | None], student: Mapping[str, float | None]
) -> list[list[str]]:
    """The accuracy of each class in both networks, below `CLASS_HEAD`.

    Args:
        teacher: its `class_accuracy`, {} if that is not known.
        student: its own; the classes at which it is worst come first, and those without
            evaluation images are left out.
    """
    return [
        _accuracy_row(name, teacher.get(name), ours)
        for name, ours in worst_first(student)
    ]


def worst_first(class_accuracy: Mapping[str, float | None]) -> list[tuple[str, float]]:
    """The classes that have evaluation images, and their accuracies, ascending."""
    known = [(name, x) for name, x in class_accuracy.items() if x is not None]
    return sorted(known, key=lambda pair: pair[1])


def _network_rows(
    teacher: Mapping[str, Any], student: Mapping[str, Any]
) -> list[list[str]]:
    networks = teacher, student
    rows = [_accuracy_row("accuracy", teacher.get("accuracy"), student["accuracy"])]
    for label, name in _OTHER_ACCURACIES:
        if all(name in network for network in networks) and not all(
            # As is the mean of classes that have as many images each.
            isclose(network[name], network["accuracy"])
            for network in networks
        ):
            rows.append(_accuracy_row(label, *(network[name] for network in networks)))
    return rows + [
        compared(label, teacher.get(name), student[name]) for label, name in _COUNTS
    ]


def _accuracy_row(label: str, teacher: float | None, student: float) -> list[str]:
    if teacher is None:
        return [label, _NOTHING, _percent(student), ""]
    points = f"{100 * (student - teacher):+.2f} points"
    return [label, _percent(teacher), _percent(student), points]


def _smaller(ratio: float, less: str = "smaller", more: str = "larger") -> str:
    return f"{ratio:,.1f}x {less}" if ratio >= 1 else f"{1 / ratio:,.1f}x {more}"


def _faster(ratio: float) -> str:
    return _smaller(ratio, "faster", "slower")


def compared(
    label: str,
    teacher: float | None,
    student: float,
    form: str = ",",
    change: Callable[[float], str] = _smaller,
) -> list[str]:
    """A row: what is compared, both numbers in a form, and teacher over student."""
    if teacher is None:
        return [label, _NOTHING, f"{student:{form}}", ""]
    return [label, f"{teacher:{form}}", f"{student:{form}}", change(teacher / student)]


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
    return [
        f"| {' | '.join(cells)} |".replace("|  |", "| |")
        for cells in (rows[0], rule, *rows[1:])
    ]
