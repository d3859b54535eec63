"""Sweeps: which runs, which teachers, which shard, and the table."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import run_command, tiny_config

import alite_jax
from alite_jax.config import describe_difference
from alite_jax.errors import ConfigError, TrainingError
from alite_jax.jobs import sweep as sweep_job
from alite_jax.jobs.sweep import sweep_points, sweep_table
from alite_jax.runs.folder import claim

pytestmark = pytest.mark.usefixtures("models")


def test_the_points_are_all_combinations() -> None:
    grid = {"student.density": [0.1, 0.05], "pruning.method": ["static", "set"]}
    config = tiny_config()
    points = sweep_points(config, grid)
    assert list(points) == [
        "density=0.1,method=static",
        "density=0.1,method=set",
        "density=0.05,method=static",
        "density=0.05,method=set",
    ]
    values, run = points["density=0.05,method=set"]
    assert values == {"student.density": 0.05, "pruning.method": "set"}
    assert describe_difference(run, config) == {
        "student.density": (0.25, 0.05),
        "pruning.method": ("sparse_momentum", "set"),
    }


@pytest.mark.parametrize(
    ("field", "values", "same"),
    [
        ("seed", np.arange(2), [0, 1]),
        ("seed", jnp.arange(2), [0, 1]),
        ("seed", range(2), [0, 1]),
        ("seed", [np.int64(3), jnp.int32(4)], [3, 4]),
        ("student.density", np.array([0.1, 0.05]), [0.1, 0.05]),
        ("student.density", (np.float64(0.1),), [0.1]),
        ("data.flip", np.array([True, False]), [True, False]),
        ("pruning.method", np.array(["static", "set"]), ["static", "set"]),
        ("teacher.optimizer.step_epochs", np.array([[1, 2], [2, 3]]), [(1, 2), (2, 3)]),
    ],
)
def test_arrays_make_the_runs_that_lists_make(
    field: str, values: Any, same: list[Any]
) -> None:
    config = tiny_config()
    points = sweep_points(config, {field: values})
    expected = sweep_points(config, {field: same})
    assert list(points) == list(expected)
    assert points == expected
    rows = [chosen for chosen, _ in points.values()]
    assert json.dumps(rows) == json.dumps([{field: value} for value in same])


def test_names_tell_fields_of_one_name_apart() -> None:
    grid = {"student.width": [8], "teacher.width": ["16"]}
    assert list(sweep_points(tiny_config(), grid)) == [
        "student.width=8,teacher.width=16"
    ]


@pytest.mark.parametrize(
    ("grid", "shard", "message"),
    [
        ({}, "0/1", "at least one field"),
        ({"student.densty": [1]}, "0/1", "did you mean 'student.density'"),
        ({"student.density": [0]}, "0/1", "student.density must be above 0"),
        ({"student.density": "0.5"}, "0/1", "must be a list, found '0.5'"),
        ({"student.density": []}, "0/1", "must be a list"),
        ({"seed": np.array([])}, "0/1", r"must be a list, found \[\]"),
        ({"seed": np.array(3)}, "0/1", "must be a list, found 3"),
        ({"seed": np.array("12")}, "0/1", "must be a list, found '12'"),
        ({"seed": b"12"}, "0/1", "must be a list, found b'12'"),
        ({"seed": np.array([[1, 2]])}, "0/1", r"whole number .* found \[1, 2\]"),
        ({"seed": np.array([0.5])}, "0/1", r"whole number .* found 0\.5 \(float\)"),
        ({"data.flip": np.array([1])}, "0/1", r"true or false .* found 1 \(int\)"),
        ({"student.density": [np.float32("nan")]}, "0/1", "finite .* found nan"),
        ({"seed": [1, np.int64(1)]}, "0/1", "two runs of the sweep are seed=1"),
        ({"seed": [1, "1"]}, "0/1", "two runs of the sweep are seed=1"),
        ({"seed": [1]}, "1/1", "i from 0 to n - 1, found '1/1'"),
        ({"seed": [1]}, "half", "found 'half'"),
    ],
)
def test_mistakes(tmp_path: Path, grid: Any, shard: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        alite_jax.sweep(tiny_config(), grid, tmp_path, shard=shard)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, str]]:
    """Replaces trainings; holds (what, config, folder) of each."""
    made: list[tuple[str, Any, str]] = []

    def train(config: Any, folder: Any, **given: Any) -> dict[str, Any]:
        assert given == dict.fromkeys(("student", "teacher", "optimizer"))
        made.append(("train", config, str(folder)))
        if config.student.density == 0.5:
            raise TrainingError("student: the loss is nan")
        part = {"accuracy": 0.9, "nonzero_parameters": 5, "nonzero_macs": 7}
        return {
            "student": part,
            "teacher": part,
            "ratios": {"parameters": 31.5},
            "seconds": {"student_training": 3.0},
        }

    def train_teacher(config: Any, folder: Any) -> None:
        made.append(("teacher", config, str(folder)))
        claim(folder, config)

    monkeypatch.setattr(sweep_job, "train", train)
    monkeypatch.setattr(sweep_job, "train_teacher", train_teacher)
    return made


def test_teachers_are_shared_by_what_makes_them(
    trained: list[tuple[str, Any, str]], tmp_path: Path
) -> None:
    grid = {"seed": [0, 1], "distillation.alpha": [0.5, 0.9]}
    alite_jax.sweep(tiny_config(), grid, tmp_path)
    made = [(Path(f).name, config) for what, config, f in trained if what == "teacher"]
    assert all(config.distillation.alpha == 0.9 for _, config in made)
    assert [name for name, _ in made] == ["teacher0", "teacher1"]
    given = [config.teacher.workdir for what, config, _ in trained if what == "train"]
    assert [Path(folder).name for folder in given] == [
        *("teacher0", "teacher0", "teacher1", "teacher1"),
    ]


def test_a_teacher_is_found_again_whatever_run_comes_first(
    trained: list[tuple[str, Any, str]], tmp_path: Path
) -> None:
    for seeds in ([1], [0, 1], [2, 0]):
        alite_jax.sweep(tiny_config(), {"seed": seeds}, tmp_path)
    made = [(c.seed, Path(f).name) for what, c, f in trained if what == "teacher"]
    assert made == [
        (1, "teacher0"),
        *((0, "teacher1"), (1, "teacher0")),
        *((2, "teacher2"), (0, "teacher1")),
    ]


def test_shards_are_the_whole_and_write_apart(
    trained: list[tuple[str, Any, str]], tmp_path: Path
) -> None:
    grid = {"student.density": [0.1, 0.2, 0.3, 0.4, 0.6]}
    for index in range(3):
        alite_jax.sweep(tiny_config(), grid, tmp_path, shard=f"{index}/3")
    folders = [Path(folder).name for what, _, folder in trained if what == "train"]
    assert sorted(folders) == [f"density={d}" for d in (0.1, 0.2, 0.3, 0.4, 0.6)]
    teachers = {Path(folder).name for what, _, folder in trained if what == "teacher"}
    assert teachers == {f"teacher0-shard{index}" for index in range(3)}
    tables = [
        json.loads((tmp_path / f"sweep-{index}-of-3.json").read_text())
        for index in range(3)
    ]
    assert [len(table) for table in tables] == [2, 2, 1]
    empty = alite_jax.sweep(
        tiny_config(), {"student.width": [8]}, tmp_path, shard="1/2"
    )
    assert empty == [] and sweep_table(empty).startswith("accuracy ")


def test_a_failed_run_leaves_the_others(
    trained: list[tuple[str, Any, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = run_command(
        "--job=sweep",
        "--config=digits",
        f"--workdir={tmp_path}",
        "--sweep.student.density=0.5,0.25",
        "--sweep.teacher.optimizer.step_epochs=1,2;3",
        "--config.logging.progress=false",
    )
    assert status == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and [line.split()[0] for line in lines[1:]] == [
        *("0.5", "0.5", "0.25", "0.25"),
    ]
    assert "failed" in lines[1] and "90.00 %" in lines[3] and "31.5x" in lines[3]
    table = json.loads((tmp_path / "sweep.json").read_text())
    assert table[0]["error"] == "student: the loss is nan"
    assert table[2]["teacher.optimizer.step_epochs"] == [1, 2]
    # As seen from the file, which may be moved with them.
    assert table[2]["workdir"] == "density=0.25,step_epochs=_1,_2_"
    assert f"{tmp_path}/density=0.25,step_epochs=_1,_2_" in lines[3]


def test_a_teacher_that_fails_is_told_by_the_runs_that_need_it(
    trained: list[tuple[str, Any, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def train_teacher(config: Any, folder: Path) -> None:
        if config.seed == 0:
            raise TrainingError("teacher: the loss is nan")

    monkeypatch.setattr(sweep_job, "train_teacher", train_teacher)
    config = tiny_config({"logging.progress": True})
    grid = {"seed": [0, 1], "student.width": [8, 9]}
    table = alite_jax.sweep(config, grid, tmp_path)
    assert [row.get("error") for row in table] == [
        *("teacher: the loss is nan", "teacher: the loss is nan", None, None),
    ]
    assert [config.seed for _, config, _ in trained] == [1, 1]
    assert capsys.readouterr().err.splitlines() == [
        "sweep, run 1 of 6: teacher0, seed 0",
        "sweep, run 4 of 6: teacher1, seed 1",
        "sweep, run 5 of 6: seed=1,width=8, seed 1",
        "sweep, run 6 of 6: seed=1,width=9, seed 1",
    ]


@pytest.mark.slow
def test_a_sweep_for_real_resumes_wherever_it_was_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {"epochs": 1, "optimizer": {"warmup_epochs": 0}}
    changes = {"teacher": short, "student": short, "pruning.method": "static"}
    config = tiny_config(changes)
    grid = {"student.density": [0.25, 0.5]}
    monkeypatch.chdir(tmp_path)
    table = alite_jax.sweep(config, grid, "made/sw")
    again = alite_jax.sweep(config, grid, "made/sw")
    assert again == table
    assert table[0]["nonzero_parameters"] < table[1]["nonzero_parameters"]
    assert table[0]["teacher_accuracy"] == table[1]["teacher_accuracy"]
    assert sweep_table(table).count("\n") == 2
    (tmp_path / "made").rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for job in ("evaluate", "export", "report"):
        assert run_command(f"--job={job}", "--workdir=../moved/sw/density=0.5") == 0
    monkeypatch.chdir(tmp_path / "moved" / "sw")
    more = alite_jax.sweep(config, {"student.density": [0.75, 0.25, 0.5]}, ".")
    assert [row["accuracy"] for row in more[1:]] == [row["accuracy"] for row in table]
    assert more[0]["teacher_accuracy"] == table[0]["teacher_accuracy"]
