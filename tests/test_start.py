"""A teacher alone, and students that start from the student of a finished run."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from fitting import Stop, failing
from tiny import assert_same, tiny_config

import alite_jax
from alite_jax.errors import CheckpointError, ConfigError
from alite_jax.sparsity.masks import magnitude_masks
from alite_jax.training import fit as fit_module
from alite_jax.training import loop
from alite_jax.training.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("models")


@pytest.fixture(scope="module")
def finished(models: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folders of a teacher alone and of two students, dense and sparse."""
    folder = tmp_path_factory.mktemp("start")
    loop.train_teacher(tiny_config(), folder / "teacher")
    changes = {"student.density": 1.0, "teacher.workdir": str(folder / "teacher")}
    alite_jax.train(tiny_config(changes), folder / "dense")
    # The folder of a teacher goes on with its student.
    shutil.copytree(folder / "teacher", folder / "sparse")
    alite_jax.train(tiny_config(), folder / "sparse")
    return folder


def student(folder: Path, **changes: Any) -> Any:
    """The student's stored parameters, statistics and masks."""
    config = tiny_config(changes)
    data = loop.load_data(config)
    return loop.create_networks(config, data, folder)[1].restore(data.image_shape)


def test_a_teacher_alone(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished / "teacher"
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary) == {
        *("dataset", "seed", "teacher", "seconds", "environment", "config"),
    }
    assert {line["phase"] for line in read_metrics(folder)} == {"teacher"}
    assert not (folder / "checkpoints").exists()
    assert loop.train_teacher(tiny_config(), folder) == summary


def test_the_folder_of_a_teacher_goes_on_with_its_student(finished: Path) -> None:
    alone, both = (
        json.loads((finished / name / "summary.json").read_text())
        for name in ("teacher", "sparse")
    )
    assert both["teacher"] == alone["teacher"]
    training = "teacher_training"
    assert both["seconds"][training] == alone["seconds"][training] > 0
    assert both["student"]["density"] == pytest.approx(0.25, abs=1e-3)


def test_a_teacher_that_is_given_is_not_trained(finished: Path, tmp_path: Path) -> None:
    changes = {"teacher.workdir": str(finished / "teacher")}
    with pytest.raises(ConfigError, match="whose teacher needs no training"):
        loop.train_teacher(tiny_config(changes), tmp_path)


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


@pytest.mark.parametrize("method", ["static", "gradual"])
@pytest.mark.parametrize("start", ["dense", "sparse"])
def test_a_student_starts_from_the_weights_of_another(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    start: str,
    method: str,
) -> None:
    """What is in the network before its first step, pruned to the largest weights."""
    changes = {
        "teacher.workdir": str(finished / "teacher"),
        "student.init_workdir": str(finished / start),
        "student.density": 0.25,
        "pruning.method": method,
    }
    begun = []

    def watch(tree: Any) -> Any:
        begun.append(tree)
        raise Stop

    monkeypatch.setattr(fit_module.parallel, "replicate", watch)
    with pytest.raises(Stop):
        alite_jax.train(tiny_config(changes), tmp_path)
    (state,) = begun
    before = student(
        finished / start, **{"student.density": 1 if start == "dense" else 0.25}
    )
    masks = magnitude_masks(before["params"], 0.25 if method == "static" else 1.0)
    assert_same(jax.device_get(state.masks), jax.device_get(masks))
    expected = jax.tree.map(np.multiply, before["params"], jax.device_get(masks))
    assert_same(jax.device_get(state.params), expected)
    assert_same(jax.device_get(state.batch_stats), before["batch_stats"])
    assert state.step == 0


def test_a_resumed_run_does_not_need_its_start(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / "dense", tmp_path / "start")
    changes = {
        "teacher.workdir": str(finished / "teacher"),
        "student.init_workdir": str(tmp_path / "start"),
        "pruning.method": "gradual",
    }
    config = tiny_config(changes)
    writer = loop.MetricWriter
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write", failing(writer.write, 8))
        with pytest.raises(Stop):
            alite_jax.train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "start")
    summary = alite_jax.train(config, tmp_path / "run")
    assert summary["student"]["density"] == pytest.approx(0.25, abs=1e-3)
    assert alite_jax.evaluate(config, tmp_path / "run")["student"] == summary["student"]


def test_a_compacted_student_is_trained_on(finished: Path, tmp_path: Path) -> None:
    """Twice in a row, and evaluated without the run that it came from."""
    pruned = {
        "teacher.workdir": str(finished / "teacher"),
        "pruning.structure": "channels",
        "pruning.macs": 0.7,
        "pruning.every_steps": 2,
        "student.density": 1.0,
    }
    first = alite_jax.train(tiny_config(pruned), tmp_path / "pruned")
    config = tiny_config(
        {
            "teacher.workdir": str(finished / "teacher"),
            "student.init_workdir": str(tmp_path / "pruned"),
            "student.init_compact": True,
            "student.density": 1.0,
            "student.epochs": 1,
        }
    )
    summary = alite_jax.train(config, tmp_path / "on")
    assert summary["student"]["macs"] <= 0.72 * first["student"]["macs"]
    assert summary["student"]["parameters"] < first["student"]["parameters"]
    shutil.rmtree(tmp_path / "pruned")
    found = alite_jax.evaluate(config, tmp_path / "on")
    assert found["student"] == summary["student"]
    again = tiny_config(
        {
            "teacher.workdir": str(finished / "teacher"),
            "student.init_workdir": str(tmp_path / "on"),
            "student.density": 0.25,
            "student.epochs": 1,
            "pruning.method": "static",
        }
    )
    last = alite_jax.train(again, tmp_path / "again")
    assert last["student"]["parameters"] == summary["student"]["parameters"]


def test_widths_of_a_run_that_never_began_are_forgotten(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another start in the same folder, which is resumed, is not cut by them."""
    (tmp_path / "widths.json").write_text("[[1, 1, 1, 2, 1]]\n")
    config = tiny_config(
        {
            "teacher.workdir": str(finished / "teacher"),
            "student.init_workdir": str(finished / "dense"),
        }
    )
    writer = loop.MetricWriter
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write", failing(writer.write, 8))
        with pytest.raises(Stop):
            alite_jax.train(config, tmp_path)
    summary = alite_jax.train(config, tmp_path)
    dense = json.loads((finished / "dense" / "summary.json").read_text())
    assert summary["student"]["parameters"] == dense["student"]["parameters"]
    (tmp_path / "widths.json").write_text("[[1,")
    with pytest.raises(CheckpointError, match="widths.json is damaged"):
        alite_jax.evaluate(config, tmp_path)


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
