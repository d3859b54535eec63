"""Services that follow runs, by stand-ins for their modules."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from fitting import make_config
from tiny import run_command, tiny_config

import alite_jax
from alite_jax.errors import ConfigError
from alite_jax.runs import processes
from alite_jax.runs.metrics import MetricWriter, read_metrics
from alite_jax.runs.trackers import check_trackers, open_trackers

pytestmark = pytest.mark.usefixtures("models")


class Service:
    """Stands in for the module of a service; a name in `fails` raises."""

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[str, int, dict[str, float]]] = []
        self.finished = 0
        self.fails = ""
        self.Settings = dict

    def init(self, **options: Any) -> Any:
        self.check("init")
        self.begun.append(options)

        def log(metrics: dict[str, float], step: int) -> None:
            self.check("log")
            self.logged.append((options["name"], step, metrics))

        def finish() -> None:
            self.check("finish")
            self.finished += 1

        return SimpleNamespace(log=log, finish=finish)

    def check(self, name: str) -> None:
        if self.fails == name:
            raise OSError("no\nnetwork")


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    service = Service()
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, service)
    return service


def open_writer(folder: Path, trackers: str) -> MetricWriter:
    config = make_config(logging__trackers=trackers, data__folder="/secret/photos")
    return MetricWriter(folder, open_trackers(config, folder))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_phase_is_a_run_that_is_gone_on_with(
    name: str, service: Service, tmp_path: Path
) -> None:
    folder = tmp_path / "digits"
    with open_writer(folder, name) as writer:
        writer.rewind("teacher", 0)
        writer.write(1, {"loss": 3.0}, prefix="teacher")
        writer.rewind("student", 0)
        for step in (1, 2):
            writer.write(step, {"loss": step / 2})
    assert service.finished == 2
    # Cut off after step 2, and gone on with from step 1.
    with open_writer(folder, name) as writer:
        writer.rewind("student", 1)
        writer.write(2, {"loss": 1.0})
        writer.write(2, {"eval_accuracy": 0.5})
        writer.write(3, {"loss": 1.5})
    teacher, student, again = service.begun
    assert student["name"] == again["name"] != teacher["name"]
    assert teacher["name"].startswith("digits-teacher-")
    assert (again["resume"], again["group"]) == ("allow", "digits")
    assert again["project"] == "alite_jax"
    assert [logged[1:] for logged in service.logged] == [
        (1, {"loss": 3.0}),
        (1, {"loss": 0.5}),
        (2, {"loss": 1.0}),
        (2, {"eval_accuracy": 0.5}),
        (3, {"loss": 1.5}),
    ]
    names = json.loads((folder / "trackers.json").read_text())
    assert names[f"{name}/student"] == student["name"]
    # Nothing of the machine, or of other runs.
    assert again["config"]["student.density"] == 0.25
    assert "secret" not in json.dumps(again["config"])
    assert not [field for field in again["config"] if field.endswith("workdir")]


def test_folders_that_no_service_would_take_as_a_name(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lr: 5%"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with open_writer(Path(), "wandb,wandb") as writer:
        writer.rewind("student", 0)
    (begun,) = service.begun
    assert begun["group"] == "lr: 5%" and begun["id"].startswith("lr__5_-student-")


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_what_fails_is_said_once(
    fails: str, service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.fails = fails
    with open_writer(tmp_path, "wandb") as writer:
        for phase in ("teacher", "student"):
            writer.rewind(phase, 0)
            writer.write(1, {"loss": 1.0}, prefix=phase)
    said = capsys.readouterr().err
    assert said == (
        "wandb failed (OSError: no network); the training goes on without it, and"
        " metrics.jsonl has everything\n"
    )
    assert len(read_metrics(tmp_path)) == 2


def test_damaged_names_do_not_stop_a_training(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trackers.json").write_text('{"wandb/stu')
    with open_writer(tmp_path, "wandb") as writer:
        writer.rewind("student", 0)
        writer.write(1, {"loss": 1.0})
    assert "wandb failed (JSONDecodeError: " in capsys.readouterr().err
    assert service.begun == [] and len(read_metrics(tmp_path)) == 1


def test_the_first_of_several_processes_waits_for_no_other(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only it has a writer: whoever asked the others here would wait forever."""

    def wait(value: Any) -> Any:
        pytest.fail("the other processes are asked")

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "_from_first", wait)
    with open_writer(tmp_path, "trackio,wandb") as writer:
        writer.rewind("student", 0)
        writer.write(1, {"loss": 1.0})
    assert len(service.begun) == 2


def test_what_is_not_installed_is_said_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    config = tiny_config({"logging.trackers": "trackio", "data.train_split": "nowhere"})
    for train in (alite_jax.train, alite_jax.train_teacher):
        with pytest.raises(ConfigError, match="run: pip install trackio$"):
            train(config, tmp_path)
    check_trackers(tiny_config())


def test_an_unknown_service(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("--config.logging.trackers=wandb,mlflow") == 2
    assert "logging.trackers must be '', 'wandb'" in capsys.readouterr().err
