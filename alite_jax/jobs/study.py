"""The job `study`: trains the runs of a study, and publishes what they found."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from alite_jax.compiled_programs import keep_compiled_programs
from alite_jax.deploy.formats import parse_formats
from alite_jax.errors import ConfigError, TrainingError, check_is_list, nearest
from alite_jax.jax_settings import ask_for_determinism
from alite_jax.jobs.command import Command
from alite_jax.jobs.export import export
from alite_jax.jobs.train import train, train_teacher
from alite_jax.pages.study_page import study_page
from alite_jax.pages.study_rows import RowResult
from alite_jax.paths import user_path
from alite_jax.runs.folder import read_card, write_whole
from alite_jax.runs.processes import by_first
from alite_jax.study.declaration import TEACHER, Row, Study, get_study, study_runs
from alite_jax.study.record import make_record, read_record, record_file, write_record
from alite_jax.study.runs import Key, Run, train_runs

Records = dict[Key, dict[str, Any]]


def run(command: Command) -> None:
    """Runs `--study` and publishes it."""
    flags = command.flags
    if flags.study is None or flags.config is not None:
        raise ConfigError(
            "--job=study needs --study=configs/studies/NAME.py, which names the config,"
            " and no --config"
        )
    study = get_study(flags.study, command.overrides)
    keep_compiled_programs()
    run_study(study, command.workdir, flags.results, rows=flags.rows)


def run_study(
    study: Study,
    workdir: str | os.PathLike[str],
    results: str | os.PathLike[str] | None = None,
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

    Example:
        >>> from alite_jax.study.declaration import Row, Study
        >>> taught = alite_jax.override(config, {"teacher.workdir": str(workdir)})
        >>> study = Study(
        ...     name="alpha",
        ...     title="Alpha",
        ...     description="How much a student should listen to its teacher.",
        ...     config="digits",
        ...     overrides=taught,
        ...     rows={"half": Row("teacher and labels", "distillation.alpha=0.5")},
        ... )
        >>> records = alite_jax.run_study(study, workdir / "study", workdir / "results")
        >>> [record["summary"]["seed"] for record in records["half"]]
        [0]
        >>> (workdir / "results" / "README.md").read_text().splitlines()[0]
        '# Alpha'
    """
    folder = user_path(workdir)
    target = user_path(Path("results") / study.name if results is None else results)
    runs = study_runs(study, folder)
    wanted = parse_formats(study.formats)  # What is not installed stops it here.
    if any(run.config.compute.deterministic for run in runs):
        ask_for_determinism()
    chosen = _choose(study, runs, rows)
    records = _published(runs, chosen, target, folder)
    if records:
        publish(study, records, target)
    failures = []

    def make(run: Run) -> dict[str, Any]:
        if run.name == TEACHER:
            return train_teacher(run.config, run.folder)
        summary = train(run.config, run.folder)
        written = (read_card(run.folder) or {}).get("formats", {})
        if not set(wanted) <= set(written):
            export(run.config, run.folder, formats=study.formats)
        return summary

    for run, result in train_runs(study.name, chosen, make):
        if isinstance(result, TrainingError):
            failures.append(f"{run.name}, seed {run.seed}: {result}")
            continue
        record = make_record(run)
        if record != records.get(run.key):
            write_record(record_file(target, run), record)
            records[run.key] = record
            publish(study, records, target)
    if failures:
        raise TrainingError(
            f"{len(failures)} of {len(chosen)} runs failed: " + "; ".join(failures)
        )
    return {row.name: list(row.records) for row in _results(study, records)}


@by_first
def publish(study: Study, records: Records, folder: Path) -> None:
    """Writes the page of a study, `README.md`, and its plots into a folder."""
    # Here, since drawing takes a second to load, and mistakes must show at once.
    from alite_jax.pages.study_plots import study_plots

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
    check_is_list("rows", rows)
    names = [TEACHER, *study.rows]
    for row in rows:
        if row not in names:
            raise ConfigError(
                f"study {study.name!r} has no row {row!r}; {nearest(row, names)}"
            )
    if not rows:
        return runs
    needed: set[Key] = set()
    # Backwards, since what a run needs comes before it.
    for run in reversed(runs):
        if run.name in rows or run.key in needed:
            needed |= {run.key, *((name, run.seed) for name in run.needs)}
    return [run for run in runs if run.key in needed]


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
            records[run.key] = read_record(path, run)
        except ConfigError:
            if run not in chosen:
                raise
    return records


def _results(study: Study, records: Records) -> list[RowResult]:
    """The rows that have records, in the order of the study."""
    rows = {TEACHER: Row("what the students learn from"), **study.rows}
    found = []
    for name, row in rows.items():
        if of_row := [records[key] for key in sorted(records) if key[0] == name]:
            found.append(RowResult(name, row.question, of_row, row.start_from))
    return found
