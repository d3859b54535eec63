"""What the documents say is what the programs print."""

import re
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
TARGETS = ("gpu", "tpu")


@pytest.mark.processes
def test_the_accelerator_tables_are_what_the_script_prints() -> None:
    printed = subprocess.run(
        [sys.executable, str(DOCS / "accelerators.py")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    page = (DOCS / "accelerators.md").read_text()
    tables = printed.strip().split("\n\n")
    assert len(tables) == 2 and all(table in page for table in tables)
    # 6 * 1.298 GMACs of the teacher, 6 * 0.679 + 2 * 1.298 of the student, an image.
    assert f"{50_000 * 200 * (6 * 1.298e9 + 6 * 0.679e9 + 2 * 1.298e9):.1e}" in page


def test_every_command_that_installs_jax_has_the_range_of_the_requirements() -> None:
    root = DOCS.parent
    wanted = re.findall(r"^jax(\S+)$", (root / "requirements.txt").read_text(), re.M)
    # The notebook says it otherwise; see test_notebook.py.
    pages = ("README.md", "docs/accelerators.md")
    for page in (*pages, *(f"benchmarks/requirements-{kind}.txt" for kind in TARGETS)):
        found = re.findall(r"jax\[(\w+)\]([^\s\"\\]*)", (root / page).read_text())
        extras, ranges = zip(*found, strict=True)
        assert set(extras) <= set(metadata("jax").get_all("Provides-Extra") or ())
        assert set(ranges) == set(wanted), page
