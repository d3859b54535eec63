"""The job `compare`: several runs in one table and on one page."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alite_jax.config import flatten
from alite_jax.config.run_config import FILE, read_config
from alite_jax.config.validation import given_teacher
from alite_jax.errors import ConfigError, check_is_list
from alite_jax.jobs.command import Command
from alite_jax.pages.run_comparison import (
    ComparedRun,
    comparison,
    comparison_page,
    differences,
    table,
)
from alite_jax.pages.table import aligned
from alite_jax.paths import printable, user_path
from alite_jax.runs.folder import FREE_FIELDS, read_summary, write_whole
from alite_jax.runs.metrics import read_metrics


def run(command: Command) -> None:
    """Prints the table of the `--runs` and what differs, and writes the page."""
    flags = command.flags
    page = user_path(flags.page)
    runs = _read(flags.runs, page)
    print("\n".join(aligned(table(comparison(runs)))))
    if differ := differences(runs):
        print("\n" + "\n".join(aligned(differ)))
    write_whole(page, comparison_page(runs))
    print(f"\nwritten to {page}")


def compare(
    workdirs: Sequence[str | os.PathLike[str]],
    page: str | os.PathLike[str] = "runs/compare/index.html",
) -> list[dict[str, Any]]:
    """Puts runs beside each other, and writes a page with their curves.

    Args:
        workdirs: folders of runs, which need not be finished; one that is named twice
            counts once.
        page: the HTML file to write.

    Returns:
        A row for each run, `None` at what is not known yet: `run`, its name,
        `dataset`, `student`, `density`, `accuracy`, `teacher_accuracy` (fractions),
        `nonzero_parameters`, `macs`, `nonzero_macs`, `seconds` and `state`.

    Raises:
        ConfigError: a folder has no run, or none was named.
        CheckpointError: a summary is damaged, or the page cannot be written.
        TrainingError: a record is damaged.

    Example:
        >>> rows = alite_jax.compare([workdir], workdir / "compare.html")
        >>> rows[0]["state"], (workdir / "compare.html").exists()
        ('finished', True)
    """
    file = user_path(page)
    runs = _read(workdirs, file)
    write_whole(file, comparison_page(runs))
    return comparison(runs)


def _read(workdirs: Sequence[str | os.PathLike[str]], page: Path) -> list[ComparedRun]:
    check_is_list("workdirs", workdirs)
    folders = dict.fromkeys(Path(os.path.abspath(user_path(w))) for w in workdirs)
    # `runs/*` has the folder of an earlier page as well.
    earlier = Path(os.path.abspath(page.parent))
    if not (earlier / FILE).exists():
        folders.pop(earlier, None)
    if not folders:
        raise ConfigError("there is nothing to compare: name the folders of some runs")
    for folder in folders:
        if not (folder / FILE).exists():
            raise ConfigError(
                f"{folder} holds no run: it has no {FILE}; name the folder that a run"
                " has as its --workdir"
            )
    above = os.path.commonpath([folder.parent for folder in folders])
    return [_read_run(folder, os.path.relpath(folder, above)) for folder in folders]


def _read_run(folder: Path, name: str) -> ComparedRun:
    config = read_config(folder)
    fields = {
        field: value
        for field, value in flatten(config).items()
        if not field.startswith(FREE_FIELDS)
    }
    found = read_summary(folder) or {}, read_metrics(folder)
    return ComparedRun(
        printable(name), fields, *found, trains_teacher=not given_teacher(config)
    )
