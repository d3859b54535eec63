"""Several processes and several devices train what one does."""

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import jax
import pytest
from runs import assert_close_runs, begin, begin_together, end, summary

from alite_jax.errors import ConfigError
from alite_jax.runs import processes
from alite_jax.runs.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("models")

# Sums over a batch are added in another order, which differs by 1e-7 of their size; the
# twelve steps of the student, and two changes of its masks, multiply that by hundreds.
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def alone(tfds_data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one device."""
    folder = tmp_path_factory.mktemp("alone")
    end(begin(folder, 1))
    return folder


@pytest.fixture(scope="module")
def eight(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on eight devices."""
    folder = tmp_path_factory.mktemp("eight")
    end(begin(folder, 8))
    return folder


@pytest.fixture(scope="module")
def together(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in two processes of four devices each."""
    folder = tmp_path_factory.mktemp("together")
    end(*begin_together(folder, 2, 4))
    return folder


@pytest.mark.processes
def test_eight_devices_train_what_one_does(alone: Path, eight: Path) -> None:
    assert_close_runs(eight, alone, tolerance=TOLERANCE)


@pytest.mark.processes
def test_two_processes_train_what_one_does(eight: Path, together: Path) -> None:
    assert_close_runs(together, eight, tolerance=TOLERANCE)
    assert summary(together)["student"]["accuracy"] == pytest.approx(
        summary(eight)["student"]["accuracy"]
    )


@pytest.mark.processes
def test_only_the_first_process_writes(together: Path) -> None:
    lines = [(line["phase"], line["step"]) for line in read_metrics(together)]
    evaluations = 2 + 3
    densities = 3
    assert len(lines) == 2 * 4 + 3 * 4 + evaluations + densities
    assert lines == sorted(lines, key=lambda line: (line[0] != "teacher", line[1]))


@pytest.mark.slow
def test_a_structure_in_two_processes(tfds_data_dir: Path, tmp_path: Path) -> None:
    """Every process cuts out the same units."""
    fields = (
        *("student.width=16", "pruning.structure=heads", "pruning.macs=0.6"),
        *("student.density=0.3", "pruning.every_steps=1"),
    )
    end(begin(tmp_path / "alone", 2, *fields))
    end(*begin_together(tmp_path / "together", 2, 1, *fields))
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert_close_runs(together, alone, *fields, tolerance=TOLERANCE)


@pytest.mark.slow
def test_a_study_in_two_processes(tfds_data_dir: Path, tmp_path: Path) -> None:
    """One start from another included; only the first process publishes."""
    end(begin(tmp_path / "alone", 2, "study"))
    end(*begin_together(tmp_path / "together", 2, 1, "study"))
    files = {
        name: {
            path.relative_to(tmp_path / name / "out"): path.read_text()
            for path in (tmp_path / name / "out").rglob("*.json")
        }
        for name in ("alone", "together")
    }
    assert len(files["alone"]) == 3
    assert files["together"].keys() == files["alone"].keys()
    for path, text in files["alone"].items():
        ours, theirs = (
            json.loads(record)["summary"] for record in (files["together"][path], text)
        )
        networks = theirs.keys() & {"teacher", "student"}
        assert networks
        for network in networks:
            assert ours[network] == pytest.approx(theirs[network], abs=TOLERANCE)


@pytest.mark.processes
@pytest.mark.parametrize(("before", "after"), [(8, 2), (1, 8)])
def test_a_run_goes_on_with_another_number_of_devices(
    alone: Path, eight: Path, tmp_path: Path, before: int, after: int
) -> None:
    folder = tmp_path / "run"
    shutil.copytree({1: alone, 8: eight}[before], folder)
    (folder / "summary.json").unlink()
    steps = sorted((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    shutil.rmtree(steps[-1])  # Back to the end of the epoch before the last.
    end(begin(folder, after))
    assert_close_runs(folder, alone, tolerance=TOLERANCE)


@pytest.mark.processes
def test_a_signal_to_one_process_stops_all(together: Path, tmp_path: Path) -> None:
    fields = "student.epochs=400", f"teacher.workdir={together}"
    first, second = begin_together(tmp_path / "run", 2, 1, *fields)
    while not (tmp_path / "run" / "checkpoints").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)  # What is waited for needs the cores.
    second.send_signal(signal.SIGTERM)
    errors = end(first, second, status=143)
    assert all("student: stopped by SIGTERM after step" in error for error in errors)


@pytest.mark.processes
def test_what_one_process_finds_wrong_stops_all(
    finished_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    errors = end(
        *begin_together(tmp_path / "run", 2, 1, "student.density=0.5"), status=2
    )
    assert all("holds a run with another configuration" in error for error in errors)


def test_processes_that_find_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*place: Any) -> None:
        raise RuntimeError("nobody there")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(ConfigError, match=r"one another \(nobody there\): start all"):
        processes.connect("localhost:1", 2, 0)


def test_one_process_is_the_first_and_acts_itself() -> None:
    assert processes.is_first()
    for decorate in (processes.by_first, processes.first_alone):
        assert decorate(lambda a, b: a - b)(3, b=1) == 2
        with pytest.raises(ZeroDivisionError):
            decorate(lambda: 1 // 0)()
