"""The page about a run."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import run_command, tiny_config

import alite_jax
from alite_jax.errors import CheckpointError
from alite_jax.pages import run_plots
from alite_jax.pages.class_sections import accuracy_of_classes, confusion
from alite_jax.pages.plot_style import STYLE
from alite_jax.pages.report_page import Section, report_page

pytestmark = pytest.mark.usefixtures("models")


class Tags(HTMLParser):
    """Checks that tags are closed in order, and collects them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_of_a_run(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    assert run_command("--job=report", f"--workdir={run}") == 0
    assert f"written to {run}/report/index.html" in capsys.readouterr().out
    page = (run / "report" / "index.html").read_text()
    assert Tags(page).seen.count("img") >= 6
    for title in (
        *(
            "Teacher and student",
            "Accuracy of each class",
            "Learning",
            "Density of each layer",
            "Masks",
        ),
        *("Where attention looks", "Wrong predictions", "Confusion matrix"),
        *("Cost of each layer", "Configuration"),
    ):
        assert f"<h2>{title}</h2>" in page
    assert "Exported" not in page
    # Nothing comes from elsewhere, and nothing runs.
    assert not re.search(r"https?://|<script|<link|src=\"(?!data:)", page)
    assert len(page) < 2_000_000


def test_a_run_that_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no finished run, which a report"):
        alite_jax.report(tiny_config(), tmp_path)


def test_text_is_never_markup() -> None:
    wild = "<script>&\"'"
    section = Section(wild, wild, b"", [[wild], [wild]], wild)
    page = report_page(wild, wild, [(wild, wild)], [section])
    assert "<script" not in page and page.count("&lt;script&gt;&amp;") == 10
    Tags(page)


def test_pictures_of_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """No lines, numbers that are not finite, one class, one image."""
    monkeypatch.setitem(STYLE, "savefig.dpi", 20)  # Larger ones take longer.
    for records in (
        [],
        [{"phase": "student", "step": 1, "loss": None}],
        [{"phase": "student", "step": 4, "density/stem": 0.0}],
    ):
        run_plots.draw(run_plots.curves, records)
        run_plots.draw(run_plots.layers_over_time, records)
    image = np.zeros((1, 4, 4, 3), np.uint8)
    one = np.ones((1, 1))
    run_plots.draw(run_plots.examples, image, np.array([0]), one, ["a"])
    run_plots.draw(run_plots.confusion_matrix, np.array([[0]]), ["a"])
    dear = ["a $5 bill", "a $10 bill with a name that takes more room than there is"]
    run_plots.draw(run_plots.confusion_matrix, np.eye(2), dear)
    run_plots.draw(run_plots.masks, {"a": np.zeros((2, 3), bool)})
    picture = run_plots.draw(run_plots.attention, image, np.ones((1, 2, 3, 3)))
    assert picture.startswith(b"\x89PNG")


def summary_of(teacher: list[Any], student: list[Any]) -> dict[str, Any]:
    return {
        name: {"class_accuracy": {f"c{i}": x for i, x in enumerate(accuracies)}}
        for name, accuracies in (("teacher", teacher), ("student", student))
    }


def test_the_accuracy_of_few_classes() -> None:
    (section,) = accuracy_of_classes(summary_of([1, 0.5, None], [0.75, 0.5, None]))
    assert [row[0] for row in section.rows] == ["class", "c1", "c0"]
    assert "Without evaluation images: c2." in section.text
    assert not section.folded
    # A summary from before says nothing of it.
    assert accuracy_of_classes({"teacher": {}, "student": {}}) == []


def test_the_accuracy_of_many_classes() -> None:
    accuracies = [i / 200 for i in range(200)]
    (section,) = accuracy_of_classes(summary_of(accuracies, accuracies))
    shown = [row[0] for row in section.rows]
    worst, best = ([f"c{i}" for i in part] for part in (range(10), range(190, 200)))
    assert shown == ["class", *worst, "180 more", *best]
    lines = section.folded.splitlines()
    assert len(lines) == 201 and lines[101].startswith("c100 ")
    (section,) = accuracy_of_classes(summary_of(accuracies[:20], accuracies[:20]))
    assert len(section.rows) == 21 and not section.folded


def test_the_mistakes_of_many_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STYLE, "savefig.dpi", 20)
    counts = 50 * np.eye(200, dtype=int)
    counts[3, 4], counts[150, 7] = 2, 9
    section = confusion(counts, [f"c{i}" for i in range(200)])
    assert section.rows[1:] == [["c150", "c7", "9 of 59"], ["c3", "c4", "2 of 52"]]
    assert section.picture
    assert not confusion(counts[:20, :20], [f"c{i}" for i in range(20)]).rows


@pytest.mark.slow
def test_the_page_in_a_browser(finished_run: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here")
    run = shutil.copytree(finished_run, tmp_path / "run")
    page = alite_jax.report(tiny_config(), run)
    shot = tmp_path / "page.png"
    subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu"),
            *("--window-size=1100,4000", f"--screenshot={shot}", f"file://{page}"),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    pixels = np.asarray(Image.open(shot).convert("L"))
    assert pixels.shape == (4000, 1100)
    assert (pixels < 128).mean() > 0.005 and pixels[:, :20].min() > 200
