"""Paths of people: home folders, and what a run records of the folders it needs."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import SETTINGS, run_command, tiny_config

import alite_jax
from alite_jax.config.run_config import FILE, read_config
from alite_jax.deploy import artefact
from alite_jax.errors import ArtefactError, CheckpointError, ConfigError, InUseError
from alite_jax.jobs.study import run_study
from alite_jax.paths import user_path
from alite_jax.runs.folder import at_work, claim

pytestmark = pytest.mark.usefixtures("models")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder; one stands beside it."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    (tmp_path / "beside").mkdir()
    monkeypatch.chdir(tmp_path / "beside")
    return folder


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("~", "home"),
        ("~/runs/x", "home/runs/x"),
        ("./~/x", "beside/~/x"),
        ("a/~", "beside/a/~"),
        (Path("~/x"), "home/x"),
        ("b[1]", "beside/b[1]"),
    ],
)
def test_a_home_folder_is_found(home: Path, given: Any, found: str) -> None:
    assert Path.cwd() / user_path(given) == home.parent / found


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("~nobody-of-this-name/x", "begins with a home folder that is not known here"),
        ("a\0b", "is no path: it has a null character"),
        ("gs://bucket/x", "gs://bucket/x is no path on this machine: mount the bucket"),
    ],
)
def test_what_is_no_path_is_one_sentence(given: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        user_path(given)


def test_every_path_of_a_person_may_begin_at_home(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(error: type[Exception], call: Any, *arguments: Any) -> str:
        with pytest.raises(error) as caught:
            call(*arguments)
        return str(caught.value)

    config = tiny_config()
    for field in ("teacher.workdir", "student.init_workdir"):
        changed = alite_jax.override(config, {field: "~/other"})
        told = refused(CheckpointError, alite_jax.evaluate, changed, "~/run")
        assert f"{field} is {home}/other, but that folder holds no finished run" in told
    told = refused(ArtefactError, artefact.load, "~/e/export")
    assert f"{home}/e/export holds no exported network" in told
    (home / "x.py").write_text("def get_config():\n    1 / 0\n")
    assert f"{home}/x.py, line 2" in refused(
        ConfigError, alite_jax.get_config, "~/x.py"
    )
    (home / "study").mkdir()
    (home / "study" / FILE).write_text("{}")
    study = alite_jax.get_study("digits")
    told = refused(ConfigError, run_study, study, "~/study", "~/results")
    assert f"{home}/study holds a run of its own" in told
    data = alite_jax.override(config, {"data.name": "cifar10", "data.data_dir": "~/d"})
    assert f"not prepared in {home}/d" in refused(
        Exception, alite_jax.evaluate, data, "~/run"
    )
    for job in ("evaluate", "export"):
        arguments = f"--job={job}", "--workdir=~/run", "--config=digits"
        fields = (f"--config.{name}={value}" for name, value in SETTINGS.items())
        assert run_command(*arguments, *fields) == 2
        assert str(home / "run") in capsys.readouterr().err
    assert not (home / "run").exists()
    assert not list(Path.cwd().iterdir())


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two runs that have begun, made from the folder above it."""
    monkeypatch.chdir(tmp_path)
    for name in ("teacher", "student"):
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
    return tmp_path / "runs"


def given(teacher: str, **others: Any) -> Any:
    return alite_jax.override(
        tiny_config(), {"teacher.workdir": teacher, "student": others}
    )


@pytest.mark.parametrize("relative", [True, False])
def test_a_moved_folder_of_runs_stays_whole(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    start = Path("runs") if relative else runs
    config = given(f"{start}/teacher", init_workdir=f"{start}/teacher")
    claim(start / "student", config)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    # From another folder it is the same run, however the teacher is named ...
    for teacher in (runs / "teacher", "../runs/teacher", "../runs/student/../teacher"):
        claim(runs / "student", given(str(teacher), init_workdir="../runs/teacher"))
    with pytest.raises(ConfigError, match="another configuration: teacher.workdir"):
        claim(runs / "student", given("runs/teacher", init_workdir="../runs/teacher"))
    # ... and where the folder lies now, too.
    moved = tmp_path / "elsewhere" / "moved"
    shutil.move(runs, moved)
    for folder in (moved / "student", Path("moved/student")):
        found = read_config(folder)
        for field in (found.teacher.workdir, found.student.init_workdir):
            assert Path(field).resolve() == moved / "teacher"
        claim(folder, found)


def test_what_earlier_versions_recorded_is_found(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wrote what was typed, whatever folder it was typed in."""
    recorded = runs / "student" / FILE
    recorded.write_text('{"teacher": {"workdir": "runs/teacher"}}')
    monkeypatch.chdir(runs / "teacher")
    assert Path(read_config(runs / "student").teacher.workdir) == runs / "teacher"
    moved = tmp_path / "new" / "runs"
    shutil.move(runs, moved)
    monkeypatch.chdir(tmp_path)
    assert Path(read_config(moved / "student").teacher.workdir) == moved / "teacher"


def test_folders_of_data_are_recorded_whole(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = alite_jax.override(
        tiny_config(), {"data.data_dir": "data", "data.manual_dir": "gs://bucket/x"}
    )
    claim(runs / "fresh", config)
    found = read_config(runs / "fresh").data
    assert found.data_dir == str(runs.parent / "data")
    assert found.manual_dir == "gs://bucket/x"


def test_a_teacher_that_was_moved_without_the_run_is_named_anew(
    runs: Path, tmp_path: Path
) -> None:
    claim(runs / "student", given("runs/teacher"))
    (runs / "teacher").rename(tmp_path / "apart")
    claim(runs / "student", given("apart"))


WORKING = """
import sys, time
from pathlib import Path
from alite_jax.runs.folder import at_work
with at_work(Path(sys.argv[1])):
    print("at work", flush=True)
    time.sleep(600)
"""


@pytest.mark.processes
def test_one_process_works_in_a_folder_until_it_ends_or_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKING, str(tmp_path / "run")],
        cwd=Path(__file__).resolve().parent.parent,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"at work\n"
        for job in ("train", "export"):
            command = (f"--job={job}", "--config=digits", f"--workdir={tmp_path}/run")
            assert run_command(*command) == 2
            told = capsys.readouterr().err
            assert f"another process is at work in {tmp_path}/run (process" in told
            assert told.count("\n") == 1 and f"{process.pid} on " in told
        assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [".lock"]
        process.kill()
    with at_work(tmp_path / "run"), pytest.raises(InUseError):
        alite_jax.train(tiny_config(), tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())
