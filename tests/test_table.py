"""Teacher beside student, letter by letter."""

import copy
from typing import Any

from alite_jax.pages.table import card_rows, class_rows, comparison_table

SUMMARY: dict[str, Any] = {
    "dataset": "cifar10",
    "seed": 0,
    "teacher": {
        "name": "resnet50",
        "accuracy": 0.9512,
        "parameters": 23_520_842,
        "nonzero_parameters": 23_520_842,
        "macs": 1_304_694_794,
    },
    "student": {
        "name": "resnet26_attention_conv1",
        "accuracy": 0.9471,
        "parameters": 8_295_074,
        "nonzero_parameters": 456_789,
        "macs": 604_694_794,
        "nonzero_macs": 33_123_456,
        "density": 0.05,
    },
    "seconds": {"teacher": 61.23, "student": 1120.4},
}

TABLE = """\
cifar10, seed 0
teacher: resnet50
student: resnet26_attention_conv1 at density 5.00 %

                           teacher      student         change
accuracy                   95.12 %      94.71 %   -0.41 points
parameters              23,520,842    8,295,074   2.8x smaller
non-zero parameters     23,520,842      456,789  51.5x smaller
MACs                 1,304,694,794  604,694,794   2.2x smaller
non-zero MACs        1,304,694,794   33,123,456  39.4x smaller

teacher     61.2 s
student  1,120.4 s"""


def test_table_is_aligned_and_fits_a_terminal() -> None:
    assert comparison_table(SUMMARY) == TABLE
    assert max(map(len, TABLE.splitlines())) <= 80


def test_a_larger_and_better_student() -> None:
    summary = copy.deepcopy(SUMMARY)
    summary["student"] |= {"accuracy": 0.9662, "macs": 2 * 1_304_694_794}
    summary["seconds"] = {}
    table = comparison_table(summary)
    assert "+1.50 points" in table
    assert "2.0x larger" in table
    assert table.endswith("39.4x smaller")


def test_a_note_is_the_last_line() -> None:
    note = {"config": {"logging": {"note": "Means nothing."}}}
    assert comparison_table(SUMMARY | note) == f"{TABLE}\n\nMeans nothing."


def test_the_parts_of_a_process_are_below_it() -> None:
    seconds = {"this_process": 10.0, "of_this_process": {"reading": 4.0, "other": 6.0}}
    lines = comparison_table(SUMMARY | {"seconds": seconds}).splitlines()[-3:]
    assert lines == [
        "this process  10.0 s",
        "  reading      4.0 s",
        "  other        6.0 s",
    ]


def test_an_export_beside_its_teacher() -> None:
    teacher = SUMMARY["teacher"] | {"nonzero_macs": 1_304_694_794}
    teacher |= {"bytes": 94_000_000, "program_bytes": 50_000}
    card = SUMMARY["student"] | {
        "teacher": teacher,
        "bytes": {"header": 1_000, "weights": 399_000, "program": 70_000},
        "milliseconds": {
            "teacher": {"1": 3.0, "64": 150.0},
            "student": {"1": 4.5, "64": 50.0},
        },
    }
    rows = card_rows(card)
    of_networks = [line.split("  ") for line in TABLE.splitlines()[5:10]]
    assert rows[:5] == [[c.strip() for c in cells if c] for cells in of_networks]
    assert rows[5:] == [
        ["bytes of the weights", "94,000,000", "400,000", "235.0x smaller"],
        ["bytes of the program", "50,000", "70,000", "1.4x larger"],
        ["bytes, weights and program", "94,050,000", "470,000", "200.1x smaller"],
        ["milliseconds, batch of 1", "3.00", "4.50", "1.5x slower"],
        ["milliseconds, batch of 64", "150.00", "50.00", "3.0x faster"],
    ]


def test_other_accuracies_have_a_row_where_they_say_more() -> None:
    summary = copy.deepcopy(SUMMARY)
    for network in ("teacher", "student"):
        # Of as many images of each class, and summed in another order.
        accuracy = summary[network]["accuracy"]
        summary[network]["mean_class_accuracy"] = accuracy * (1 + 1e-15)
    assert comparison_table(summary) == TABLE
    summary["student"]["mean_class_accuracy"] = 0.5
    lines = comparison_table(summary).splitlines()
    assert lines[5:7] == [
        TABLE.splitlines()[5],
        "mean of the classes        95.12 %      50.00 %  -45.12 points",
    ]
    for network in ("teacher", "student"):
        summary[network]["top5_accuracy"] = 0.99
    lines = comparison_table(summary).splitlines()
    assert lines[7] == "top-5                      99.00 %      99.00 %   +0.00 points"


def test_the_worst_classes_come_first() -> None:
    teacher = {"cat": 0.5, "dog": 1.0, "emu": None, "fox": 0.25}
    student = {"cat": 0.75, "dog": 0.5, "emu": None, "fox": 0.5}
    assert class_rows(teacher, student) == [
        ["dog", "100.00 %", "50.00 %", "-50.00 points"],
        ["fox", "25.00 %", "50.00 %", "+25.00 points"],
        ["cat", "50.00 %", "75.00 %", "+25.00 points"],
    ]
