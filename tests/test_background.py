"""Saves in the background: in order, whole before the end, and their errors told."""

import threading
from pathlib import Path
from typing import Any

import fitting
import jax
import pytest
from fitting import TOTAL, make_config, states

from alite_jax.data.pipeline import TrainBatches
from alite_jax.errors import CheckpointError
from alite_jax.runs.background import BackgroundSaves
from alite_jax.runs.checkpoints import Checkpoints

FULL = CheckpointError("cannot write checkpoint: free space")


class Disk:
    """Checkpoints whose saves go on until they may end."""

    directory = "/disk"

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.begun: list[int] = []
        self.saved: list[int] = []
        self.fails_at: int | None = None
        self.extra: dict[int, Any] = {}

    def save(self, step: int, state: Any, *, extra: Any) -> None:
        self.begun.append(step)
        assert self.may_end.wait(timeout=30)
        if step == self.fails_at:
            raise FULL
        self.saved.append(step)
        self.extra[step] = extra

    def latest_step(self) -> int:
        return max(self.saved)


@pytest.fixture
def disk() -> Any:
    return Disk()


def test_a_save_does_not_keep_the_training_waiting(disk: Any) -> None:
    with BackgroundSaves(disk) as saves:
        extra = {"open_steps": [1.0]}
        saves.save(1, {}, extra=extra)
        assert disk.saved == []
        extra["open_steps"].append(2.0)  # The training goes on with it.
        threading.Timer(0.05, disk.may_end.set).start()
        saves.save(2, {}, extra={})  # Not before the one before is whole.
        assert disk.saved[:1] == [1] and saves.directory == "/disk"
        assert disk.extra[1] == {"open_steps": [1.0]}
        assert saves.latest_step() == 2
        saves.save(3, {}, extra={})
    assert disk.begun == disk.saved == [1, 2, 3]


@pytest.mark.parametrize("then", ["save", "wait", "latest_step", "end"])
def test_whatever_comes_next_tells_of_a_failure_once(disk: Any, then: str) -> None:
    disk.may_end.set()
    disk.fails_at = 1
    following = {
        "save": lambda saves: saves.save(2, {}, extra={}),
        "wait": BackgroundSaves.wait,
        "latest_step": BackgroundSaves.latest_step,
        "end": lambda saves: None,
    }[then]
    with pytest.raises(CheckpointError) as caught, BackgroundSaves(disk) as saves:
        saves.save(1, {}, extra={})
        following(saves)
    assert caught.value is FULL
    assert disk.begun == [1]


def test_another_error_waits_for_the_save_and_is_not_hidden(disk: Any) -> None:
    disk.fails_at = 2
    for step, saved in ((1, [1]), (2, [1])):
        disk.may_end.clear()
        with pytest.raises(ZeroDivisionError), BackgroundSaves(disk) as saves:
            saves.save(step, {}, extra={})
            threading.Timer(0.05, disk.may_end.set).start()
            raise ZeroDivisionError
        assert (disk.begun[-1], disk.saved) == (step, saved)


def test_processes_that_act_together_wait(
    disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    disk.may_end.set()
    with BackgroundSaves(disk) as saves:
        for step in (1, 2):
            saves.save(step, {}, extra={})
            assert disk.saved[-1] == step


def test_a_training_goes_on_while_its_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later, original = threading.Event(), TrainBatches.batch
    save, waited = Checkpoints.save, []

    def batch(batches: TrainBatches, step: int) -> Any:
        if step >= 7:  # Two more than are made before step 4 is done.
            later.set()
        return original(batches, step)

    def slow_save(
        checkpoints: Checkpoints, step: int, *args: Any, **options: Any
    ) -> None:
        if step == 4:
            waited.append(later.wait(timeout=30))
        save(checkpoints, step, *args, **options)

    monkeypatch.setattr(TrainBatches, "batch", batch)
    monkeypatch.setattr(Checkpoints, "save", slow_save)
    config = make_config(checkpoint__every_steps=0)
    fitting.train(tmp_path, config)
    assert waited == [True]
    assert sorted(states(tmp_path, config)) == [4, 8, TOTAL]
