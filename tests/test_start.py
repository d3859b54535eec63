"""A teacher alone, and students that start from the student of a finished run."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from fitting import Stop, failing
from tiny import assert_same, tiny_config

import alite_jax
from alite_jax.errors import CheckpointError, ConfigError
from alite_jax.jobs import train as train_job
from alite_jax.runs import fit as fit_module
from alite_jax.runs.metrics import read_metrics
from alite_jax.sparsity.masks import count_parameters, magnitude_masks

pytestmark = pytest.mark.usefixtures("models")


@pytest.fixture(scope="module")
def finished(
    models: None,
    taught_run: Path,
    finished_run: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folders of a teacher alone and of two students, dense and sparse."""
    folder = tmp_path_factory.mktemp("start")
    shutil.copytree(taught_run, folder / "teacher")
    shutil.copytree(finished_run, folder / "sparse")
    changes = {
        "student.density": 1.0,
        "distillation.alpha": 0.0,
        "teacher.workdir": str(folder / "teacher"),
    }
    alite_jax.train(tiny_config(changes), folder / "dense")
    return folder


def student(folder: Path, **changes: Any) -> Any:
    """The student's stored parameters, statistics and masks."""
    config = tiny_config(changes)
    data = train_job.load_data(config)
    return train_job.create_networks(config, data, folder)[1].restore(data.image_shape)


def begun(config: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is in the network of a run before its first step."""
    trees = []

    def watch(tree: Any) -> Any:
        trees.append(tree)
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(fit_module.parallel, "replicate", watch)
        with pytest.raises(Stop):
            alite_jax.train(config, folder)
    (state,) = trees
    return state


@pytest.mark.processes
def test_a_teacher_alone(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished / "teacher"
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary) == {
        *("dataset", "seed", "teacher", "seconds", "environment", "config"),
    }
    assert {line["phase"] for line in read_metrics(folder)} == {"teacher"}
    assert not (folder / "checkpoints").exists()
    assert train_job.train_teacher(tiny_config(), folder) == summary


@pytest.mark.processes
def test_the_folder_of_a_teacher_goes_on_with_its_student(finished: Path) -> None:
    alone, both = (
        json.loads((finished / name / "summary.json").read_text())
        for name in ("teacher", "sparse")
    )
    assert both["teacher"] == alone["teacher"]
    training = "teacher_training"
    assert both["seconds"][training] == alone["seconds"][training] > 0
    assert both["student"]["density"] == pytest.approx(0.25, abs=1e-3)


@pytest.mark.processes
def test_a_teacher_that_is_given_is_not_trained(finished: Path, tmp_path: Path) -> None:
    changes = {"teacher.workdir": str(finished / "teacher")}
    with pytest.raises(ConfigError, match="whose teacher needs no training"):
        train_job.train_teacher(tiny_config(changes), tmp_path)


@pytest.mark.processes
def test_layer_densities_are_recorded_after_each_epoch(finished: Path) -> None:
    lines = [
        {name: value for name, value in line.items() if name.startswith("density/")}
        for line in read_metrics(finished / "sparse")
    ]
    recorded = [line for line in lines if line]
    masks = student(finished / "sparse")["masks"]
    assert len(recorded) == 3
    query = masks["stage1_block1"]["spatial"]["query"]["kernel"]
    assert recorded[-1]["density/stage1_block1/spatial/query"] == query.mean()
    assert recorded[-1] == recorded[-2] != recorded[0]  # none after the last epoch
    assert "density/stage1_block1/spatial/row_embeddings" not in recorded[0]
    dense = read_metrics(finished / "dense")
    assert not [line for line in dense if any(n.startswith("density/") for n in line)]


@pytest.mark.processes
@pytest.mark.parametrize("method", ["static", "gradual"])
@pytest.mark.parametrize("start", ["dense", "sparse"])
def test_a_student_starts_from_the_weights_of_another(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    start: str,
    method: str,
) -> None:
    """Pruned to the largest weights."""
    changes = {
        "teacher.workdir": str(finished / "teacher"),
        "student.init_workdir": str(finished / start),
        "student.density": 0.25,
        "pruning.method": method,
    }
    state = begun(tiny_config(changes), tmp_path, monkeypatch)
    before = student(
        finished / start, **{"student.density": 1 if start == "dense" else 0.25}
    )
    kept = 0.25 if method == "static" else 1.0
    largest = jax.jit(partial(magnitude_masks, density=kept))
    masks = jax.device_get(largest(before["params"]))
    assert_same(jax.device_get(state.masks), masks)
    expected = jax.tree.map(np.multiply, before["params"], masks)
    assert_same(jax.device_get(state.params), expected)
    assert_same(jax.device_get(state.batch_stats), before["batch_stats"])
    assert state.step == 0


@pytest.mark.processes
def test_a_resumed_run_needs_neither_its_start_nor_other_widths(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Widths that lie in its folder are those of a run that never began."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "widths.json").write_text("[[1, 1, 1, 2, 1]]\n")
    shutil.copytree(finished / "dense", tmp_path / "start")
    changes = {
        "teacher.workdir": str(finished / "teacher"),
        "student.init_workdir": str(tmp_path / "start"),
        "pruning.method": "gradual",
    }
    config = tiny_config(changes)
    writer = train_job.MetricWriter
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write", failing(writer.write, 8))
        with pytest.raises(Stop):
            alite_jax.train(config, folder)
    shutil.rmtree(tmp_path / "start")
    summary = alite_jax.train(config, folder)
    assert summary["student"]["density"] == pytest.approx(0.25, abs=1e-3)
    dense = json.loads((finished / "dense" / "summary.json").read_text())
    assert summary["student"]["parameters"] == dense["student"]["parameters"]
    assert alite_jax.evaluate(config, folder)["student"] == summary["student"]
    (folder / "widths.json").write_text("[[1,")
    with pytest.raises(CheckpointError, match="widths.json is damaged"):
        alite_jax.evaluate(config, folder)


@pytest.mark.processes
def test_a_compacted_student_is_trained_on(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice in a row, and evaluated without the run that it came from."""
    taught = {
        "teacher.workdir": str(finished / "teacher"),
        "student.epochs": 1,
        "distillation.alpha": 0.0,
    }
    pruned = {
        "pruning.structure": "channels",
        "pruning.macs": 0.7,
        "pruning.every_steps": 1,
        "student.density": 1.0,
    }
    first = alite_jax.train(tiny_config(taught | pruned), tmp_path / "pruned")
    start = {
        "student.init_workdir": str(tmp_path / "pruned"),
        "student.init_compact": True,
        "student.density": 1.0,
    }
    config = tiny_config(taught | start)
    summary = alite_jax.train(config, tmp_path / "on")
    assert summary["student"]["macs"] <= 0.72 * first["student"]["macs"]
    assert summary["student"]["parameters"] < first["student"]["parameters"]
    shutil.rmtree(tmp_path / "pruned")
    found = alite_jax.evaluate(config, tmp_path / "on")
    assert found["student"] == summary["student"]
    again = {
        "student.init_workdir": str(tmp_path / "on"),
        "student.density": 0.25,
        "pruning.method": "static",
    }
    state = begun(tiny_config(taught | again), tmp_path / "again", monkeypatch)
    assert count_parameters(state.params) == summary["student"]["parameters"]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student.init_workdir": "teacher"}, "student.init_workdir is .*holds no fin"),
        ({"student.init_workdir": "none"}, "holds no finished run of a student"),
        (
            {"student.init_workdir": "dense", "student.kernel_size": 5},
            "of another model, with kernel_size = 3 where this run has 5",
        ),
    ],
)
def test_a_start_that_does_not_do(
    finished: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    changes = changes | {
        "student.init_workdir": str(finished / changes["student.init_workdir"]),
        "teacher.workdir": str(finished / "teacher"),
    }
    with pytest.raises(CheckpointError, match=message):
        alite_jax.train(tiny_config(changes), tmp_path)
