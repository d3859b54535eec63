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
from alite_jax.pages.class_sections import class_sections
from alite_jax.pages.plot_style import STYLE
from alite_jax.pages.report_page import Section, report_page
from alite_jax.sparsity.mask_matrices import mask_matrices, shrunk

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
            "Classes",
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


def sections_of(counts: np.ndarray, teacher: Any = None) -> list[Section]:
    names = [f"c{i}" for i in range(len(counts))]
    known = None if teacher is None else dict(zip(names, teacher, strict=True))
    summary = {"teacher": None if known is None else {"class_accuracy": known}}
    return class_sections(summary, counts, names)


def test_a_table_of_few_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STYLE, "savefig.dpi", 20)  # Larger ones take longer.
    counts = np.array([[3, 1, 0], [0, 1, 3], [0, 0, 0]])
    table, matrix = sections_of(counts, [1.0, 0.5, None])
    assert table.rows == [
        [
            *("class", "images", "teacher", "student", "change"),
            "most frequent mistake of the student",
        ],
        ["c1", "4", "50.00 %", "25.00 %", "-25.00 points", "c2 (3)"],
        ["c0", "4", "100.00 %", "75.00 %", "-25.00 points", "c1 (1)"],
    ]
    assert "Without evaluation images: c2." in table.text
    assert not table.folded
    assert matrix.title == "Confusion matrix" and matrix.picture
    # Without a teacher, and in a summary from before, the student is there alone.
    assert sections_of(counts)[0].rows[1] == ["c1", "4", "-", "25.00 %", "", "c2 (3)"]


def test_a_table_of_many_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STYLE, "savefig.dpi", 20)
    counts = 50 * np.eye(200, dtype=int)
    counts[3, 4], counts[150, 7] = 2, 9
    table, matrix = sections_of(counts, [1.0] * 200)
    assert [row[0] for row in table.rows[:4]] == ["class", "c150", "c3", "c0"]
    assert table.rows[1][1:] == ["59", "100.00 %", "84.75 %", "-15.25 points", "c7 (9)"]
    assert len(table.rows) == 22 and table.rows[11][0] == "180 more"
    assert len(table.folded.splitlines()) == 201
    assert "by label from 0" in matrix.text
    few = sections_of(counts[:20, :20], [1.0] * 20)[0]
    assert len(few.rows) == 21 and not few.folded


def test_losses_that_are_the_same_quantity_are_compared() -> None:
    records = [
        {"phase": phase, "step": step, "loss": 9.0, "task_loss": loss}
        for phase, loss in (("teacher", 1.0), ("student", 2.0))
        for step in (1, 2)
    ]
    drawn = run_plots.curves(records).axes[0].lines
    assert [line.get_ydata().tolist() for line in drawn] == [[1.0, 1.0], [2.0, 2.0]]


def test_a_long_name_keeps_its_ends() -> None:
    masks = {"encoder/" * 9 + "query": np.ones((4, 8), bool)}
    title = run_plots.masks(masks).axes[0].get_title(loc="left").splitlines()[0]
    assert len(title) == 28 and title.startswith("encoder/") and title.endswith("query")


def test_a_mask_is_drawn_small() -> None:
    mask = np.array([[True, True, False, False], [True, False, False, False]])
    assert shrunk(mask, 4).tolist() == [[0, 0, 255, 255], [0, 255, 255, 255]]
    assert shrunk(mask, 2).tolist() == [[0, 255], [128, 255]]
    assert shrunk(np.ones((5, 7), bool), 3).tolist() == [[0] * 3] * 3


def test_the_masks_to_look_at_come_from_everywhere() -> None:
    tree = {
        f"stage{i}_block1": {
            "expand": {"kernel": np.ones((2, 3), bool)},
            "spatial": {"query": {"kernel": np.ones((1, 1, 2, 3), bool)}},
        }
        for i in (1, 2, 3)
    } | {"norm": np.True_}
    found = mask_matrices(tree, 3)
    assert [path.split("_")[0] for path in found] == ["stage1", "stage2", "stage3"]
    assert {mask.shape for mask in found.values()} == {(2, 3)}
    assert len(mask_matrices(tree, 9)) == 6
    assert mask_matrices({"norm": np.True_}, 3) == {}
    assert list(mask_matrices({"a": np.ones((2, 3), bool)}, 3)) == ["a"]


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
