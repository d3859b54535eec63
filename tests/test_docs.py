"""What the documents say is what the programs print."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path

import pytest
from absl.testing import flagsaver

from alite_jax.command_line import FLAGS, parse, with_job_flag
from alite_jax.jobs.command import Command
from alite_jax.study.declaration import get_study

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md")))
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


def commands() -> Iterator[str]:
    """What the pages tell to type; no `predict`, no help, nothing cut short by dots."""
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
            text = block.replace("\\\n", " ")
            found = re.findall(r"(?:python launch\.py|alite) (?!predict).*", text)
            yield from (line for line in found if not re.search("\\.{3}|--help", line))


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_every_command_of_the_pages_is_one(command: str, tmp_path: Path) -> None:
    program, *arguments = shlex.split(command.removesuffix("; do"), comments=True)
    if program == "alite":
        arguments = with_job_flag(arguments)
    else:
        assert arguments.pop(0) == "launch.py"
    with flagsaver.flagsaver():
        try:
            overrides = parse(["launch.py", *arguments])
            Command(FLAGS.config, overrides, tmp_path, FLAGS).config()
            if FLAGS.study:
                assert set(FLAGS.rows) <= set(get_study(FLAGS.study).rows)
        finally:
            FLAGS.unparse_flags()
