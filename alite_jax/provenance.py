"""Which code made a file, on what: the same words in every file that a job leaves."""

import platform
import shlex
import subprocess
import sys
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import alite_jax
from alite_jax.paths import printable

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
# The programs of this package; other command lines say nothing about a run.
_PROGRAMS = {"launch.py": "python launch.py", "alite": "alite"}


def provenance() -> dict[str, Any]:
    """Returns what made the file that it is written into.

    Returns:
        `version` of this package; `commit` of its checkout and whether the tree was
        `changed` since, both None where it is installed; the `command`, None for a call
        from Python; the `date`; the versions of `python` and of the packages that
        decide about numbers.
    """
    commit, changed = _checkout()
    return {
        "version": alite_jax.__version__,
        "commit": commit,
        "changed": changed,
        "command": _command(sys.argv),
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _PACKAGES},
    }


def written_by(environment: dict[str, Any]) -> str:
    """Returns a file's `environment` in words, of which older files have fewer.

    Example:
        >>> written_by({"version": "0.1.0", "commit": "f932d69abcde", "changed": True})
        'alite_jax 0.1.0 (commit f932d69abcde, changed)'
    """
    words = f"alite_jax {environment.get('version', '')}".strip()
    if commit := environment.get("commit"):
        words += f" (commit {commit}{', changed' * bool(environment['changed'])})"
    if date := environment.get("date"):
        words += f" on {date}"
    if command := environment.get("command"):
        words += f" by `{command}`"
    return words


def _command(argv: list[str]) -> str | None:
    path = Path(*argv[:1])  # A program that embeds Python may have no arguments.
    if path == Path(alite_jax.__file__).parent / "__main__.py":
        path = Path("alite")
    program = _PROGRAMS.get(path.name)
    words = printable(shlex.join(argv[1:]))
    return f"{program} {words}".strip() if program else None


@cache  # What was imported stays what it was, whatever happens to the files.
def _checkout() -> tuple[str | None, bool | None]:
    """The commit of the checkout, and whether files that it tracks were changed."""
    checkout = Path(alite_jax.__file__).resolve().parent.parent
    # An installation may lie in somebody else's checkout, and a hook of git name one.
    own = checkout / ".git"
    if not own.exists():
        return None, None

    def git(*arguments: str) -> str:
        command = ["git", f"--git-dir={own}", f"--work-tree={checkout}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return commit, bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None, None
