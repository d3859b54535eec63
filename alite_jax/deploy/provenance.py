"""Which version of this package wrote a file."""

import subprocess
from pathlib import Path

import alite_jax


def version() -> str:
    """The package's version, in a checkout its commit, else `"unknown"`."""
    known = getattr(alite_jax, "__version__", None)
    if known is not None:
        return str(known)
    checkout = Path(alite_jax.__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"commit {done.stdout.strip()}"
