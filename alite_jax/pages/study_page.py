"""The page of a study: its table, its plots, and the command behind every row."""

from collections.abc import Sequence
from statistics import fmean

from alite_jax.pages.study_exports import export_table, row_exports, runtime_table
from alite_jax.pages.study_rows import RowResult
from alite_jax.pages.table import markdown

_HEAD = [
    *("row", "seeds", "epochs", "accuracy", "points below its teacher"),
    *("non-zero parameters", "teacher / row", "MACs", "non-zero MACs", "seconds"),
]
_EXPLANATION = """\
Several seeds are given as their mean and, in brackets, the lowest and the highest.
`teacher / row` compares non-zero parameters. Seconds are those of the training, without
evaluations; a sum starts with what the row starts from. A student's do not contain its
teacher's."""
_RUNTIMES = """\
What must be shipped, weights and program, and milliseconds on one thread, in turns with
the teacher, exported to the same format. `teacher / row` above 1 means that the student
is smaller, or faster. ONNX and LiteRT programs have their weights within; `jax` is
`weights.alite` with `graph.stablehlo`."""
_FILES = """\
Students exported by `python launch.py --job=export --workdir=RUN`: packed weights and
the accuracy with these, MACs after compaction, and milliseconds beside the teacher,
which was exported in the same way. Several seeds are given as their mean."""


def study_page(
    title: str,
    description: str,
    command: str,
    rows: Sequence[RowResult],
    figures: Sequence[tuple[str, str]] = (),
    waiting: Sequence[str] = (),
) -> str:
    """Returns a study's `README.md`.

    Args:
        title: its heading.
        description: what was compared.
        command: the command line of the whole study, "" if there is none.
        rows: in their order.
        figures: file names of the plots and their captions.
        waiting: names of the rows that have no result yet.
    """
    parts = [f"# {title}", description, study_table(rows), _EXPLANATION]
    if waiting:
        parts.append(f"Not run yet: {', '.join(waiting)}.")
    records = [record for row in rows for record in row.records]
    environments = [record["summary"]["environment"] for record in records]
    parts.append(_provenance([r["date"] for r in records], environments, "run"))
    parts += [f"{caption}\n\n![{caption}]({name})" for name, caption in figures]
    if exports := row_exports(rows):
        cards = [card["environment"] for row in rows for card in row.exports]
        parts += ["## As files", _table(export_table(exports)), _FILES]
        if runtimes := runtime_table(rows):
            parts += ["### In each runtime", _table(runtimes), _RUNTIMES]
        parts.append(_provenance([card["date"] for card in cards], cards, "export"))
    parts += ["## What each row answers, and how to run it", _questions(rows, command)]
    return "\n\n".join(parts) + "\n"


def study_table(rows: Sequence[RowResult]) -> str:
    """Returns the figures of all rows as a Markdown table."""
    by_name = {row.name: row for row in rows}
    return _table([_HEAD, *(_cells(row, by_name.get(row.start)) for row in rows)])


def _cells(row: RowResult, start: RowResult | None) -> list[str]:
    ratios = [
        record["summary"]["ratios"]["parameters"]
        for record in row.records
        if row.phase == "student"
    ]
    epochs, seconds = f"{row.epochs}", f"{fmean(row.seconds):,.0f}"
    if row.start:
        # Without a result of the other row, only this one's part is known.
        before = ("?", "?")
        if start is not None:
            before = (f"{start.epochs}", f"{fmean(start.seconds):,.0f}")
        epochs, seconds = f"{before[0]} + {epochs}", f"{before[1]} + {seconds}"
    return [
        row.name,
        ", ".join(map(str, row.seeds)),
        epochs,
        _mean_and_range([100 * value for value in row.values("accuracy")], " %"),
        _mean_and_range(row.drops) if row.drops else "",
        f"{fmean(row.values('nonzero_parameters')):,.0f}",
        f"{fmean(ratios):.1f}x" if ratios else "",
        _millions(fmean(row.values("macs"))),
        _millions(fmean(row.values("nonzero_macs"))),
        seconds,
    ]


def _questions(rows: Sequence[RowResult], command: str) -> str:
    lines = [["row", "what it answers", "command"]]
    for row in rows:
        run = f"`{command} --rows={row.name}`" if command else ""
        lines.append([row.name, row.question, run])
    return _table(lines)


def _provenance(
    dates: Sequence[str], environments: Sequence[dict[str, str]], what: str
) -> str:
    first, last = min(dates), max(dates)
    period = first if first == last else f"{first} to {last}"
    machines = sorted({f"jax {e['jax']} on {e['device']}" for e in environments})
    number = f"{len(dates)} {what}{'s' * (len(dates) > 1)}"
    return f"{number}, {period}, {'; '.join(machines)}."


def _mean_and_range(values: Sequence[float], unit: str = "") -> str:
    text = f"{fmean(values):.2f}{unit}"
    if len(values) == 1:
        return text
    return f"{text} ({min(values):.2f} to {max(values):.2f}, n = {len(values)})"


def _millions(number: float) -> str:
    return f"{number / 1e6:,.3g} M" if number >= 1e4 else f"{number:,.0f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(markdown(rows, left=len(rows[0])))
