"""Bad input: one sentence, exit status 2, and nothing that was there is lost."""

import errno
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from archives import write_tfds
from tiny import SETTINGS, run_command, tiny_config

import alite_jax
from alite_jax.config.run_config import to_json
from alite_jax.jobs import train as train_job
from alite_jax.runs.checkpoints import Checkpoints
from alite_jax.runs.fit import Network
from alite_jax.runs.folder import settled
from alite_jax.runs.metrics import read_metrics
from alite_jax.training.state import TrainState

DENSITY = "above 0 and at most 1, the fraction of weights that is kept, found"


pytestmark = pytest.mark.usefixtures("models")


def run(workdir: Path, *changes: str) -> int:
    """Runs a tiny training from the command line and returns the exit status."""
    fields = [f"{key}={value}" for key, value in SETTINGS.items()] + list(changes)
    overrides = [f"--config.{field}" for field in fields]
    return run_command("--config=digits", f"--workdir={workdir}", *overrides)


class Case(NamedTuple):
    """Overrides, and what the sentence about them says."""

    changes: list[str]
    parts: list[str]


CASES = {
    "unknown field": Case(
        ["student.densty=0.1"],
        ["unknown field 'student.densty'; did you mean 'student.density'"],
    ),
    "wrong type": Case(
        ["student.epochs=many"],
        ["student.epochs must be a whole number (int), found 'many'"],
    ),
    "density 0": Case(
        ["student.density=0"], [f"student.density must be {DENSITY} 0.0"]
    ),
    "density above 1": Case(
        ["student.density=1.5"], [f"student.density must be {DENSITY} 1.5"]
    ),
    "density of NaN": Case(
        ["student.density=nan"], ["student.density must be a finite number"]
    ),
    "even kernel": Case(
        ["student.kernel_size=4"],
        ["student.kernel_size must be odd and at least 1, found 4"],
    ),
    "unknown model": Case(
        ["student.model=resnet26_atention"],
        ["student.model has no choice 'resnet26_atention'", "'resnet26_attention'"],
    ),
    "unknown teacher": Case(
        ["teacher.model=vgg"], ["teacher.model has no choice 'vgg'", "resnet50"]
    ),
    "unknown data set": Case(
        ["data.name=cifar"], ["data.name = 'cifar' is unknown to TFDS", "'cifar10'"]
    ),
    "unknown method": Case(
        ["pruning.method=snip"], ["pruning.method has no choice 'snip'"]
    ),
    "heads that do not divide the width": Case(
        ["student.width=28", "student.heads=3"],
        ["3 heads do not divide", "student.width and student.heads"],
    ),
    "batch larger than the data": Case(
        ["data.batch_size=66"], ["data.batch_size = 66 is larger than the training"]
    ),
    "batch that the devices cannot share": Case(
        ["data.batch_size=15"], ["data.batch_size = 15 cannot be shared equally by 2"]
    ),
    "evaluation batch that the devices cannot share": Case(
        ["data.eval_batch_size=15"], ["data.eval_batch_size = 15 cannot be shared"]
    ),
    "no such image size": Case(["data.image_size=-3"], ["data.image_size", "-3"]),
    "unknown split": Case(["data.train_split=tranin"], ["data.train_split", "tranin"]),
    "missing data set": Case(
        ["data.name=cifar10", "data.data_dir=nowhere"],
        ["python -m alite_jax prepare --config=cifar10 --config.data.data_dir=nowhere"],
    ),
    "teacher of no run": Case(
        ["teacher.workdir=nowhere"], ["teacher.workdir is nowhere", "no finished run"]
    ),
}


def check_sentence(error: str, parts: list[str]) -> None:
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    for part in parts:
        assert part in error


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_mistake_is_one_sentence_before_any_training(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: Case,
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "run" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert run(tmp_path / "run", *case.changes) == 2
    check_sentence(capsys.readouterr().err, case.parts)
    assert mine.read_text() == "mine"
    left = {path.name for path in mine.parent.rglob("*") if path.is_file()}
    assert left <= {"notes.txt", "config.json", "metrics.jsonl"}
    assert read_metrics(mine.parent) == []


@pytest.mark.parametrize("name", ["unknown field", "teacher of no run"])
def test_python_raises_what_the_command_line_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(alite_jax.errors.AliteError) as caught:
        config = alite_jax.override(tiny_config(), CASES[name].changes)
        alite_jax.train(config, tmp_path / "run")
    for part in CASES[name].parts:
        assert part in str(caught.value)


def test_the_same_folder_works_once_the_mistake_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that never began does not claim its folder for its configuration."""
    assert run(tmp_path / "run", "student.width=28", "student.heads=3") == 2
    capsys.readouterr()
    trained: list[str] = []

    def no_training(network: Network, *rest: Any) -> Any:
        trained.append(network.phase)
        raise alite_jax.errors.TrainingError("far enough")

    monkeypatch.setattr(train_job, "fit", no_training)
    assert run(tmp_path / "run") == 2
    check_sentence(capsys.readouterr().err, ["far enough"])
    assert trained == ["teacher"]


def test_a_label_outside_the_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    examples = [(image, label % 10) for label in range(19)] + [(image, 10)]
    write_tfds(tmp_path / "data", "cifar10", "3.0.2", examples)
    capsys.readouterr()
    changes = ["data.name=cifar10", f"data.data_dir={tmp_path / 'data'}"]
    splits = ["data.train_split=train", "data.eval_split=test"]
    assert run(tmp_path / "run", *changes, *splits) == 2
    check_sentence(
        capsys.readouterr().err,
        ["example 19 of cifar10 split 'train' has label 10, expected 0 to 9"],
    )
    assert any((tmp_path / "data").rglob("*.array_record*"))


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A run's folder with a checkpoint of its teacher, made without training."""
    config = tiny_config()
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(to_json(settled(config, folder)))
    checkpoints = Checkpoints(
        folder / "teacher", keep=2, identity={"model": "resnet50", "width": 64}
    )
    checkpoints.save(4, jax.device_get(SMALL_STATE), extra={"seconds": 1.0})
    return folder


SMALL_STATE = TrainState(
    step=np.int32(4),
    params={"kernel": np.ones(3, np.float32)},
    batch_stats={},
    opt_state=(),
    masks={"kernel": np.True_},
)


def contents(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_checkpoint_of_another_model(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(stored)
    assert run(stored) == 2
    check_sentence(
        capsys.readouterr().err,
        [
            f"the checkpoints in {stored / 'teacher'} are of another model, with "
            "model = 'resnet50' where this run has 'tiny'"
        ],
    )
    after = contents(stored)
    assert {path: after[path] for path in before} == before
    # As a teacher, too.
    (stored / "summary.json").write_text('{"teacher": {}}')
    assert run(stored.parent / "other", f"teacher.workdir={stored}") == 2
    check_sentence(capsys.readouterr().err, ["are of another model, with model = "])
    after = contents(stored)
    assert {path: after[path] for path in before} == before


def test_a_workdir_in_a_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command("--config=digits", "--workdir=gs://bucket/run") == 2
    wanted = "gs://bucket/run is no path on this machine: mount the bucket"
    check_sentence(capsys.readouterr().err, [wanted])
    assert not list(tmp_path.iterdir())


def test_a_workdir_below_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert run(tmp_path / "file" / "run") == 2
    check_sentence(
        capsys.readouterr().err,
        [f"cannot write {tmp_path / 'file' / 'run' / 'config.json'}", "--workdir"],
    )
    assert (tmp_path / "file").read_text() == "mine"


def test_a_read_only_workdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    # Permissions would not stop a test that runs as root.
    monkeypatch.setattr(Path, "replace", refuse)
    assert run(tmp_path) == 2
    check_sentence(
        capsys.readouterr().err,
        [f"cannot write {tmp_path / 'config.json'} (Read-only file system)"],
    )


def test_a_config_of_the_run_that_cannot_be_read(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = stored / "config.json"
    for text in ("{", "[1]", '{"student": {"densty": 1}}'):
        file.write_text(text)
        assert run(stored) == 2
        check_sentence(capsys.readouterr().err, [f"{file} cannot be used: "])
        assert file.read_text() == text


def test_a_summary_that_was_cut_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settled(tiny_config(), tmp_path)
    (tmp_path / "config.json").write_text(to_json(config))
    (tmp_path / "summary.json").write_text('{"dataset":')
    assert run(tmp_path) == 2
    check_sentence(
        capsys.readouterr().err,
        [f"{tmp_path / 'summary.json'} is not valid JSON", "from the checkpoints"],
    )


def test_a_loss_of_nan_keeps_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [
        "teacher.optimizer.learning_rate=1e30",
        "teacher.optimizer.clip_norm=0",
        "checkpoint.every_steps=1",
    ]
    config = alite_jax.override(tiny_config(), changes)
    for _ in range(2):  # The same command again ends in the same way.
        assert run(tmp_path, *changes) == 2
        error = capsys.readouterr().err
        check_sentence(
            error,
            [f"step 1 is the last good checkpoint in {tmp_path / 'teacher'}: lower"],
        )
        assert re.match(
            r"error: teacher: the (loss|gradient norm) is (nan|inf) at step 2;", error
        )
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1]
        data = train_job.load_data(config)
        teacher, _ = train_job.create_networks(config, data, tmp_path)
        variables = teacher.restore(data.image_shape)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
        assert not (tmp_path / "summary.json").exists()
