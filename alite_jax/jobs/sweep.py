"""The job `sweep`: a grid of runs, every combination of some values of some fields."""

import itertools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alite_jax.compiled_programs import keep_compiled_programs
from alite_jax.config import flatten, override
from alite_jax.config.run_config import FILE, read_config
from alite_jax.config.types import plain
from alite_jax.config.validation import given_teacher
from alite_jax.errors import ConfigError, TrainingError
from alite_jax.jax_settings import ask_for_determinism
from alite_jax.jobs.command import Command
from alite_jax.jobs.train import train, train_teacher
from alite_jax.pages.table import aligned
from alite_jax.paths import user_path
from alite_jax.runs.folder import FREE_FIELDS, settled, write_whole
from alite_jax.runs.given import Given, Optimizer
from alite_jax.runs.processes import by_first
from alite_jax.study.runs import Run, train_runs

Grid = Mapping[str, Any]  # Sequences of values, NumPy's and JAX's arrays too.
Points = dict[str, tuple[dict[str, Any], ConfigDict]]

# Whatever else differs between two runs, they can have the same teacher.
_NOT_OF_THE_TEACHER = ("student.", "pruning.", "distillation.", *FREE_FIELDS)


def run(command: Command) -> None:
    """Runs the sweep of the `--sweep` flags and prints its table."""
    fields = dict(text.split("=", 1) for text in command.flags.sweep)
    shard = fields.pop("shard", "0/1")
    # Values that have commas themselves are separated by semicolons.
    grid = {
        field: text.split(";" if ";" in text else ",") for field, text in fields.items()
    }
    keep_compiled_programs()
    print(sweep_table(sweep(command.config(), grid, command.workdir, shard=shard)))


def sweep(
    config: ConfigDict,
    grid: Grid,
    workdir: str | os.PathLike[str] = "runs/sweep",
    *,
    shard: str = "0/1",
    student: Any = None,
    teacher: Any = None,
    optimizer: Optimizer | None = None,
) -> list[dict[str, Any]]:
    """Trains a run for every combination of values; the same call again resumes.

    Runs that differ in the student alone share a teacher, trained first. A run whose
    training fails is reported, and the others are made nevertheless.

    Args:
        config: what all runs have in common; from `alite_jax.get_config`.
        grid: values by field, `{"student.density": [0.1, 0.05], "seed": [0, 1]}`.
        workdir: folder of the runs, each in one named by its values; `sweep.json` (of a
            shard `sweep-0-of-4.json`) has the table.
        shard: `"i/n"`: every n-th run from the i-th, counted from 0. So n machines
            share the sweep; each trains the teachers that its runs need.
        student: of all runs; see `train`, as for the next two.
        teacher: of all runs.
        optimizer: of all students.

    Returns:
        The table, a row for each run: the values by field, then `accuracy`,
        `teacher_accuracy` (fractions), `nonzero_parameters`, `ratio` (of the teacher's
        to them), `nonzero_macs`, `seconds` and `workdir`; or `error` instead.

    Raises:
        ConfigError: a field, a value or the shard is wrong; nothing was done.
        AliteError: with one sentence, for whatever stops all runs.

    Example:
        >>> taught = alite_jax.override(config, {"teacher.workdir": str(workdir)})
        >>> grid = {"student.density": [0.2, 0.1], "pruning.method": ["rigl"]}
        >>> table = alite_jax.sweep(taught, grid, workdir / "sweep")
        >>> [row["student.density"] for row in table]
        [0.2, 0.1]
        >>> os.path.basename(table[0]["workdir"])
        'density=0.2,method=rigl'
    """
    folder = user_path(workdir)
    config = Given(student, teacher, optimizer).named(config)
    if config.compute.deterministic:
        ask_for_determinism()
    config = settled(config, folder)
    index, count = _read_shard(shard)
    points = dict(list(sweep_points(config, grid).items())[index::count])
    # Shards write apart.
    of_teachers = f"-shard{index}" if count > 1 else ""
    of_table = f"-{index}-of-{count}" if count > 1 else ""

    def train_one(run: Run) -> dict[str, Any]:
        if run.name not in points:
            return train_teacher(run.config, run.folder)
        return train(
            run.config,
            run.folder,
            student=student,
            teacher=teacher,
            optimizer=optimizer,
        )

    table: list[dict[str, Any]] = []
    row: dict[str, Any]
    errors: dict[str, str] = {}
    runs = _sweep_runs(config, points, folder, of_teachers)
    for run, result in train_runs("sweep", runs, train_one):
        if isinstance(result, TrainingError):
            # A teacher has no row: its error is told in those of its students.
            of_teacher = (errors[name] for name in run.needs if name in errors)
            errors[run.name] = next(of_teacher, str(result))
            row = {"error": errors[run.name]}
        elif run.name in points:
            # Of a teacher in a table of logits nothing is known.
            found = flatten(result)
            row = {name: found.get(field) for name, (field, _) in _COLUMNS.items()}
            row["workdir"] = run.name
        if run.name in points:
            table.append(points[run.name][0] | row)
            text = json.dumps(table, indent=2) + "\n"
            write_whole(folder / f"sweep{of_table}.json", text)
    # In the file they are names beside it, which stay true where it is moved.
    return [
        row | {"workdir": str(folder / row["workdir"])} if "workdir" in row else row
        for row in table
    ]


def sweep_points(config: ConfigDict, grid: Grid) -> Points:
    """Returns the values and the configuration of each run, by the name of its folder.

    Args:
        config: what all runs have in common.
        grid: a sequence of values for each field.

    Raises:
        ConfigError: a field or a value is wrong, or two runs are the same.
    """
    if not grid:
        raise ConfigError("a sweep needs at least one field with its values")
    grid = {field: plain(values) for field, values in grid.items()}
    for field, values in grid.items():
        one = isinstance(values, str | bytes) or not isinstance(values, Sequence)
        if one or not values:
            raise ConfigError(
                f"the values of {field} in a sweep must be a list, found {values!r}"
            )
    leaves = [field.rpartition(".")[2] for field in grid]
    labels = [
        leaf if leaves.count(leaf) == 1 else field
        for leaf, field in zip(leaves, grid, strict=True)
    ]
    points: Points = {}
    for combination in itertools.product(*grid.values()):
        run = override(config, dict(zip(grid, combination, strict=True)))
        flat = flatten(run)
        chosen = {field: flat[field] for field in grid}
        texts = zip(labels, chosen.values(), strict=True)
        name = ",".join(f"{label}={value}" for label, value in texts)
        name = re.sub(r"[^\w.=,-]+", "_", name)
        if name in points:
            raise ConfigError(f"two runs of the sweep are {name}; give each value once")
        points[name] = (chosen, run)
    return points


def _sweep_runs(
    config: ConfigDict, points: Points, folder: Path, suffix: str
) -> list[Run]:
    """A run for each point, and before it one for the teacher that it lacks."""
    teachers = _teachers(folder, suffix)
    runs: dict[str, Run] = {}
    for name, (_, point) in points.items():
        needs: tuple[str, ...] = ()
        if not given_teacher(point):
            wanted = _of_teacher(point)
            if wanted not in teachers:
                teachers.append(wanted)
            teacher = f"teacher{teachers.index(wanted)}{suffix}"
            # Whichever run comes first, its student leaves no trace there.
            alone = override(config, wanted)
            runs[teacher] = Run(teacher, point.seed, folder / teacher, alone)
            point = override(point, {"teacher.workdir": str(folder / teacher)})
            needs = (teacher,)
        runs[name] = Run(name, point.seed, folder / name, point, needs)
    return list(runs.values())


@by_first
def _teachers(folder: Path, suffix: str) -> list[dict[str, Any]]:
    """What makes each teacher that earlier sweeps left there, in the order of names."""
    found: list[dict[str, Any]] = []
    while (file := folder / f"teacher{len(found)}{suffix}" / FILE).exists():
        found.append(_of_teacher(read_config(file.parent)))
    return found


def _of_teacher(config: ConfigDict) -> dict[str, Any]:
    return {
        field: value
        for field, value in flatten(config).items()
        if not field.startswith(_NOT_OF_THE_TEACHER)
    }


def sweep_table(table: Sequence[Mapping[str, Any]]) -> str:
    """Returns what `sweep` returned as aligned plain text."""
    columns = [*_COLUMNS, "workdir"]
    names = [name for row in table[:1] for name in row]  # a shard may have no run
    fields = [name for name in names if name not in (*columns, "error")]
    rows = [[*fields, *columns]]
    for row in table:
        told = ["failed", *[""] * len(_COLUMNS)]
        if "error" not in row:
            told = [
                "-" if row[name] is None else show(row[name])
                for name, (_, show) in _COLUMNS.items()
            ]
            told.append(row["workdir"])
        rows.append([*(str(row[field]) for field in fields), *told])
    return "\n".join(aligned(rows, left=len(fields)))


# What the table tells of a run: where its summary has it, and how it is printed.
_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "accuracy": ("student.accuracy", lambda v: f"{100 * v:.2f} %"),
    "teacher_accuracy": ("teacher.accuracy", lambda v: f"{100 * v:.2f} %"),
    "nonzero_parameters": ("student.nonzero_parameters", lambda v: f"{v:,}"),
    "ratio": ("ratios.parameters", lambda v: f"{v:.1f}x"),
    "nonzero_macs": ("student.nonzero_macs", lambda v: f"{v:,}"),
    "seconds": ("seconds.student_training", lambda v: f"{v:.0f}"),
}


def _read_shard(shard: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    index, count = map(int, match.groups()) if match else (0, 0)
    if index >= count:
        raise ConfigError(
            f"the shard of a sweep is i/n with i from 0 to n - 1, found {shard!r}"
        )
    return index, count
