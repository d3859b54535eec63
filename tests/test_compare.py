"""Several runs beside each other."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import run_command, tiny_config

import alite_jax
from alite_jax.config.run_config import to_json
from alite_jax.errors import CheckpointError, ConfigError
from alite_jax.pages.run_comparison import ComparedRun, comparison, curves, differences

pytestmark = pytest.mark.usefixtures("models")


def test_runs_in_every_state(
    finished_run: Path,
    taught_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    begun, joined = tmp_path / "begun", tmp_path / "joined"
    changes = {"student.density": 0.5, "logging.every_steps": 7}
    for folder, teacher in ((begun, ""), (joined, str(finished_run))):
        folder.mkdir()
        config = tiny_config(changes | {"teacher.workdir": teacher})
        (folder / "config.json").write_text(to_json(config))
    page = tmp_path / "page.html"
    folders = [finished_run, taught_run, begun, joined, f"{finished_run}/"]
    flags = [f"--runs={folder}" for folder in folders]
    assert run_command("--job=compare", *flags, f"--page={page}") == 0
    told = capsys.readouterr().out.splitlines()
    summary = json.loads((finished_run / "summary.json").read_text())
    accuracy = f"{100 * summary['student']['accuracy']:.2f} %"
    assert accuracy in told[1] and told[1].endswith("  finished")
    assert told[2].endswith("  teacher, epoch 2 of 2")
    assert told[3].endswith("  teacher, epoch 0 of 2")
    assert told[4].endswith("  student, epoch 0 of 3")
    # What has no part in a result is not told.
    density = next(line for line in told if line.startswith("student.density"))
    assert density.split() == ["student.density", "0.25", "0.25", "0.5", "0.5"]
    assert not any(line.startswith("logging") for line in told)
    html = page.read_text()
    assert "<h1>4 runs compared</h1>" in html and "data:image/png" in html
    assert "http" not in html


def test_folders_without_a_run(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere holds no run: it has no config"):
        alite_jax.compare([finished_run, tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match="nothing to compare"):
        alite_jax.compare([])
    with pytest.raises(ConfigError, match="workdirs is the text 'runs/a', but must be"):
        alite_jax.compare("runs/a")


@pytest.mark.parametrize("page", ["folder", ".", "/"])
def test_a_folder_in_the_place_of_the_page(
    page: str, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="Is a directory"):
        alite_jax.compare([finished_run], page)
    assert os.listdir() == ["folder"]


def test_all_runs_of_a_folder_that_has_a_page_already(
    finished_run: Path, tmp_path: Path
) -> None:
    page = tmp_path / "runs" / "compare" / "index.html"
    shutil.copytree(finished_run, tmp_path / "runs" / "a")
    for _ in range(2):
        rows = alite_jax.compare(sorted((tmp_path / "runs").iterdir()), page)
        assert [row["run"] for row in rows] == ["a"]
    # A page may lie in a run's folder, too.
    (row,) = alite_jax.compare([tmp_path / "runs" / "a"], tmp_path / "runs/a/page.html")
    assert row["run"] == "a"


def test_one_run(finished_run: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"c\xe9py")  # No text, but the name of a folder.
    copy = shutil.copytree(finished_run, tmp_path / name)
    (row,) = alite_jax.compare([copy, os.path.relpath(copy)], tmp_path / "page.html")
    assert row["run"] == r"c\udce9py"
    page = (tmp_path / "page.html").read_text()
    assert "Nothing but what has no part in a result." in page


def make_run(name: str, records: list[dict[str, Any]], **changes: Any) -> ComparedRun:
    config = {
        **{"data.name": "digits", "student.model": "m", "student.density": 0.1},
        **{"student.epochs": 4, "teacher.epochs": 2},
    }
    return ComparedRun(name, config | changes, {}, records)


def test_curves_run_over_epochs() -> None:
    records = [
        {"phase": "student", "step": 5, "task_loss": 2.0},
        {"phase": "student", "step": 10, "task_loss": None},
        {"phase": "student", "step": 10, "eval_accuracy": 0.5},
    ]
    runs = [make_run("a", records), make_run("b", [], **{"data.name": "other"})]
    losses, accuracies = curves(runs).axes
    drawn = [line for line in losses.lines if len(line.get_xdata())]
    (line,) = drawn
    assert line.get_xdata().tolist() == [0.5, 1.0]
    np.testing.assert_equal(line.get_ydata(), [2.0, np.nan])
    assert [x.get_ydata().tolist() for x in accuracies.lines][1] == [50.0]
    first, second = comparison(runs)
    assert first["accuracy"] == 0.5 and first["state"] == "student, epoch 1 of 4"
    assert second["accuracy"] is None and second["state"] == "teacher, epoch 0 of 2"
    assert differences(runs) == [["field", "a", "b"], ["data.name", "digits", "other"]]
