"""Kills short runs at random moments and lets them go on: do they end all the same?

    python tests/kill_resume.py [--kills=100] [--seed=0] [--devices=2]

Each run writes a checkpoint after every step. It is killed (SIGKILL) at any moment of
its life, started again, killed again, until it finishes; then its parameters, masks,
statistics, record and summary must be those of the undisturbed run to the last bit.
Devices are virtual ones of the CPU; 0 takes those that JAX finds, such as a GPU.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# A script has its folder on the path, but not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
from runs import assert_same_runs, begin, end
from tiny import tiny_models

OVERRIDES = ("checkpoint.every_steps=1",)


def kill_and_resume(
    folder: Path, kills: int, seed: int, devices: int = 2
) -> dict[str, int]:
    """Kills runs until there were `kills` of them, and compares each with its model.

    Args:
        folder: for the runs.
        kills: how many.
        seed: of the moments.
        devices: as for `runs.begin`.

    Returns:
        How many runs were compared, and the kills by what had been saved until then.
    """
    moments = random.Random(seed)
    end(begin(folder / "warm", devices, *OVERRIDES))  # Compiles for all that follow.
    started = time.monotonic()
    end(begin(folder / "whole", devices, *OVERRIDES))
    duration = time.monotonic() - started
    counts = {"runs": 0, "nothing": 0, "teacher": 0, "student": 0}
    killed = 0
    while killed < kills or (folder / f"run{counts['runs']}").exists():
        run = folder / f"run{counts['runs']}"
        process = begin(run, devices, *OVERRIDES)
        try:
            # A start takes most of a run's time and is the same each time.
            limit = moments.uniform(0.2, 1.1) * duration if killed < kills else None
            _, error = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
            saved = "student" if (run / "checkpoints").exists() else "teacher"
            counts[saved if (run / "teacher").exists() else "nothing"] += 1
            run.mkdir(exist_ok=True)
            continue
        assert process.returncode == 0, error
        assert_same_runs(run, folder / "whole", *OVERRIDES)
        counts["runs"] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--devices", type=int, default=2)
    options = parser.parse_args()
    # This process compares only, and leaves an accelerator to the runs.
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory() as folder, tiny_models():
        # Digits are made once, here, and not in the user's folder.
        os.environ["TFDS_DATA_DIR"] = f"{folder}/tfds"
        counts = kill_and_resume(
            Path(folder), options.kills, options.seed, options.devices
        )
    print(
        f"{options.kills} kills with seed {options.seed}: {counts['nothing']} before"
        f" the first checkpoint, {counts['teacher']} while the teacher trained,"
        f" {counts['student']} after the student's first checkpoint;"
        f" {counts['runs']} runs finished, all bit-identical to the undisturbed one"
    )


if __name__ == "__main__":
    main()
