"""Sweeps: which runs, which teachers, which shard, and the table."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import run_command, tiny_config

import alite_jax
from alite_jax.config import describe_difference
from alite_jax.errors import ConfigError, TrainingError
from alite_jax.study import sweep as sweep_module
from alite_jax.study.sweep import sweep_points, sweep_table

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

    def train(config: Any, folder: Any) -> dict[str, Any]:
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

    monkeypatch.setattr(sweep_module, "train", train)
    monkeypatch.setattr(sweep_module, "train_teacher", train_teacher)
    return made


def test_teachers_are_shared_by_what_makes_them(
    trained: list[tuple[str, Any, str]], tmp_path: Path
) -> None:
    grid = {"seed": [0, 1], "distillation.alpha": [0.5, 0.9]}
    alite_jax.sweep(tiny_config(), grid, tmp_path)
    made = [(Path(f).name, config) for what, config, f in trained if what == "teacher"]
    assert all(config.distillation.alpha == 0.9 for _, config in made)
    teachers = [name for name, _ in made]
    assert teachers == ["teacher0", "teacher0", "teacher1", "teacher1"]
    given = [config.teacher.workdir for what, config, _ in trained if what == "train"]
    assert [Path(folder).name for folder in given] == teachers


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


@pytest.mark.slow
def test_a_sweep_for_real_resumes(tmp_path: Path) -> None:
    short = {"epochs": 1, "optimizer": {"warmup_epochs": 0}}
    config = tiny_config({"teacher": short, "student": short})
    grid = {"student.density": [0.25, 0.5]}
    table = alite_jax.sweep(config, grid, tmp_path)
    again = alite_jax.sweep(config, grid, tmp_path)
    assert again == table
    assert table[0]["nonzero_parameters"] < table[1]["nonzero_parameters"]
    assert table[0]["teacher_accuracy"] == table[1]["teacher_accuracy"]
    assert sweep_table(table).count("\n") == 2
