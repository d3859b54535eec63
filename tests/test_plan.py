"""From targets to fields of the configuration."""

from typing import Any

import pytest
from tiny import SETTINGS, run_command, tiny_config

import alite_jax
from alite_jax.errors import ConfigError
from alite_jax.jobs import plan as plan_job

pytestmark = pytest.mark.usefixtures("models")


def test_parameters_are_met() -> None:
    planned = alite_jax.plan(tiny_config(), "parameters", 500)
    assert abs(planned.reached - 500) <= 10
    assert 0 < planned.changes["student.density"] < 1


@pytest.mark.processes
def test_bytes_are_met() -> None:
    planned = alite_jax.plan(tiny_config(), "bytes", 2200)
    assert abs(planned.reached - 2200) <= 44
    # The masks of sparse momentum take less, so that there is room for more weights.
    random = alite_jax.plan(tiny_config({"pruning.method": "static"}), "bytes", 2200)
    assert abs(random.reached - 2200) <= 44
    assert random.changes["student.density"] < planned.changes["student.density"]


@pytest.mark.parametrize("value", [0.7, 45_000])
def test_macs_are_met(value: float) -> None:
    config = tiny_config({"pruning.structure": "channels"})
    planned = alite_jax.plan(config, "macs", value)
    assert abs(planned.reached / value - 1) <= 0.02
    assert planned.changes["pruning.structure"] == "channels"


@pytest.mark.processes
def test_milliseconds_are_read_off_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_job, "_TIMED", (1.0, 0.7))

    def measure(calls: Any, _: Any) -> dict[float, float]:
        return {left: 4.0 if left == 1 else 2.0 for left in calls}

    monkeypatch.setattr(plan_job, "milliseconds", measure)
    config = tiny_config({"pruning.structure": "channels"})
    planned = alite_jax.plan(config, "milliseconds", 2.5, batch=3)
    assert sorted(planned.table.values()) == [2.0, 4.0]
    assert planned.reached == pytest.approx(2.5, abs=0.01)
    less, whole = sorted(planned.table)
    wanted = less + (whole - less) / 4
    assert planned.changes["pruning.macs"] == pytest.approx(wanted, abs=1e-3)


def test_the_command_says_what_to_add(capsys: pytest.CaptureFixture[str]) -> None:
    fields = (f"--config.{name}={value}" for name, value in SETTINGS.items())
    arguments = "--job=plan", "--config=digits", "--target=macs=0.78"
    assert run_command(*arguments, *fields) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("--config.pruning.structure=heads --config.pruning.macs")


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("weights", 1, "--target: 'weights' is none"),
        ("parameters", 10, "10 parameters cannot be reached"),
        ("bytes", 10, "10 bytes cannot be reached"),
        ("macs", 1e12, "the whole student has"),
        ("macs", 0.01, "pruning.macs is 0.01, but widths"),
    ],
)
def test_what_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch, kind: str, value: float, message: str
) -> None:
    monkeypatch.setattr(plan_job, "_MOST", 1)  # Seconds for each size that is tried.
    config: Any = tiny_config({"pruning.structure": "channels"})
    with pytest.raises(ConfigError, match=message):
        alite_jax.plan(config, kind, value)


def test_a_target_needs_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("--job=plan", "--target=bytes") == 2
    assert "--target=KIND=NUMBER" in capsys.readouterr().err
