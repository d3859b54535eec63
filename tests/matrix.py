"""Runs the tests on several versions of Python, and on the oldest and newest JAX.

    make test-matrix                                  # the tests of `make test`
    make test-matrix ARGS="tests/test_step.py -x"     # goes to pytest
    make test-matrix PYTHONS="python3.12 /opt/python3.13/bin/python"

Each Python of PYTHONS gets the newest versions that requirements.txt allows; the first
one also gets the lower ends of its ranges. An environment is made once, in
.venv-matrix-NAME; delete it to have newer versions. Needs nothing but Python. Exit
status: 0 if all tests pass everywhere, else 1, also if a Python is missing.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = "python3.11 python3.12 python3.13"
VERSIONS = """
import platform
from importlib.metadata import version
found = [f"{name} {version(name)}" for name in ("jax", "flax", "numpy")]
print("Python", platform.python_version(), *found)
"""


def lower_ends(requirements: str) -> str:
    """The lines `NAME==1.2.*` for lines `NAME>=1.2,<2`."""
    lines = (line for line in requirements.splitlines() if not line.startswith("#"))
    return "".join(re.sub(r">=([^,]+).*", r"==\1.*", line) + "\n" for line in lines)


def run(*command: str | Path, **options: object) -> int:
    """The exit status of a command in the checkout."""
    return subprocess.run(command, cwd=ROOT, check=False, **options).returncode


def prepare(python: str, folder: Path, oldest: bool) -> bool:
    """Makes an environment unless it is there, and says whether that went well."""
    mark = folder / ".installed"
    if mark.exists():
        return True
    if run(python, "-m", "venv", folder):
        return False
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
    limits: list[str | Path] = []
    if oldest:
        file = folder / "lower_ends.txt"
        file.write_text(lower_ends((ROOT / "requirements.txt").read_text()))
        limits = ["--constraint", file]
    # Why the second one is alone is said in requirements-onnx.txt.
    if run(*pip, "-r", "requirements-dev.txt", *limits) or run(
        *pip, "--no-deps", "jax2onnx==0.17.1"
    ):
        return False
    mark.touch()
    return True


def test(python: str, oldest: bool, arguments: list[str]) -> tuple[str, bool]:
    """A line of the table, and whether all tests passed."""
    if shutil.which(python) is None:
        return "no such Python here, name others with PYTHONS=...", False
    asked = "import sys; print('%d.%d' % sys.version_info[:2])"
    number = subprocess.check_output([python, "-c", asked], text=True).strip()
    folder = ROOT / f".venv-matrix-{number}-{'oldest' if oldest else 'newest'}"
    if not prepare(python, folder, oldest):
        return "the environment could not be made", False
    own = folder / "bin" / "python"
    versions = subprocess.check_output([own, "-c", VERSIONS], text=True).strip()
    print(f"\n{versions}", flush=True)
    start = time.monotonic()
    workers = ["-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider"]
    status = run(own, "-m", "pytest", "-q", *workers, *arguments)
    seconds = time.monotonic() - start
    found = "passed" if status == 0 else f"FAILED (pytest's status {status})"
    return f"{versions}: {found} in {seconds:.0f} s", status == 0


def main(arguments: list[str]) -> int:
    """Runs them all, one after the other, and prints the table."""
    pythons = os.environ.get("PYTHONS", "").split() or PYTHONS.split()
    results = []
    for python, oldest in [
        (pythons[0], True),
        *((python, False) for python in pythons),
    ]:
        line, passed = test(python, oldest, arguments)
        kind = "oldest" if oldest else "newest"
        results.append((f"{Path(python).name} {kind:<7} {line}", passed))
    print("\n" + "\n".join(line for line, _ in results))
    return 0 if all(passed for _, passed in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
