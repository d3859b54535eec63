"""Settings of the C library's memory allocator with which XLA on a CPU runs faster.

A training step takes and gives back buffers of many megabytes. By default glibc returns
each to the system at once, and the next one comes back page by page, zeroed: on small
images that takes longer than the arithmetic. With these settings the process keeps its
memory until it ends, so it may look larger than it is.

The settings are read when a process starts, from an environment variable; a process
that wants them therefore starts itself again. This module loads no JAX.
"""

import os
import platform
import sys
from collections.abc import Mapping

VARIABLE = "GLIBC_TUNABLES"
OPT_OUT = "ALITE_MALLOC"  # `system` leaves the allocator as it is

SETTINGS = {
    "hugetlb": 1,  # asks for huge pages
    "arena_max": 1,  # threads share what was given back
    "mmap_max": 0,  # no buffer is a mapping of its own, given back at once
    "trim_threshold": 16 << 30,  # bytes that may lie idle
    "top_pad": 256 << 20,  # bytes to take from the system at a time, at least
}

# What a machine with a GPU or a TPU has. With one of them JAX computes there, and these
# settings are of no use.
_GPUS = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
_TPUS = ("/dev/accel0", "/dev/vfio")


def tuned_environment(
    environ: Mapping[str, str],
    *,
    libc: str | None = None,
    accelerator: bool | None = None,
) -> dict[str, str] | None:
    """Returns the environment in which a process has the settings.

    Args:
        environ: the environment of this process.
        libc: name of the C library; that of this interpreter when left out.
        accelerator: whether the machine has a GPU or a TPU; looked up when left out.

    Returns:
        A copy with the settings, or `None` where there is nothing to do: the library is
        not glibc, JAX would not compute on the CPU, the user has settings of their own
        (or this process has these already), or `ALITE_MALLOC=system`.
    """
    if VARIABLE in environ or environ.get(OPT_OUT) == "system":
        return None
    platforms = environ.get("JAX_PLATFORMS", "")
    if platforms not in ("", "cpu"):
        return None
    if platforms == "" and (has_accelerator() if accelerator is None else accelerator):
        return None
    if (platform.libc_ver()[0] if libc is None else libc) != "glibc":
        return None
    settings = (f"glibc.malloc.{name}={value}" for name, value in SETTINGS.items())
    return {**environ, VARIABLE: ":".join(settings)}


def has_accelerator() -> bool:
    """Whether there is a device file of a GPU or a TPU, which is cheap to find out."""
    return has_gpu() or any(map(os.path.exists, _TPUS))


def has_gpu() -> bool:
    """Whether there is a device file of a GPU."""
    return any(map(os.path.exists, _GPUS))


def restart_tuned() -> None:
    """Starts this process again with the settings, once, where that is of use.

    The command line, the process id and what the parent waits for stay the same. To be
    called first, since all that the process has done is lost.
    """
    environment = tuned_environment(os.environ)
    # `%run launch.py` in a notebook must not end that with all that it holds.
    interactive = hasattr(sys, "ps1")
    if environment is None or interactive or not sys.executable:
        return
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    except OSError:
        return  # Only slower.
