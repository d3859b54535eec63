"""What a study is: rows that answer a question each, run with some seeds.

A study file lies in `configs/studies/` and defines `get_study()`, which returns a
`Study`. Every run of a row is an ordinary run; all runs of a seed share one teacher.
"""

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alite_jax.config import Overrides, describe_difference, get_config, override
from alite_jax.config_files import config_directory, failure, load_config_file
from alite_jax.errors import ConfigError, nearest
from alite_jax.paths import user_path

TEACHER = "teacher"  # the row that every study has without declaring it

# All rows have these in common, so that only students are compared.
_SHARED = ("seed", "data.", "teacher.", "student.init_workdir")


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
        command: the command line that runs it, "" if there is none.
    """

    name: str
    title: str
    description: str
    config: str
    rows: Mapping[str, Row]
    overrides: Overrides = ()
    seeds: tuple[int, ...] = (0,)
    command: str = ""


@dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
        row: its name.
        seed: its seed.
        folder: where it is trained.
        config: its whole configuration; `teacher.workdir` and `student.init_workdir`
            are folders of other runs.
        needs: names of the rows that must be finished before, with the same seed.
    """

    row: str
    seed: int
    folder: Path
    config: ConfigDict
    needs: tuple[str, ...] = ()


def study_names() -> list[str]:
    """Returns the names that `get_study` finds without a path."""
    return sorted(path.stem for path in _directory().glob("[!_]*.py"))


def get_study(name_or_path: str, overrides: Sequence[str] = ()) -> Study:
    """Loads a study by name or from a file.

    Args:
        name_or_path: a name in `configs/studies/`, or the path of a Python file that
            defines `get_study`.
        overrides: texts `section.field=value` that hold for all rows, where the row
            itself says nothing else.

    Returns:
        The study, its `command` set.

    Raises:
        ConfigError: the file, or what it returns, is wrong.
    """
    path = _find(name_or_path)
    module = load_config_file(path)
    if not hasattr(module, "get_study"):
        raise ConfigError(f"study file {path} defines no function get_study()")
    try:
        study = module.get_study()
    except Exception as error:
        raise failure(path, error) from error
    if not isinstance(study, Study):
        raise ConfigError(
            f"get_study in {path} must return a Study, found {type(study).__name__}"
        )
    # The command goes into files that are published: no folders of this machine.
    shown = path.name if user_path(name_or_path).is_absolute() else name_or_path
    words = ["python launch.py --job=study", f"--study={shlex.quote(shown)}"]
    words += [shlex.quote(f"--config.{text}") for text in overrides]
    return replace(
        study,
        overrides=(*_parts(study.overrides), *overrides),
        command=" ".join(words),
    )


def study_runs(study: Study, workdir: Path) -> list[Run]:
    """Works out every run and checks all of them, so that no mistake comes late.

    Args:
        study: the study.
        workdir: its folder; a run is in `workdir/ROW/seedN`.

    Returns:
        The runs, seed by seed, each after those that it needs.

    Raises:
        ConfigError: a row has a mistake; names it.
    """
    _check_rows(study)
    plain = get_config(study.config)
    if get_config(study.config, study.overrides).seed != plain.seed:
        raise ConfigError(
            f"the overrides of study {study.name!r} set seed, which is that of each"
            " run; set the seeds of the study or of its rows"
        )
    runs = []
    for seed in sorted({s for row in study.rows.values() for s in _seeds(study, row)}):
        base = get_config(study.config, [*_parts(study.overrides), {"seed": seed}])
        teacher = Run(TEACHER, seed, _folder(workdir, TEACHER, seed), base)
        runs.append(teacher)
        for name, row in study.rows.items():
            if seed in _seeds(study, row):
                try:
                    runs.append(_run(name, row, teacher, workdir))
                except ConfigError as error:
                    raise ConfigError(
                        f"row {name!r} of study {study.name!r}: {error}"
                    ) from error
    epochs = {run.row: run.config.student.epochs for run in runs}
    budgets = {n: epochs[n] for n, row in study.rows.items() if not row.start_from}
    if len(set(budgets.values())) > 1:
        raise ConfigError(
            f"the rows of study {study.name!r} that start from scratch must train for"
            f" the same student.epochs, found {budgets}"
        )
    return runs


def _run(name: str, row: Row, teacher: Run, workdir: Path) -> Run:
    config = override(teacher.config, row.overrides)
    for field in describe_difference(config, teacher.config):
        if field.startswith(_SHARED):
            raise ConfigError(
                f"it sets {field}, but all rows share seeds, data and teacher; set it"
                " in the overrides of the study, a start in start_from"
            )
    folders = {"teacher.workdir": str(teacher.folder)}
    if row.start_from:
        start = _folder(workdir, row.start_from, teacher.seed)
        folders["student.init_workdir"] = str(start)
    return Run(
        row=name,
        seed=teacher.seed,
        folder=_folder(workdir, name, teacher.seed),
        config=override(config, folders),
        needs=(TEACHER, row.start_from) if row.start_from else (TEACHER,),
    )


def _check_rows(study: Study) -> None:
    earlier: set[str] = set()
    for name, row in study.rows.items():
        place = f"row {name!r} of study {study.name!r}"
        if not re.fullmatch(r"[a-z0-9][a-z0-9_.]*", name) or name == TEACHER:
            raise ConfigError(
                f"{place}: a name is made of a-z, 0-9, '_' and '.', and is not"
                f" {TEACHER!r}, which every study has by itself"
            )
        if row.start_from and row.start_from not in earlier:
            raise ConfigError(
                f"{place} starts from {row.start_from!r}, which is no row before it"
            )
        if row.start_from:
            has = _seeds(study, study.rows[row.start_from])
            lacking = sorted(set(_seeds(study, row)) - set(has))
            if lacking:
                raise ConfigError(
                    f"{place} starts from {row.start_from!r}, which has no seed"
                    f" {lacking[0]}; give both the same seeds"
                )
        earlier.add(name)


def _seeds(study: Study, row: Row) -> Collection[int]:
    return row.seeds or study.seeds


def _parts(overrides: Overrides) -> list[Any]:
    """One override, or many, as a list."""
    single = isinstance(overrides, str | Mapping)
    return [overrides] if single else list(overrides)


def _folder(workdir: Path, row: str, seed: int) -> Path:
    return workdir / row / f"seed{seed}"


def _directory() -> Path:
    return config_directory() / "studies"


def _find(name: str) -> Path:
    path = user_path(name)
    if path.suffix == ".py" and path.is_file():
        return path
    # `configs/studies/digits.py` also means the project's own from another folder.
    own = path.suffix == "" or path.parent == Path("configs/studies")
    if own and path.stem in study_names():
        return _directory() / f"{path.stem}.py"
    raise ConfigError(f"unknown study {name!r}; {nearest(path.stem, study_names())}")
