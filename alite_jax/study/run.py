"""The job `study`: trains the runs of a study, and publishes what they found."""

import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from alite_jax.analysis.study_page import study_page
from alite_jax.analysis.study_rows import RowResult
from alite_jax.errors import ConfigError, TrainingError, nearest
from alite_jax.paths import user_path
from alite_jax.study.declaration import TEACHER, Run, Study, study_runs
from alite_jax.study.record import make_record, read_record, record_file, write_record
from alite_jax.training.loop import train, train_teacher
from alite_jax.training.processes import by_first, is_first
from alite_jax.training.run_folder import write_whole

PathLike = str | os.PathLike[str]
Records = dict[tuple[str, int], dict[str, Any]]


def run_study(
    study: Study,
    workdir: PathLike,
    results: PathLike | None = None,
    *,
    rows: Collection[str] = (),
) -> dict[str, list[dict[str, Any]]]:
    """Trains what is missing of a study; after each run its results are published.

    The same call again resumes the run that was interrupted and goes on. A run whose
    training fails is reported, and the others are made nevertheless.

    Args:
        study: from `alite_jax.get_study`, or made in Python.
        workdir: folder of the runs, `workdir/ROW/seedN`.
        results: folder of what is small enough to keep: a JSON file for each run, the
            table and the plots of all of them; `results/NAME` when left out.
        rows: names of the rows to train now, with what they need; all when left out.

    Returns:
        The records of each row that has any, as in the JSON files.

    Raises:
        ConfigError: the study, a name or an older result is wrong; nothing was done.
        TrainingError: the training of some runs failed, at the end of the others.
        AliteError: with one sentence, for whatever else stops a run.
    """
    folder = user_path(workdir)
    target = user_path(Path("results") / study.name if results is None else results)
    runs = study_runs(study, folder)
    chosen = _choose(study, runs, rows)
    records = _published(runs, chosen, target, folder)
    failures: dict[tuple[str, int], str] = {}
    for number, run in enumerate(chosen, start=1):
        if any((row, run.seed) in failures for row in run.needs):
            failures[run.row, run.seed] = "what it starts from failed"
            continue
        if run.config.logging.progress and is_first():
            print(
                f"{study.name}, run {number} of {len(chosen)}: {run.row}, seed"
                f" {run.seed}",
                file=sys.stderr,
            )
        try:
            (train_teacher if run.row == TEACHER else train)(run.config, run.folder)
        except TrainingError as error:
            failures[run.row, run.seed] = str(error)
            continue
        record = make_record(run)
        if record != records.get((run.row, run.seed)):
            write_record(record_file(target, run), record)
            records[run.row, run.seed] = record
            publish(study, records, target)
    publish(study, records, target)
    if failures:
        raise TrainingError(
            f"{len(failures)} of {len(chosen)} runs failed: "
            + "; ".join(f"{row}, seed {s}: {why}" for (row, s), why in failures.items())
        )
    return {row.name: list(row.records) for row in _results(study, records)}


@by_first
def publish(study: Study, records: Records, folder: Path) -> None:
    """Writes the page of a study, `README.md`, and its plots.

    Args:
        study: for names, questions and commands.
        records: by row and seed, as `make_record` returns them.
        folder: of the page.
    """
    # Here, since drawing takes a second to load and the first run comes much later.
    from alite_jax.analysis.study_plots import study_plots

    rows = _results(study, records)
    figures = []
    for name, (caption, image) in study_plots(rows).items():
        write_whole(folder / name, image)
        figures.append((name, caption))
    waiting = [name for name in study.rows if name not in {row.name for row in rows}]
    page = study_page(
        study.title, study.description, study.command, rows, figures, waiting
    )
    write_whole(folder / "README.md", page)


def _choose(study: Study, runs: list[Run], rows: Collection[str]) -> list[Run]:
    """The runs of some rows, and those that they need."""
    names = [TEACHER, *study.rows]
    for row in rows:
        if row not in names:
            raise ConfigError(
                f"study {study.name!r} has no row {row!r}; {nearest(row, names)}"
            )
    if not rows:
        return runs
    needed: set[tuple[str, int]] = set()
    # Backwards, since what a run needs comes before it.
    for run in reversed(runs):
        if run.row in rows or (run.row, run.seed) in needed:
            needed |= {(run.row, run.seed), *((name, run.seed) for name in run.needs)}
    return [run for run in runs if (run.row, run.seed) in needed]


@by_first
def _published(
    runs: list[Run], chosen: list[Run], target: Path, folder: Path
) -> Records:
    """The records that are there; a wrong one is no matter if it is made anew now."""
    if (folder / "config.json").exists():
        raise ConfigError(f"{folder} holds a run of its own; use another --workdir")
    records: Records = {}
    for run in runs:
        path = record_file(target, run)
        if not path.exists():
            continue
        try:
            records[run.row, run.seed] = read_record(path, run)
        except ConfigError:
            if run not in chosen:
                raise
    return records


def _results(study: Study, records: Records) -> list[RowResult]:
    """The rows that have records, in the order of the study."""
    found = []
    for name in (TEACHER, *study.rows):
        of_row = [records[key] for key in sorted(records) if key[0] == name]
        if of_row:
            row = study.rows.get(name)
            found.append(
                RowResult(
                    name=name,
                    question=row.question if row else "what the students learn from",
                    records=tuple(of_row),
                    start=row.start_from if row else "",
                )
            )
    return found
