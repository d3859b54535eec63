"""Compiles the paper's networks for a GPU or TPUs, on a machine that has none.

    make compile-ahead TARGET=gpu    # or TARGET=tpu: 4 and 8 chips
    make compile-ahead TARGET=tpu ARGS="--programs=joint,rewiring --batches=256"

Prints a line for each program: whether it compiles, in how many seconds, the temporary
memory that it takes on a device, and what the compiled program has of calls into
libraries and kernels and of copies and transposes. The exit status is 1 if any does not
compile. Rewiring has no batch and no dtype, and is compiled once for each
configuration; what was exported is for one device.

Nothing is tuned without the device, where the fastest convolutions and tiles are found
by running them, so this says nothing about speed. A failed check of XLA ends the
process, as it would on the machine with the device; therefore each program has one of
its own.
"""

import argparse
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax

from benchmarks.ahead_programs import CONFIGS, PROGRAMS, TARGETS, described, lower

DTYPES = ("bfloat16", "float32")
BATCHES = ("128", "256", "1024")


class Case(NamedTuple):
    """What is compiled.

    Attributes:
        devices: one of `TARGETS`.
        config: one of `CONFIGS`.
        program: one of `PROGRAMS`.
        dtype: of the computation.
        batch: images in a batch, of all devices.
    """

    devices: str
    config: str
    program: str
    dtype: str
    batch: str


class Outcome(NamedTuple):
    """What became of a program.

    Attributes:
        compiles: whether it does.
        seconds: of compiling, without tracing.
        mebibytes: temporary memory on a device.
        calls: into libraries and kernels, in the text of the compiled program.
        copies: and transposes, likewise.
        reason: why it does not compile, as XLA or Python says it.
    """

    compiles: bool
    seconds: float = 0.0
    mebibytes: float = 0.0
    calls: int = 0
    copies: int = 0
    reason: str = ""


def main() -> None:
    """Compiles one program after another; exits with 1 if any does not compile."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compile_ahead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--target", choices=TARGETS, default="gpu")
    choices: dict[str, Sequence[str]] = {
        "configs": CONFIGS,
        "programs": tuple(PROGRAMS),
        "dtypes": DTYPES,
        "batches": BATCHES,
    }
    for name, valid in choices.items():
        parser.add_argument(f"--{name}", default=",".join(valid))
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(compile_here(Case(*options.only.split(",")))))
        return
    chosen = {name: getattr(options, name).split(",") for name in choices}
    for name, valid in choices.items():
        check(parser, name, chosen[name], valid)
    print(line(Case._fields, *Outcome._fields[:5]))
    failures = 0
    for case in cases(TARGETS[options.target], **chosen):
        outcome = compile_apart(case)
        print(row(case, outcome), flush=True)
        failures += not outcome.compiles
    sys.exit(1 if failures else 0)


def cases(
    devices: Sequence[str],
    configs: Sequence[str],
    programs: Sequence[str],
    dtypes: Sequence[str],
    batches: Sequence[str],
) -> list[Case]:
    """All combinations, but of what has no batch and no dtype only one of those."""
    found = itertools.starmap(
        Case, itertools.product(devices, configs, programs, dtypes, batches)
    )
    first = dtypes[0], batches[0]
    return [case for case in found if case.program != "rewiring" or case[3:] == first]


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


def line(case: Sequence[str], *cells: str) -> str:
    """A line of the table."""
    devices, config, program, dtype, batch = case
    start = f"{devices:9}{config:15}{program:26}{dtype:10}{batch:>6}"
    return start + "".join(f"{cell:>11}" for cell in cells)


def row(case: Case, outcome: Outcome) -> str:
    """The line of a program."""
    if not outcome.compiles:
        return f"{line(case, 'no')}  {outcome.reason}"
    return line(
        case,
        "yes",
        f"{outcome.seconds:.0f}",
        f"{outcome.mebibytes:.0f}",
        str(outcome.calls),
        str(outcome.copies),
    )


def compile_apart(case: Case) -> Outcome:
    """Compiles a program in a process of its own."""
    command = [
        *(sys.executable, "-m", "benchmarks.compile_ahead"),
        f"--only={','.join(case)}",
    ]
    # Whatever this machine has, what is compiled here is for described devices.
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return outcome_of(done.returncode, done.stdout, done.stderr)


def outcome_of(status: int, output: str, errors: str) -> Outcome:
    """Reads what the process of a program has left.

    Args:
        status: its exit status; if negative, of the signal that ended it.
        output: what it printed, at last what `compile_here` returned, as JSON.
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


def compile_here(case: Case) -> list[float]:
    """Compiles a program in this process, which XLA may abort.

    Returns:
        What an `Outcome` has of a program that compiles: seconds without tracing,
        mebibytes, calls and copies.
    """
    platform = next(name for name, named in TARGETS.items() if case.devices in named)
    # The operators choose their form by what this says.
    jax.default_backend = lambda: platform
    mesh = described(case.devices)
    lowered = lower(case.config, case.program, case.dtype, int(case.batch), mesh)
    start = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - start
    text = program.as_text()
    return [
        seconds,
        program.memory_analysis().temp_size_in_bytes / 2**20,
        len(re.findall(r" custom-call\(", text)),
        len(re.findall(r" (?:copy|transpose)\(", text)),
    ]


if __name__ == "__main__":
    main()
