"""Runs of the tiny networks in processes of their own, and comparing what they left."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import chex
from fitting import records
from tiny import assert_same, tiny_config

import alite_jax
from alite_jax.jobs import train as train_job

SCRIPT = Path(__file__).resolve().parent / "tiny_run.py"


def begin(
    folder: Path, devices: int, *overrides: str, place: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    """Starts a run; `place` is the address, the number of processes and its index.

    With no devices it takes those that JAX finds.
    """
    command = [sys.executable, str(SCRIPT), str(folder), str(devices), *overrides]
    return subprocess.Popen(
        [*command, *(("--", *place) if place else ())],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parent.parent)},
    )


def begin_together(
    folder: Path, processes: int, devices: int, *overrides: str
) -> list[subprocess.Popen[str]]:
    """Starts the processes of one run, each with `devices`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [
        begin(folder, devices, *overrides, place=(address, str(processes), str(index)))
        for index in range(processes)
    ]


def end(*processes: subprocess.Popen[str], status: int = 0) -> list[str]:
    """Waits for processes, checks their exit status, returns what they printed."""
    errors = [process.communicate(timeout=300)[1] for process in processes]
    for process, error in zip(processes, errors, strict=True):
        assert process.returncode == status, error
    return errors


def trained(folder: Path, *overrides: str) -> dict[str, Any]:
    """Parameters, statistics and masks of both networks; needs the tiny models."""
    config = alite_jax.override(tiny_config(), list(overrides))
    data = train_job.load_data(config)
    networks = train_job.create_networks(config, data, folder)
    return {net.phase: net.restore(data.image_shape) for net in networks}


def summary(folder: Path) -> dict[str, Any]:
    """What a run found, without how long it took and where."""
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return {n: v for n, v in found.items() if n not in ("seconds", "environment")}


def assert_same_runs(found: Path, wanted: Path, *overrides: str) -> None:
    """Checks that two finished runs are the same to the last bit."""
    assert_same(trained(found, *overrides), trained(wanted, *overrides))
    assert records(found) == records(wanted)
    assert summary(found) == summary(wanted)


def assert_close_runs(
    found: Path, wanted: Path, *overrides: str, tolerance: float
) -> None:
    """Checks that two finished runs are the same but for rounding; masks are equal."""
    ours, theirs = trained(found, *overrides), trained(wanted, *overrides)
    for phase in ("teacher", "student"):
        assert_same(ours[phase]["masks"], theirs[phase]["masks"])
    chex.assert_trees_all_close(ours, theirs, rtol=0, atol=tolerance)
    for line, other in zip(records(found), records(wanted), strict=True):
        assert line.keys() == other.keys()
        for name, value in line.items():
            if isinstance(value, str):
                assert value == other[name]
            else:
                assert abs(value - other[name]) < tolerance, (line, other)
