"""The page about a run."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import run_command, tiny_config

import alite_jax
from alite_jax.errors import CheckpointError
from alite_jax.pages import run_plots
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
        *("Teacher and student", "Learning", "Density of each layer", "Masks"),
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
    run_plots.draw(run_plots.masks, {"a": np.zeros((2, 3), bool)})
    picture = run_plots.draw(run_plots.attention, image, np.ones((1, 2, 3, 3)))
    assert picture.startswith(b"\x89PNG")


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
