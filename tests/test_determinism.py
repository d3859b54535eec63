"""Equal runs on GPUs: how XLA is asked for them, in time, and what a run says of it."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from tiny import tiny_config

from alite_jax import jax_settings
from alite_jax.jax_settings import (
    DETERMINISTIC,
    ask_for_determinism,
    deterministic_flags,
    is_deterministic,
)
from alite_jax.jobs.train import _repeats

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("flags", "wanted", "holds"),
    [
        ("", f"{DETERMINISTIC}=true", True),
        ("--xla_a=1 --xla_b", f"--xla_a=1 --xla_b {DETERMINISTIC}=true", True),
        (f"{DETERMINISTIC}=false", f"{DETERMINISTIC}=false", False),
        (f"{DETERMINISTIC}=1 --xla_a=0", f"{DETERMINISTIC}=1 --xla_a=0", True),
        (f"{DETERMINISTIC}", f"{DETERMINISTIC}", True),
        (f"{DETERMINISTIC}=true {DETERMINISTIC}=false", None, False),
        ("/etc/xla/flags", "/etc/xla/flags", False),
    ],
)
def test_flags_of_the_user_stay(
    monkeypatch: pytest.MonkeyPatch, flags: str, wanted: str | None, holds: bool
) -> None:
    found = deterministic_flags(flags)
    assert found == (wanted or flags)
    monkeypatch.setenv("XLA_FLAGS", found)
    assert is_deterministic()  # On CPUs, whatever it says.
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert is_deterministic() == holds


@pytest.mark.parametrize(
    ("platforms", "gpu", "begun", "asks"),
    [
        ("", True, False, True),
        ("", False, False, False),
        ("", True, True, False),
        ("cpu", True, False, False),
        ("cuda,cpu", False, False, True),
        ("tpu,cpu", True, False, False),
    ],
)
def test_a_gpu_is_asked_before_it_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, platforms: str, gpu: bool, begun: bool, asks: bool
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    monkeypatch.setattr(jax_settings, "has_gpu", lambda: gpu)
    monkeypatch.setattr(
        jax_settings.xla_bridge, "backends_are_initialized", lambda: begun
    )
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", platforms)
    try:
        ask_for_determinism()
    finally:
        jax.config.update("jax_platforms", before)
    wanted = f"--xla_a=1 {DETERMINISTIC}=true" if asks else "--xla_a=1"
    assert os.environ["XLA_FLAGS"] == wanted


SCRIPT = """
import sys
import alite_jax
from alite_jax import jax_settings
from alite_jax.errors import CheckpointError
jax_settings.has_gpu = lambda: True
jax_settings.DETERMINISTIC = sys.argv[1]
try:
    alite_jax.restore(alite_jax.get_config("digits"), "/nowhere")
except CheckpointError:
    print("read")
"""


@pytest.mark.processes
def test_xla_reads_what_a_job_asks_for() -> None:
    """It ends a process at a flag that it does not know."""
    environment = os.environ | {"JAX_PLATFORMS": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, flag],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for flag in (DETERMINISTIC, "--xla_gpu_of_nobody")
    ]
    known, unknown = (process.communicate(timeout=120) for process in processes)
    assert known[0] == "read\n", known[1]
    assert unknown[0] == ""
    assert "Unknown flag in XLA_FLAGS: --xla_gpu_of_nobody=true" in unknown[1]


def test_a_run_says_whether_equal_runs_are_equal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, not_asked = (
        tiny_config(
            {
                "teacher.model": "resnet26",
                "student.model": "resnet26_attention",
                "compute.deterministic": on,
            }
        )
        for on in (True, False)
    )
    assert _repeats(asked) == _repeats(not_asked) == ""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setenv("XLA_FLAGS", "")
    assert _repeats(not_asked) == "; equal runs may differ"
    assert _repeats(asked).endswith(f"start Python with XLA_FLAGS={DETERMINISTIC}=true")
    monkeypatch.setenv("XLA_FLAGS", f"{DETERMINISTIC}=true")
    assert _repeats(asked) == "; equal runs give equal results"
