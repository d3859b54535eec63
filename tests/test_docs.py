"""What the documents say is what the programs print."""

import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.mark.processes
def test_the_accelerator_tables_are_what_the_script_prints() -> None:
    printed = subprocess.run(
        [sys.executable, str(DOCS / "accelerators.py")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    page = (DOCS / "tpu.md").read_text()
    tables = printed.strip().split("\n\n")
    assert len(tables) == 2 and all(table in page for table in tables)
    # 6 * 1.298 GMACs of the teacher, 6 * 0.679 + 2 * 1.298 of the student, an image.
    assert f"{50_000 * 200 * (6 * 1.298e9 + 6 * 0.679e9 + 2 * 1.298e9):.1e}" in page
