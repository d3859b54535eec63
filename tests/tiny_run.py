"""A run of the tiny networks in a process of its own: to be killed, or one of several.

    python tests/tiny_run.py FOLDER DEVICES [FIELD=VALUE ...] [-- ADDRESS COUNT INDEX]
    python tests/tiny_run.py FOLDER DEVICES study [-- ADDRESS COUNT INDEX]

DEVICES are virtual ones of the CPU; 0 takes those that JAX finds. Ends with 0, or as
launch.py would.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from tiny import TINY, tiny_config, tiny_models

import alite_jax
from alite_jax.errors import AliteError, StoppedError
from alite_jax.runs.processes import connect

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "jax"


def main(arguments: Sequence[str]) -> int:
    own, _, place = " ".join(arguments).partition(" -- ")
    folder, devices, *overrides = own.split()
    if int(devices):
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", int(devices))
    jax.config.update("jax_compilation_cache_dir", str(CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if place:
        address, count, index = place.split()
        connect(address, int(count), int(index))
    with tiny_models():
        try:
            if overrides == ["study"]:
                alite_jax.run_study(TINY, f"{folder}/work", f"{folder}/out")
            else:
                config = alite_jax.override(tiny_config(), overrides)
                alite_jax.train(config, folder)
        except StoppedError as error:
            print(error, file=sys.stderr)
            return 128 + error.signal
        except AliteError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
