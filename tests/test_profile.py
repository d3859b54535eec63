"""Traces of training steps."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from tiny import SETTINGS, run_command

from alite_jax.jobs.profile import profile_config

pytestmark = pytest.mark.usefixtures("models")


@pytest.mark.processes
def test_the_job_traces_steps_of_both_networks(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"logging.profile_steps": 3, "data.batch_size": 8}
    changes |= {"student.density": 1.0, "distillation.alpha": 0.0}  # Compiles less.
    settings = SETTINGS | changes
    status = run_command(
        "--job=profile",
        "--config=digits",
        f"--workdir={tmp_path}",
        *(f"--config.{name}={value}" for name, value in settings.items()),
    )
    assert status == 0
    for phase in ("teacher", "student"):
        (trace,) = (tmp_path / "profile" / phase).rglob("perfetto_trace.json.gz")
        assert list(trace.parent.glob("*.xplane.pb"))
        events: list[Any] = json.loads(gzip.decompress(trace.read_bytes()))[
            "traceEvents"
        ]
        steps = [event for event in events if event.get("name") == "step"]
        assert len(steps) == 3
        numbers = {int(event["args"]["step_num"]) for event in steps}
        assert numbers == {10, 11, 12}


def test_the_configuration_of_a_profile_is_one_short_epoch() -> None:
    import alite_jax

    config = profile_config(alite_jax.get_config("cifar10"))
    assert config.data.train_split == f"train[:{21 * 128}]"
    assert config.teacher.epochs == config.student.epochs == 1
    assert config.logging.profile_steps == 10
