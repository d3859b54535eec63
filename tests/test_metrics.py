"""Metrics on disk, and what progress prints."""

import io
import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

from alite_jax.errors import TrainingError
from alite_jax.runs import metrics as metrics_module
from alite_jax.runs.line_values import LineValues
from alite_jax.runs.metrics import MetricWriter, read_metrics
from alite_jax.runs.progress import Progress
from alite_jax.runs.tensorboard import TensorBoard
from alite_jax.training.objective import Objective
from alite_jax.training.optimizer import learning_rate_schedule


def steps(workdir: Path) -> list[tuple[str, int]]:
    return [(record["phase"], record["step"]) for record in read_metrics(workdir)]


def test_lines_are_valid_json_at_once(tmp_path: Path) -> None:
    with MetricWriter(tmp_path / "run") as writer:
        writer.write(
            3,
            {"loss": jnp.float32(0.5), "rate": math.inf, "count": np.int64(7)},
            prefix="teacher",
        )
        writer.write(4, {"loss": math.nan})
        text = (tmp_path / "run" / "metrics.jsonl").read_text()

        def refuse(constant: str) -> None:
            raise AssertionError(constant)

        first, second = (
            json.loads(line, parse_constant=refuse) for line in text.splitlines()
        )
    assert first.pop("time") > 1.7e9
    assert first == {
        "step": 3,
        "phase": "teacher",
        "loss": 0.5,
        "rate": None,
        "count": 7,
    }
    assert (second["phase"], second["loss"]) == ("student", None)
    assert read_metrics(tmp_path) == []


def test_rewind_drops_later_lines_of_its_phase_only(tmp_path: Path) -> None:
    with MetricWriter(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": 0.1 * step}, prefix="teacher")
        for step in (1, 2, 3):
            writer.write(step, {"loss": 0.1 * step})
        kept = read_metrics(tmp_path)
        kept = kept[:3] + kept[3:4]
        writer.rewind("student", 1)
        assert read_metrics(tmp_path) == kept
        writer.write(2, {"loss": 1.0})
    assert steps(tmp_path) == [("teacher", i) for i in (1, 2, 3)] + [
        ("student", 1),
        ("student", 2),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"loss": 1.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "ti')
    assert steps(tmp_path) == [("student", 1)]
    with MetricWriter(tmp_path) as writer:
        writer.rewind("student", 5)
        writer.write(2, {"loss": 1.0})
    assert steps(tmp_path) == [("student", 1), ("student", 2)]


def test_a_kill_before_the_rename_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {})
        writer.write(2, {})

        def fail(*arguments: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(metrics_module.os, "replace", fail)
            with pytest.raises(KeyboardInterrupt):
                writer.rewind("student", 1)
    assert steps(tmp_path) == [("student", 1), ("student", 2)]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(TrainingError, match="line 2 of .*: delete that line"):
        read_metrics(tmp_path)


def test_unwritable_workdir_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot write .*use another --workdir"):
        MetricWriter(tmp_path / "file" / "run")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with (
        MetricWriter(tmp_path) as writer,
        open("/dev/full", "ab", buffering=0) as full,
    ):
        writer._file.close()
        writer._file = full
        with pytest.raises(TrainingError, match=r"\(No space left on device\)"):
            writer.write(2, {"loss": 1.0})


def test_reserved_names_are_refused(tmp_path: Path) -> None:
    with (
        MetricWriter(tmp_path) as writer,
        pytest.raises(ValueError, match="cannot be called 'step'"),
    ):
        writer.write(1, {"step": 1.0})


def test_tensorboard_events_of_each_phase(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    with MetricWriter(tmp_path, [TensorBoard(tmp_path / "tensorboard")]) as writer:
        writer.write(1, {"loss": 1.0}, prefix="teacher")
        writer.write(5, {"loss": 2.0, "accuracy": 0.5})
        written = events(tmp_path / "tensorboard" / "student", Event)
        tags = {v.tag: v.simple_value for e in written for v in e.summary.value}
        assert tags == {"loss": 2.0, "accuracy": 0.5}
        writer.rewind("student", 3)
        writer.write(4, {"loss": 3.0})
    written = events(tmp_path / "tensorboard" / "student", Event)
    starts = [e.step for e in written if e.session_log.status == SessionLog.START]
    assert starts == [4]
    teacher = events(tmp_path / "tensorboard" / "teacher", Event)
    assert [e.step for e in teacher if e.summary.value] == [1]


def test_tensorboard_shows_configuration_and_masks(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    mask = np.eye(300, dtype=bool)
    for _ in range(2):
        with MetricWriter(tmp_path, [TensorBoard(tmp_path, '{"seed": 3}')]) as writer:
            writer.show_masks(7, {"stage1/query": mask}, prefix="student")
    values = [v for e in events(tmp_path / "student", Event) for v in e.summary.value]
    # The text once, however often the run is gone on with.
    (text,) = [v for v in values if v.metadata.plugin_data.plugin_name == "text"]
    assert text.tensor.string_val == [b'    {"seed": 3}\n']
    pictures = [v for v in values if v.tag == "masks/stage1/query"]
    assert len(pictures) == 2
    picture = Image.open(io.BytesIO(pictures[0].image.encoded_image_string))
    assert picture.size == (128, 128)
    assert len(pictures[0].image.encoded_image_string) < 20_000


@pytest.mark.usefixtures("models")
def test_what_a_line_says_besides_what_was_measured() -> None:
    config = tiny_config().student.optimizer
    schedule = learning_rate_schedule(config, steps_per_epoch=4, epochs=3)
    objective = Objective(alpha=0.9, temperature=4.0, alpha_end=0.5, schedule="linear")
    values = LineValues(schedule, objective, total_steps=12, batch_size=16)
    first, later = values.at(1, 2.0), values.at(7, 5.0)
    # A warm-up of two steps: the first update goes half as far.
    half = config.learning_rate / 2
    assert first == {"learning_rate": pytest.approx(half), "alpha": 0.9} | {
        "temperature": 4.0
    }
    assert later["images_per_second"] == 6 * 16 / 3
    assert later["alpha"] == pytest.approx(0.9 - 0.4 * 6 / 12)
    # A teacher distils nothing, and a program's optimizer has whatever rate it has.
    assert set(LineValues(schedule, Objective(), 12, 16).at(1, 1.0)) == {
        "learning_rate"
    }
    assert LineValues(None, Objective(), 12, 16).at(1, 1.0) == {}


def events(folder: Path, kind: Any) -> list[Any]:
    """Reads TFRecord framing: length, its CRC, the event, its CRC."""
    found = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            found.append(kind.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(metrics_module.time, "monotonic", lambda: now[0])
    return now


def run_epochs(progress: Progress, clock: list[float]) -> None:
    for step in range(3, 9):
        progress.update(
            step, {"loss": 1.25, "accuracy": 0.5, "density": jnp.float32(0.05)}
        )
        clock[0] += 0.5
    progress.epoch(2, 5, {"loss": 1.25, "accuracy": 0.5, "changed": 1234})
    progress.close()


def test_files_get_one_line_an_epoch(clock: list[float]) -> None:
    file = io.StringIO()
    run_epochs(Progress("student", 20, 2, 32, True, file=file), clock)
    # 5 steps of 32 images in 3 seconds; the first update only starts the clock.
    assert file.getvalue() == (
        "student epoch 2/5: loss 1.25, accuracy 50.00 %, changed 1,234, 53 images/s, "
        "00:07 left\n"
    )


def test_terminals_get_a_bar(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where a shell hands it on, older tqdm takes it for the width of any terminal.
    monkeypatch.delenv("COLUMNS", raising=False)
    file = Terminal()
    run_epochs(Progress("student", 20, 2, 32, True, file=file), clock)
    text = file.getvalue()
    assert "student epoch 2/5: loss 1.25, accuracy 50.00 %, changed 1,234" in text
    last = text.rsplit("\r", 1)[-1]
    assert "student  40%|" in last and "8/20" in last
    assert "loss 1.25, accuracy 50.00 %, density 5.00 %, 64 images/s]" in last


def test_progress_can_be_off(clock: list[float]) -> None:
    file = Terminal()
    run_epochs(Progress("student", 20, 2, 32, False, file=file), clock)
    assert file.getvalue() == ""
