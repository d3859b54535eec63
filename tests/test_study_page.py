"""The table of a study letter by letter, and its plots from hand-made records."""

import io
from typing import Any

import pytest
from PIL import Image

from alite_jax.errors import ConfigError
from alite_jax.pages.plot_style import Point, space_out, with_front
from alite_jax.pages.study_exports import (
    best,
    export_table,
    front,
    row_exports,
    runtime_table,
)
from alite_jax.pages.study_page import study_page, study_table
from alite_jax.pages.study_plots import study_plots
from alite_jax.pages.study_rows import RowResult, line_styles


def make_record(
    seed: int = 0, density: float | None = None, accuracy: float = 0.9, epochs: int = 2
) -> dict[str, Any]:
    """A teacher's record, or with a density that of a student 10 points below 1."""
    phase = "teacher" if density is None else "student"
    kept = density or 1.0
    network = {
        "accuracy": accuracy,
        "density": kept,
        "nonzero_parameters": int(1_000_000 * kept),
        "macs": 20_000_000,
        "nonzero_macs": int(20_000_000 * kept),
    }
    summary = {
        "seed": seed,
        phase: network,
        "seconds": {f"{phase}_training": 60.0 + seed},
        "environment": {"jax": "0.10.2", "device": "2 CPU cores"},
        "config": {
            "seed": seed,
            "teacher": {"epochs": epochs},
            "student": {"epochs": epochs, "density": kept},
        },
    }
    if density is not None:
        summary["ratios"] = {"parameters": 2 / kept}
        summary["accuracy_drop"] = 100 * (1 - accuracy)
    pruned = density is not None and density < 1
    return {
        "date": f"2026-11-2{seed}",
        "summary": summary,
        "curves": {phase: {"eval_accuracy": [accuracy / 2, accuracy][:epochs]}},
        "layers": {"classifier": [0.2, 0.1], "stem": [0.1, 0.0]} if pruned else {},
    }


ROWS = [
    RowResult("teacher", "?", [make_record(), make_record(seed=1, accuracy=0.96)]),
    RowResult("dense", "how good is it", [make_record(density=1.0)]),
    RowResult(
        "joint",
        "is it as good",
        [
            make_record(density=0.1, accuracy=0.88),
            make_record(seed=1, density=0.1, accuracy=0.92),
        ],
    ),
    RowResult(
        "after", "why not after", [make_record(density=0.1, epochs=1)], start="dense"
    ),
]

TABLE = """\
| row | seeds | epochs | accuracy | points below its teacher | non-zero parameters \
| teacher / row | MACs | non-zero MACs | seconds |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| teacher | 0, 1 | 2 | 93.00 % (90.00 to 96.00, n = 2) | | 1,000,000 | | 20 M | 20 M \
| 60 |
| dense | 0 | 2 | 90.00 % | 10.00 | 1,000,000 | 2.0x | 20 M | 20 M | 60 |
| joint | 0, 1 | 2 | 90.00 % (88.00 to 92.00, n = 2) | 10.00 (8.00 to 12.00, n = 2) \
| 100,000 | 20.0x | 20 M | 2 M | 60 |
| after | 0 | 2 + 1 | 90.00 % | 10.00 | 100,000 | 20.0x | 20 M | 2 M | 60 + 60 |"""


def test_the_table() -> None:
    assert study_table(ROWS) == TABLE


def test_what_a_row_started_from_may_be_unknown() -> None:
    last = study_table(ROWS[:1] + ROWS[3:]).splitlines()[-1]
    assert "| ? + 1 |" in last and last.endswith("| ? + 60 |")


def test_the_page() -> None:
    page = study_page(
        "A study",
        "Of this and that.",
        "run it",
        ROWS,
        [("plot.png", "A plot")],
        ["later"],
    )
    assert page.startswith("# A study\n\nOf this and that.\n\n| row |")
    assert "\n\nNot run yet: later.\n\n" in page
    assert "\n\n6 runs, 2026-11-20 to 2026-11-21, jax 0.10.2 on 2 CPU cores.\n" in page
    assert "\n\nA plot\n\n![A plot](plot.png)\n\n" in page
    assert page.endswith("\n| after | why not after | `run it --rows=after` |\n")
    alone = study_page("T", "D", "", ROWS[1:2])
    assert alone.endswith("| dense | how good is it | |\n")
    assert "1 runs" not in alone and "2026-11-20, jax" in alone
    assert "Not run yet" not in alone


def test_plots_are_small_images_and_always_the_same() -> None:
    plots = study_plots(ROWS)
    assert len(plots) == 5
    for caption, image in plots.values():
        assert caption and len(image) < 100_000
        pixels = Image.open(io.BytesIO(image))
        assert pixels.format == "PNG" and pixels.width >= 900
        colours = pixels.convert("RGB").getcolors(1 << 20)
        assert colours is not None and len(colours) > 20
    assert study_plots(ROWS) == plots


def test_a_plot_without_anything_to_show_is_left_out() -> None:
    assert list(study_plots(ROWS[:1])) == ["learning_curves.png"]
    assert len(study_plots(ROWS[:2])) == 3
    assert study_plots([]) == {}


def test_labels_are_moved_apart() -> None:
    assert space_out([1.0, 1.0, 5.0], 1.0, 0.0, 9.0) == [1.0, 2.0, 5.0]
    assert space_out([8.5, 9.0, 9.0], 1.0, 0.0, 9.0) == [7.0, 8.0, 9.0]
    assert space_out([-3.0], 1.0, 0.0, 9.0) == [0.0]
    assert space_out([], 1.0, 0.0, 9.0) == []


def test_points_that_none_beats_in_both() -> None:
    places = {"a": (1, 5), "b": (1, 6), "c": (2, 6), "d": (3, 7), "e": (4, 2)}
    points = [Point(x, y, name, "black") for name, (x, y) in places.items()]
    assert [p.name for p in with_front(points) if p.front] == ["b", "d"]


def test_many_rows_look_different() -> None:
    rows = [RowResult(f"row{i}", "?", [make_record(density=0.1)]) for i in range(35)]
    styles = line_styles(rows)
    for look in ([(c, line) for c, line, _ in styles], [(c, m) for c, _, m in styles]):
        assert len(set(look)) == 35
    for _, image in study_plots(rows[:9]).values():  # Each takes its time.
        assert len(image) < 200_000


def test_a_row_needs_records() -> None:
    with pytest.raises(ConfigError, match="row 'empty' has no records"):
        RowResult("empty", "?", [])


def test_rows_that_differ_in_density_only_are_one_recipe() -> None:
    assert ROWS[1].recipe == ROWS[2].recipe != ROWS[3].recipe


def make_export(accuracy: float, milliseconds: float, teacher: float) -> dict[str, Any]:
    return make_record(density=0.1) | {
        "export": {
            "accuracy": accuracy,
            "bytes": {"header": 1_000, "weights": 49_000, "program": 7},
            "macs": 4_000_000,
            "milliseconds": {
                "student": {"1": milliseconds, "64": 10.0},
                "teacher": {"1": teacher, "64": 15.0},
            },
            "teacher": {"accuracy": 0.9, "bytes": 1_000_000},
            "environment": {"jax": "0.10", "device": "a CPU", "date": "2026-11-25"},
        }
    }


EXPORTED = [
    *ROWS[:2],
    RowResult("slow", "?", [make_export(0.91, 4.0, 6.0), make_record(1, 0.1)]),
    RowResult("near", "?", [make_export(0.892, 3.0, 5.0)]),
    RowResult("beaten", "?", [make_export(0.86, 3.5, 5.0)]),
    RowResult("fast", "?", [make_export(0.84, 1.0, 5.0), make_export(0.86, 1.5, 5.0)]),
]


def test_the_table_of_files() -> None:
    lines = [", ".join(cells) for cells in export_table(row_exports(EXPORTED))]
    assert lines == [
        "row, seeds, accuracy, points below its teacher, bytes of the weights,"
        " teacher's float32 / row, MACs, ms, batch of 1, teacher / row,"
        " ms, batch of 64, teacher / row",
        "slow, 0, 91.00 %, -1.00, 50,000, 20.0x, 4 M, 4.00, 1.50x, 10.00, 1.50x",
        "near, 0, 89.20 %, 0.80, 50,000, 20.0x, 4 M, 3.00, 1.67x, 10.00, 1.50x",
        "beaten, 0, 86.00 %, 4.00, 50,000, 20.0x, 4 M, 3.50, 1.43x, 10.00, 1.50x",
        "fast, 0, 0, 85.00 %, 5.00, 50,000, 20.0x, 4 M, 1.25, 4.00x, 10.00, 1.50x",
    ]
    assert row_exports(ROWS) == [] == export_table([])


def test_the_table_of_runtimes() -> None:
    record = make_export(0.91, 4.0, 6.0)
    card = record["export"]
    card["teacher"] |= {"program_bytes": 50_007, "macs": 8_000_000}
    card["formats"] = {
        "safetensors": {"bytes": 3},  # No program: nothing runs it.
        "onnx": {
            **{"accuracy": 0.9, "bytes": 200_000, "teacher_bytes": 100_000},
            "milliseconds": {"student": {"1": 2.0}, "teacher": {"1": 1.0}},
        },
    }
    rows = [*EXPORTED[:2], RowResult("both", "?", [record, record])]
    head, *lines = [", ".join(cells) for cells in runtime_table(rows)]
    assert head == (
        "row, runs as, MACs, teacher / row, accuracy, teacher's, bytes, teacher / row,"
        " ms, batch of 1, teacher / row, ms, batch of 64, teacher / row"
    )
    both = "both, {}, 4 M, 2.00x, {}, 90.00 %, {}"
    assert lines == [
        both.format("jax", "91.00 %", "50,007, 21.00x, 4.00, 1.50x, 10.00, 1.50x"),
        both.format("onnx", "90.00 %", "200,000, 0.50x, 2.00, 0.50x, , "),
    ]
    assert "### In each runtime" in study_page("T", "D", "", rows)
    assert runtime_table(EXPORTED) == []


def test_the_best_file_and_those_that_none_beats() -> None:
    exports = row_exports(EXPORTED)
    found = best(exports, "1")
    assert found is not None and found.row.name == "near"
    assert [found.row.name for found in front(exports, "1")] == ["fast", "near", "slow"]
    # The same time for all: only the most accurate is left.
    assert [found.row.name for found in front(exports[::-1], "64")] == ["slow"]
    assert best(exports[2:], "1") is None


def test_a_study_with_files_has_their_table_and_plot() -> None:
    page = study_page("T", "D", "", EXPORTED)
    assert "\n\n## As files\n\n| row | seeds | accuracy |" in page
    assert "\n\n5 exports, 2026-11-25, jax 0.10 on a CPU.\n" in page
    assert "## As files" not in study_page("T", "D", "", ROWS)
    caption, image = study_plots(EXPORTED)["accuracy_by_milliseconds.png"]
    assert "Ringed: the fastest" in caption
    assert Image.open(io.BytesIO(image)).width >= 1_000
