"""What a study is: rows that answer a question each, run with some seeds.

A study file lies in `configs/studies/` and defines `get_study()`, or, for several
studies, `get_study(argument)`; it returns a `Study`. Every run of a row is an ordinary
run; all runs of a seed share one teacher.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from alite_jax.config import Overrides, describe_difference, get_config, override
from alite_jax.config.files import call_file
from alite_jax.config.validation import given_teacher
from alite_jax.errors import ConfigError
from alite_jax.paths import user_path
from alite_jax.study.runs import Run

TEACHER = "teacher"  # the row that every study has without declaring it

# All rows have these in common, so that only students are compared.
_SHARED = ("seed", "data.", "teacher.", "student.init_workdir")

# Folders of a machine, which no published command has.
_MACHINE = ("data.data_dir", "data.manual_dir")


@dataclass(frozen=True)
class Row:
    """One way to train the student.

    Attributes:
        question: what the row answers, in one line.
        overrides: on the configuration of the study; see `alite_jax.override`.
        seeds: those of this row; the study's where it has none.
        start_from: an earlier row, of whose trained student (of the same seed) the
            student of this one is made; "" starts from scratch.
    """

    question: str
    overrides: Overrides = ()
    seeds: tuple[int, ...] = ()
    start_from: str = ""


@dataclass(frozen=True)
class Study:
    """A declared set of runs.

    Attributes:
        name: also of the folder of its results.
        title: in a few words, the heading of its results.
        description: what is compared and what is reduced, in a few sentences.
        config: of which all rows are variations, as for `alite_jax.get_config`.
        rows: by name, in the order of the table.
        overrides: on the configuration, for all rows.
        seeds: of the rows that have none of their own.
        formats: in which each student is exported besides; see `alite_jax.export`.
            Without any, students are not exported.
        command: the command line that runs it, "" if there is none.
    """

    name: str
    title: str
    description: str
    config: str
    rows: Mapping[str, Row]
    overrides: Overrides = ()
    seeds: tuple[int, ...] = (0,)
    formats: tuple[str, ...] = ()
    command: str = ""

    def seeds_of(self, row: str) -> tuple[int, ...]:
        """The seeds of a row."""
        return self.rows[row].seeds or self.seeds


def get_study(name_or_path: str, overrides: Sequence[str] = ()) -> Study:
    """Loads a study by name or from a file.

    Args:
        name_or_path: a name in `configs/studies/`, or the path of a Python file that
            defines `get_study`; an argument follows a colon, where the file takes one.
        overrides: texts `section.field=value` that hold for all rows, where the row
            itself says nothing else.

    Returns:
        The study, its `command` set.

    Raises:
        ConfigError: the file, or what it returns, is wrong.

    Example:
        >>> study = alite_jax.get_study("digits")
        >>> study.config, study.seeds, list(study.rows)[:2]
        ('digits', (0,), ['dense_ce', 'dense_kd'])
    """
    name, _, argument = str(name_or_path).partition(":")
    study = call_file("study", name, argument, Study)
    # The command goes into files that are published.
    shown = Path(name).name if user_path(name).is_absolute() else name
    shown += f":{argument}" if argument else ""
    words = ["python launch.py --job=study", f"--study={shlex.quote(shown)}"]
    words += [
        shlex.quote(f"--config.{text}")
        for text in overrides
        if text.partition("=")[0] not in _MACHINE
    ]
    own = study.overrides
    parts = [own] if isinstance(own, str | Mapping) else own
    return replace(study, overrides=(*parts, *overrides), command=" ".join(words))


def study_runs(study: Study, workdir: Path) -> list[Run]:
    """Works out every run and checks all of them, so that no mistake comes late.

    Returns:
        The runs, seed by seed, each after those that it needs, in `workdir/ROW/seedN`.

    Raises:
        ConfigError: a row has a mistake; names it.
    """
    plain = get_config(study.config)
    base = override(plain, study.overrides)
    if base.seed != plain.seed:
        raise ConfigError(
            f"the overrides of study {study.name!r} set seed, which is that of each"
            " run; set the seeds of the study or of its rows"
        )
    if base.teacher.logits:
        raise ConfigError(
            f"study {study.name!r} compares its rows with their teacher, of which"
            " teacher.logits tells nothing; give the teacher itself"
        )
    runs = []
    for seed in sorted({seed for name in study.rows for seed in study.seeds_of(name)}):
        config = override(base, {"seed": seed})
        common = Run(TEACHER, seed, _folder(workdir, TEACHER, seed), config)
        if not given_teacher(config):
            runs.append(common)
        for name in study.rows:
            try:
                if seed in study.seeds_of(name):
                    runs.append(_run(study, name, common, workdir))
            except ConfigError as error:
                place = f"row {name!r} of study {study.name!r}"
                raise ConfigError(f"{place}: {error}") from error
    epochs = {run.name: run.config.student.epochs for run in runs}
    budgets = {n: epochs[n] for n, row in study.rows.items() if not row.start_from}
    if len(set(budgets.values())) > 1:
        raise ConfigError(
            f"the rows of study {study.name!r} that start from scratch must train for"
            f" the same student.epochs, found {budgets}"
        )
    return runs


def _run(study: Study, name: str, common: Run, workdir: Path) -> Run:
    """The run of a row; `common` has what all rows of its seed share."""
    row, seed, names = study.rows[name], common.seed, list(study.rows)
    start = row.start_from
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.]*", name) or name == TEACHER:
        raise ConfigError(
            f"a name is made of a-z, 0-9, '_' and '.', and is not {TEACHER!r}, which"
            " every study has by itself"
        )
    if start and start not in names[: names.index(name)]:
        raise ConfigError(f"it starts from {start!r}, which is no row before it")
    if start and seed not in study.seeds_of(start):
        raise ConfigError(
            f"it starts from {start!r}, which has no seed {seed}; give both the same"
            " seeds"
        )
    config = override(common.config, row.overrides)
    for field in describe_difference(config, common.config):
        if field.startswith(_SHARED):
            raise ConfigError(
                f"it sets {field}, but all rows share seeds, data and teacher; set it"
                " in the overrides of the study, a start in start_from"
            )
    wanted = {"student.init_workdir": start}
    if not given_teacher(config):
        wanted["teacher.workdir"] = TEACHER
    needs = {field: need for field, need in wanted.items() if need}
    folders = {f: str(_folder(workdir, need, seed)) for f, need in needs.items()}
    config = override(config, folders)
    return Run(name, seed, _folder(workdir, name, seed), config, (*needs.values(),))


def _folder(workdir: Path, row: str, seed: int) -> Path:
    return workdir / row / f"seed{seed}"
