"""Compiles the paper's networks for an NVIDIA GPU, on a machine that has none.

    python3 -m venv gpu && gpu/bin/pip install -r benchmarks/requirements-gpu.txt
    gpu/bin/python -m benchmarks.compile_gpu [--programs=joint,resnet50] [--batches=256]

Prints a line for each program, dtype and batch: whether it compiles, in how many
seconds, and the temporary memory that it takes on the GPU. The exit status is 1 if any
does not compile.

Nothing is tuned without a GPU, where the fastest convolutions and tiles are found by
running them, so this says nothing about speed. A failed check of XLA ends the process,
as it would on the machine with the GPU; therefore each program has one of its own.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from itertools import product
from typing import NamedTuple

import jax

from benchmarks.gpu_programs import PROGRAMS, described_gpu, lower

DTYPES = ("bfloat16", "float32")
BATCHES = (128, 256)

Case = tuple[str, str, str]  # program, dtype, batch


class Outcome(NamedTuple):
    """What became of a program.

    Attributes:
        compiles: whether it does.
        seconds: of compiling, without tracing.
        mebibytes: temporary memory on the GPU.
        reason: why it does not compile, as XLA or Python says it.
    """

    compiles: bool
    seconds: float = 0.0
    mebibytes: float = 0.0
    reason: str = ""


def main() -> None:
    """Compiles one program after another; exits with 1 if any does not compile."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compile_gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    choices = {"programs": PROGRAMS, "dtypes": DTYPES, "batches": BATCHES}
    for name, valid in choices.items():
        parser.add_argument(f"--{name}", default=",".join(map(str, valid)))
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(compile_here(*options.only.split(","))))
        return
    chosen = {name: getattr(options, name).split(",") for name in choices}
    for name, valid in choices.items():
        check(parser, name, chosen[name], [str(value) for value in valid])
    print(line("program", "dtype", "batch", "compiles", "seconds", "temporary"))
    failures = 0
    for case in product(*chosen.values()):
        outcome = compile_apart(case)
        print(row(case, outcome), flush=True)
        failures += not outcome.compiles
    sys.exit(1 if failures else 0)


def check(
    parser: argparse.ArgumentParser,
    option: str,
    values: Collection[str],
    valid: Collection[str],
) -> None:
    """Ends with a message if any of an option's values is not valid."""
    for value in values:
        if value not in valid:
            names = ", ".join(valid)
            parser.error(f"--{option}: unknown {value!r}; valid values: {names}")


def line(*cells: str) -> str:
    """A line of the table."""
    first, *others = cells
    return f"{first:24}" + "".join(f"{cell:>11}" for cell in others)


def row(case: Case, outcome: Outcome) -> str:
    """The line of a program."""
    if not outcome.compiles:
        return f"{line(*case, 'no')}  {outcome.reason}"
    figures = f"{outcome.seconds:.0f}", f"{outcome.mebibytes:.0f} MiB"
    return line(*case, "yes", *figures)


def compile_apart(case: Case) -> Outcome:
    """Compiles a program in a process of its own."""
    command = [
        *(sys.executable, "-m", "benchmarks.compile_gpu"),
        f"--only={','.join(case)}",
    ]
    # Whatever this machine has, what is compiled here is for the described GPU.
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return outcome_of(done.returncode, done.stdout, done.stderr)


def outcome_of(status: int, output: str, errors: str) -> Outcome:
    """Reads what the process of a program has left.

    Args:
        status: its exit status; if negative, of the signal that ended it.
        output: what it printed, at last seconds and mebibytes as JSON.
        errors: what it wrote to the standard error.
    """
    if status == 0:
        return Outcome(True, *json.loads(output.splitlines()[-1]))
    # XLA says what failed before its stack, Python after it.
    lines = [text.strip() for text in errors.splitlines() if text.strip()]
    checks = [text for text in lines if "Check failed" in text]
    reason = (checks or lines or ["no message"])[-1]
    # Severity and date, time and thread come first in XLA's log.
    reason = re.sub(r"^F\d+ \S+ +\d+ ", "", reason)
    if status < 0:
        reason = f"{signal.Signals(-status).name}: {reason}"
    return Outcome(False, reason=reason)


def compile_here(name: str, dtype: str, batch: str) -> tuple[float, float]:
    """Compiles a program in this process, which XLA may abort.

    Returns:
        seconds: of compiling, without tracing.
        mebibytes: temporary memory on the GPU.
    """
    # The operators choose their form by what this says.
    jax.default_backend = lambda: "gpu"
    lowered = lower(name, dtype, int(batch), described_gpu())
    start = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - start
    return seconds, program.memory_analysis().temp_size_in_bytes / 2**20


if __name__ == "__main__":
    main()
