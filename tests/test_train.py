"""Whole runs: what they leave behind, how they resume, whose teacher they use."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from fitting import Stop, failing, records
from tiny import assert_same, tiny_config

import alite_jax
from alite_jax.config.run_config import to_json
from alite_jax.errors import CheckpointError, ConfigError
from alite_jax.jobs import train as train_job
from alite_jax.models.precision import computing_dtype
from alite_jax.runs import folder as folder_module
from alite_jax.runs.metrics import MetricWriter

# What a machine without accelerators makes of the configuration.
SETTLED = {"compute.dtype": "float32"}
pytestmark = pytest.mark.usefixtures("models")


@pytest.fixture(scope="module")
def finished(models: None, finished_run: Path) -> Any:
    """The folder and the summary of an undisturbed run."""
    return finished_run, json.loads((finished_run / "summary.json").read_text())


def networks(folder: Path, **changes: Any) -> Any:
    """The stored teacher and student of a run."""
    config = tiny_config(changes)
    data = train_job.load_data(config)
    return [
        network.restore(data.image_shape)
        for network in train_job.create_networks(config, data, folder)
    ]


def result(summary: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on how often a run was interrupted."""
    others = ("seconds", "environment", "config")
    return {name: part for name, part in summary.items() if name not in others}


def snapshot(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Time of change and content of every file below a folder."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def must_not_run(*arguments: Any, **options: Any) -> None:
    raise AssertionError("called")


def test_a_run_leaves_its_files(finished: Any) -> None:
    folder = finished[0]
    found = sorted(path.name for path in folder.iterdir())
    files = "checkpoints", "config.json", "metrics.jsonl", "summary.json", "teacher"
    files += ("teacher.safetensors",)
    assert found == [*files]
    assert (folder / "config.json").read_text() == to_json(tiny_config(SETTLED))
    for checkpoints, last in (("teacher", "8"), ("checkpoints", "12")):
        assert last in {path.name for path in (folder / checkpoints).iterdir()}


def test_the_record_has_both_phases(finished: Any) -> None:
    lines = records(finished[0])
    for phase, steps, density in (("teacher", 8, 1.0), ("student", 12, 0.25)):
        training = [x for x in lines if x["phase"] == phase and "loss" in x]
        assert [x["step"] for x in training] == list(range(1, steps + 1))
        for line in training:
            assert line["density"] == density
            assert 0 <= line["accuracy"] <= 1
            joint = 0.1 * line["task_loss"] + 0.9 * line["distillation_loss"]
            alone = line["task_loss"]
            wanted = alone if phase == "teacher" else joint
            assert line["loss"] == pytest.approx(wanted, rel=1e-5)
            assert (line["distillation_loss"] > 0) == (phase == "student")


def test_the_summary_has_the_agreed_fields(finished: Any) -> None:
    summary = finished[1]
    assert set(summary) == {
        *("dataset", "seed", "teacher", "student", "ratios", "accuracy_drop"),
        *("seconds", "environment", "config"),
    }
    for network in ("teacher", "student"):
        assert set(summary[network]) == {
            *("name", "accuracy", "density", "parameters", "nonzero_parameters"),
            *("macs", "nonzero_macs", "class_accuracy", "mean_class_accuracy"),
        }
    assert set(summary["ratios"]) == {"parameters", "macs", "nonzero_macs"}
    assert set(summary["seconds"]) == {
        *("teacher_training", "student_training", "this_process", "of_this_process")
    }
    seconds = dict(summary["seconds"])
    parts = seconds.pop("of_this_process")
    assert list(parts) == [
        *("reading", "compiling", "training", "evaluating", "writing", "other")
    ]
    assert all(spent > 0 for spent in [*seconds.values(), *parts.values()])
    assert sum(parts.values()) == pytest.approx(seconds["this_process"])
    environment = summary["environment"]
    assert environment["version"] == alite_jax.__version__
    assert environment["precision"] == "float32" and len(environment["data"]) == 64
    assert summary["environment"]["deterministic"] is True
    assert (summary["dataset"], summary["seed"]) == ("digits", 0)
    assert summary["config"] == json.loads(to_json(tiny_config(SETTLED)))


def test_the_summary_s_numbers_are_right(finished: Any) -> None:
    """Counted by hand for one block of width 8 on 8x8 images of one channel."""
    folder, summary = finished
    teacher, student = summary["teacher"], summary["student"]
    norms = 2 * (8 + 8 + 8 + 32 + 32)
    teacher_kernels = 72 + 64 + 576 + 256 + 256
    student_kernels = 72 + 64 + 3 * 64 + 256 + 256
    assert teacher["name"] == "tiny"
    assert teacher["parameters"] == teacher_kernels + norms + 330 == 1730
    assert teacher["nonzero_parameters"] == 1730
    assert teacher["macs"] == teacher["nonzero_macs"] == 64 * teacher_kernels + 320
    assert student["name"] == "tiny_attention"
    embeddings = 2 * 3 * 4
    assert student["parameters"] == student_kernels + norms + embeddings + 330 == 1370
    assert student["nonzero_parameters"] == 1370 - (student_kernels + 320) * 3 // 4
    core = 64 * 8 * (2 * 9 + 3)
    assert student["macs"] == 64 * student_kernels + 320 + core
    assert (teacher["density"], student["density"]) == (1.0, 0.25)
    masks = networks(folder)[1]["masks"]
    kept = sum(int(mask.sum()) for mask in jax.tree.leaves(masks) if mask.ndim)
    classifier = int(masks["classifier"]["kernel"].sum())
    assert student["nonzero_macs"] == 64 * (kept - classifier) + classifier + core
    assert summary["ratios"] == {
        "parameters": 1730 / student["nonzero_parameters"],
        "macs": teacher["macs"] / student["macs"],
        "nonzero_macs": teacher["macs"] / student["nonzero_macs"],
    }
    drop = 100 * (teacher["accuracy"] - student["accuracy"])
    assert summary["accuracy_drop"] == drop
    for phase in ("teacher", "student"):
        evaluations = [
            line["eval_accuracy"]
            for line in records(folder)
            if line["phase"] == phase and "eval_accuracy" in line
        ]
        assert summary[phase]["accuracy"] == evaluations[-1]
        # Whole images of the 50.
        assert (50 * evaluations[-1]) == pytest.approx(round(50 * evaluations[-1]))
        of_classes = summary[phase]["class_accuracy"]
        assert list(of_classes) == [str(digit) for digit in range(10)]
        counts = np.bincount(train_job.load_data(tiny_config()).evaluation.labels)
        accuracies = np.array([*of_classes.values()])
        assert np.average(accuracies, weights=counts) == pytest.approx(evaluations[-1])
        assert summary[phase]["mean_class_accuracy"] == pytest.approx(accuracies.mean())


def test_no_weight_of_the_teacher_is_in_the_student_s_checkpoint(finished: Any) -> None:
    folder = finished[0]
    teacher, student = networks(folder)
    meta = json.loads((folder / "checkpoints/12/meta/metadata").read_text())
    stored = meta["leaves"]["model"]
    expected = jax.tree_util.tree_leaves_with_path(student)
    assert sorted(stored) == sorted(
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in expected
    )
    assert not any("spatial/kernel" in name for name in stored)
    assert {name.split("/")[0] for name in meta["leaves"]["train"]} == {
        *("step", "opt_state")
    }
    digests = {
        leaf["sha256"]
        for leaf in json.loads((folder / "teacher/8/meta/metadata").read_text())[
            "leaves"
        ]["model"].values()
        if len(leaf["shape"]) > 1
    }
    assert digests
    for leaves in meta["leaves"].values():
        assert not digests & {leaf["sha256"] for leaf in leaves.values()}
    kernel = teacher["params"]["stage1_block1"]["spatial"]["kernel"]
    assert kernel.shape == (3, 3, 8, 8)


@pytest.mark.processes
def test_the_surroundings_of_a_run_do_not_matter(finished: Any, tmp_path: Path) -> None:
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("strict"),
        jax.transfer_guard("disallow"),
    ):
        summary = alite_jax.train(tiny_config({"logging.tensorboard": True}), tmp_path)
    assert result(summary) == result(finished[1])
    assert_same(networks(tmp_path), networks(finished[0]))
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert stored == json.loads(json.dumps(summary))
    for phase in ("teacher", "student"):
        assert any((tmp_path / "tensorboard" / phase).iterdir())


def test_a_finished_run_is_only_reported(
    finished: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, summary = finished
    before = snapshot(folder)
    monkeypatch.setattr(train_job, "fit", must_not_run)
    monkeypatch.setattr(train_job, "load_data", must_not_run)
    # What the run writes down and shows may change from call to call.
    again = alite_jax.train(tiny_config({"logging.every_steps": 3}), folder)
    assert again == summary
    assert snapshot(folder) == before
    output = capsys.readouterr().out
    assert "holds a finished run" in output
    assert "non-zero parameters" in output


@pytest.mark.processes
def test_a_run_resumes_wherever_it_was_stopped(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the teacher's training, in the student's, and with only the summary to do."""
    # Fields that have no influence on the result may change on the way.
    for owner, name, calls in (
        (MetricWriter, "write", 6),
        (MetricWriter, "write", 10),
        (train_job, "network_summary", 1),
    ):
        changes = {"checkpoint.every_steps": 3}
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing(getattr(owner, name), calls))
            with pytest.raises(Stop):
                alite_jax.train(tiny_config(changes), tmp_path)
        assert not (tmp_path / "summary.json").exists()
        phases = {line["phase"] for line in records(tmp_path)}
        assert phases == ({"teacher"} if calls == 6 else {"teacher", "student"})
    changes = {"logging.every_steps": 1, "checkpoint.keep": 3}
    summary = alite_jax.train(tiny_config(changes), tmp_path)
    folder, wanted = finished
    assert result(summary) == result(wanted)
    assert records(tmp_path) == records(folder)
    assert_same(networks(tmp_path), networks(folder))


@pytest.mark.processes
def test_the_teacher_of_a_finished_run_is_used_as_it_is(
    finished: Any, tmp_path: Path
) -> None:
    """The same seed then makes the very same student."""
    folder, wanted = finished
    before = snapshot(folder)
    changes = {"teacher.workdir": str(folder), "teacher.epochs": 9}
    summary = alite_jax.train(tiny_config(changes), tmp_path)
    assert summary["teacher"] == wanted["teacher"]
    assert summary["student"] == wanted["student"]
    assert "teacher_training" not in summary["seconds"]
    assert not (tmp_path / "teacher").exists()
    assert {line["phase"] for line in records(tmp_path)} == {"student"}
    assert_same(networks(tmp_path, **changes), networks(folder))
    assert snapshot(folder) == before


def test_the_teacher_of_an_unfinished_run_is_refused(
    finished: Any, tmp_path: Path
) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(finished[0], unfinished)
    (unfinished / "summary.json").unlink()
    config = tiny_config({"teacher.workdir": str(unfinished)})
    with pytest.raises(CheckpointError, match="holds no finished run"):
        alite_jax.train(config, tmp_path / "run")
    # The run can still be made with another teacher.workdir.
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_another_configuration_in_the_same_folder_is_refused(finished: Any) -> None:
    folder = finished[0]
    before = snapshot(folder)
    changes = {
        "student.density": 0.5,
        "pruning.method": "set",
        "compute.dtype": "bfloat16",
        "compute.accumulation": 2,
    }
    with pytest.raises(ConfigError) as caught:
        alite_jax.train(tiny_config(changes), folder)
    message = str(caught.value)
    assert "student.density (was 0.25, is 0.5)" in message
    assert "pruning.method (was 'sparse_momentum', is 'set')" in message
    assert "compute.dtype (was 'float32', is 'bfloat16')" in message
    assert "compute.accumulation (was 1, is 2)" in message
    assert "another --workdir" in message
    assert snapshot(folder) == before


def test_a_run_keeps_its_number_format_on_another_machine(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_an_accelerator(name: str) -> Any:
        return computing_dtype("bfloat16" if name == "auto" else name)

    monkeypatch.setattr(folder_module, "computing_dtype", on_an_accelerator)
    folder, summary = finished
    settled = folder_module.settled
    assert settled(tiny_config(), tmp_path).compute.dtype == "bfloat16"
    assert settled(tiny_config(SETTLED), tmp_path).compute.dtype == "float32"
    assert settled(tiny_config(), folder).compute.dtype == "float32"
    assert alite_jax.train(tiny_config(), folder) == summary
    with pytest.raises(ConfigError, match="was 'float32', is 'bfloat16'"):
        alite_jax.train(tiny_config({"compute.dtype": "bfloat16"}), folder)


def test_evaluate_finds_the_accuracies_again(finished: Any) -> None:
    folder, summary = finished
    before = snapshot(folder)
    found = alite_jax.evaluate(tiny_config({"data.eval_batch_size": 22}), folder)
    assert result(found) == result(summary)
    assert set(found["seconds"]) == {"evaluation"}
    assert snapshot(folder) == before


def test_evaluate_needs_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="train the model there first"):
        alite_jax.evaluate(tiny_config(), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.processes
def test_a_dense_student_without_distillation(finished: Any, tmp_path: Path) -> None:
    changes = {
        "student.density": 1.0,
        "distillation.alpha": 0.0,
        "student.epochs": 1,
        "teacher.workdir": str(finished[0]),
    }
    summary = alite_jax.train(tiny_config(changes), tmp_path)
    student = summary["student"]
    assert student["density"] == 1.0
    assert student["nonzero_parameters"] == student["parameters"]
    assert student["nonzero_macs"] == student["macs"]
    student_lines = [line for line in records(tmp_path) if "loss" in line]
    assert {line["distillation_loss"] for line in student_lines} == {0.0}
    masks = networks(tmp_path, **changes)[1]["masks"]
    assert all(mask.shape == () and mask for mask in jax.tree.leaves(masks))
