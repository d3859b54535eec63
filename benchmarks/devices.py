"""What it costs to share a batch among eight devices that are one processor."""

import subprocess
import sys
import time

import jax

from benchmarks.steps import Step
from benchmarks.timing import Row, Rows, ratios

COUNTS = (1, 8)
STEPS = 8


def compare(rounds: int) -> Rows:
    """Times the same step on one and on eight virtual devices, in turn.

    The number of devices is a process's own, so each round starts two of them.
    """
    times: dict[int, list[float]] = {count: [] for count in COUNTS}
    for _ in range(rounds):
        for count in COUNTS:
            command = [sys.executable, "-m", "benchmarks.devices", str(count)]
            printed = subprocess.run(
                command, check=True, capture_output=True, text=True
            ).stdout
            times[count].append(float(printed.split()[-1]))
    one, eight = (times[count] for count in COUNTS)
    detail = "joint training step, a batch of 64 on 8 virtual devices, over 1 device"
    return {"eight_devices_over_one": Row.of(ratios(eight, one), "x", detail)}


def main() -> None:
    """Prints the seconds of a step, the median of some."""
    jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
    call = Step("resnet26_attention", "resnet50").start()
    jax.block_until_ready(call())
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    print(sorted(seconds)[STEPS // 2])


if __name__ == "__main__":
    main()
