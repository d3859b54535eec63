"""A grid of runs: every combination of some values of some fields, one run each."""

import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alite_jax.analysis.table import aligned
from alite_jax.config import flatten, override
from alite_jax.errors import ConfigError, TrainingError
from alite_jax.paths import user_path
from alite_jax.run_config import FILE
from alite_jax.training.loop import train, train_teacher
from alite_jax.training.processes import is_first
from alite_jax.training.run_folder import (
    FREE_FIELDS,
    read_config,
    write_whole,
)
from alite_jax.validation import plain

Grid = Mapping[str, Any]  # Sequences of values, NumPy's and JAX's arrays too.

# Whatever else differs between two runs, they can have the same teacher.
_NOT_OF_THE_TEACHER = ("student.", "pruning.", "distillation.", *FREE_FIELDS)


def sweep(
    config: Any,
    grid: Grid,
    workdir: str | os.PathLike[str] = "runs/sweep",
    *,
    shard: str = "0/1",
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

    Returns:
        The table, a row for each run: the values by field, then `accuracy`,
        `teacher_accuracy` (fractions), `nonzero_parameters`, `ratio` (of the teacher's
        to them), `nonzero_macs`, `seconds` and `workdir`; or `error` instead.

    Raises:
        ConfigError: a field, a value or the shard is wrong; nothing was done.
        AliteError: with one sentence, for whatever stops all runs.
    """
    folder = user_path(workdir)
    points = sweep_points(config, grid)
    index, count = _read_shard(shard)
    own = list(points.items())[index::count]
    table = []
    for number, (name, (values, run)) in enumerate(own, start=1):
        if run.logging.progress and is_first():
            print(f"sweep, run {number} of {len(own)}: {name}", file=sys.stderr)
        try:
            if not run.teacher.workdir:
                teacher = _teacher_folder(folder, run, shard)
                # Whichever run comes first, its student leaves no trace there.
                train_teacher(override(config, dict(_of_teacher(run))), teacher)
                run = override(run, {"teacher.workdir": str(teacher)})
            result = _row(train(run, folder / name)) | {"workdir": name}
        except TrainingError as error:
            result = {"error": str(error)}
        table.append(values | result)
        suffix = f"-{index}-of-{count}" if count > 1 else ""
        text = json.dumps(table, indent=2) + "\n"
        write_whole(folder / f"sweep{suffix}.json", text)
    # In the file they are names beside it, which stay true where it is moved.
    return [
        row | ({} if "error" in row else {"workdir": str(folder / row["workdir"])})
        for row in table
    ]


def sweep_points(config: Any, grid: Grid) -> dict[str, tuple[dict[str, Any], Any]]:
    """Returns the values and the configuration of each run, by the name of its folder.

    Args:
        config: as for `sweep`.
        grid: as for `sweep`.

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
    points: dict[str, tuple[dict[str, Any], Any]] = {}
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


def sweep_table(table: Sequence[Mapping[str, Any]]) -> str:
    """Returns what `sweep` returned as aligned plain text."""
    fields = [name for name in table[0] if name not in _COLUMNS and name != "error"]
    rows = [[*fields, *_COLUMNS]]
    for row in table:
        values = [str(row[field]) for field in fields]
        if "error" in row:
            rows.append([*values, "failed", *[""] * (len(_COLUMNS) - 1)])
            continue
        rows.append(values + [show(row[name]) for name, show in _COLUMNS.items()])
    return "\n".join(aligned(rows, left=len(fields)))


_COLUMNS: dict[str, Callable[[Any], str]] = {
    "accuracy": lambda v: f"{100 * v:.2f} %",
    "teacher_accuracy": lambda v: f"{100 * v:.2f} %",
    "nonzero_parameters": lambda v: f"{v:,}",
    "ratio": lambda v: f"{v:.1f}x",
    "nonzero_macs": lambda v: f"{v:,}",
    "seconds": lambda v: f"{v:.0f}",
    "workdir": str,
}


def _row(summary: dict[str, Any]) -> dict[str, Any]:
    student, teacher = summary["student"], summary["teacher"]
    return {
        "accuracy": student["accuracy"],
        "teacher_accuracy": teacher["accuracy"],
        "nonzero_parameters": student["nonzero_parameters"],
        "ratio": summary["ratios"]["parameters"],
        "nonzero_macs": student["nonzero_macs"],
        "seconds": summary["seconds"]["student_training"],
    }


def _read_shard(shard: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    index, count = map(int, match.groups()) if match else (0, 0)
    if index >= count:
        raise ConfigError(
            f"the shard of a sweep is i/n with i from 0 to n - 1, found {shard!r}"
        )
    return index, count


def _teacher_folder(folder: Path, run: Any, shard: str) -> Path:
    """The folder that has a run's teacher, or else the first that has none."""
    index, count = _read_shard(shard)
    suffix = f"-shard{index}" if count > 1 else ""  # Each writes to its own.
    for number in itertools.count():
        teacher = folder / f"teacher{number}{suffix}"
        if not (teacher / FILE).exists():
            break
        if _of_teacher(read_config(teacher)) == _of_teacher(run):
            break
    return teacher


def _of_teacher(config: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(
        (field, value)
        for field, value in flatten(config).items()
        if not field.startswith(_NOT_OF_THE_TEACHER)
    )
