"""A run that is stopped, by a signal or for good, ends as if it had not been."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fitting
import pytest
from fitting import make_config, records, share_programs, states
from kill_resume import kill_and_resume
from tiny import assert_same, run_command, tiny_config

from alite_jax.data.pipeline import TrainBatches
from alite_jax.errors import StoppedError
from alite_jax.jobs import train as train_job
from alite_jax.runs.checkpoints import Checkpoints
from alite_jax.runs.interruption import Interruption
from alite_jax.runs.timings import Timings

# Lines of the record and checkpoints come every four and every twelve steps.
CONFIG = {"logging__every_steps": 4, "checkpoint__every_steps": 0}


def at_step(step: int, number: int) -> Callable[..., Any]:
    """`TrainBatches.batch`, which sends a signal to this process before a step's."""
    original = TrainBatches.batch

    def call(batches: TrainBatches, wanted: int) -> Any:
        if wanted == step:
            os.kill(os.getpid(), number)
        return original(batches, wanted)

    return call


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of an undisturbed training, whose programs serve the others."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        share_programs(patch, {})
        fitting.train(folder, make_config(**CONFIG))
        yield folder


@pytest.mark.parametrize(
    ("step", "number"),
    [*((step, signal.SIGTERM) for step in (0, 1, 4, 6, 11)), (6, signal.SIGINT)],
)
def test_a_stopped_training_ends_as_if_it_had_not_been(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    number: int,
) -> None:
    config = make_config(**CONFIG)
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(TrainBatches, "batch", at_step(step, number))
        with pytest.raises(StoppedError) as caught:
            fitting.train(tmp_path / "cut", config)
    assert signal.getsignal(number) == before
    assert caught.value.signal == number
    stop = max(states(tmp_path / "cut", config))
    name = signal.Signals(number).name
    assert f"student: stopped by {name} after step {stop}, which is" in str(
        caught.value
    )
    # Batches are made a little ahead of the steps that take them.
    assert max(1, step - 3) <= stop <= step + 1
    fitting.train(tmp_path / "cut", config)
    last = [states(folder, config, last=True) for folder in (tmp_path / "cut", whole)]
    assert_same(*last)
    assert records(tmp_path / "cut") == records(whole)


def test_the_last_checkpoint_is_waited_for_as_writing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Checkpoints.save
    timings = Timings()
    kinds = []

    def slow(checkpoints: Checkpoints, step: int, *args: Any, **options: Any) -> None:
        if step == fitting.TOTAL:
            time.sleep(0.2)  # The training goes on meanwhile, if it does.
            kinds.append(timings._kind)
        save(checkpoints, step, *args, **options)

    monkeypatch.setattr(Checkpoints, "save", slow)
    with timings.spent("training"):
        fitting.train(tmp_path, make_config(**CONFIG), timings=timings)
    assert kinds == ["writing"]


@pytest.fixture
def heard() -> Iterator[None]:
    """The usual answer to Ctrl-C, which a process in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_signal_is_not_held_back(heard: None) -> None:
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.requested(0)
        os.kill(os.getpid(), signal.SIGINT)


def test_other_threads_leave_signals_alone() -> None:
    found = []

    def enter() -> None:
        with Interruption() as interruption:
            found.append((signal.getsignal(signal.SIGTERM), interruption.requested(0)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(before, False)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_ends_with_the_status_of_the_signal(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    def train(config: Any, workdir: str) -> None:
        with Interruption() as interruption:
            os.kill(os.getpid(), number)
            assert interruption.requested(7)
            raise interruption.error("student", 7, workdir)

    monkeypatch.setattr(train_job, "train", train)
    assert run_command("--config=digits", f"--workdir={tmp_path}") == 128 + number
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "after step 7" in error and "goes on" in error


@pytest.mark.processes
def test_kills_at_any_moment(models: None, tfds_data_dir: Path, tmp_path: Path) -> None:
    """The short version of `python tests/kill_resume.py`."""
    assert tiny_config().student.epochs == 3
    kill_and_resume(tmp_path, kills=3, seed=0)
