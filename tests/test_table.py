"""The comparison table, letter by letter."""

import copy
from typing import Any

from alite_jax.analysis.table import comparison_table

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
    "ratios": {"parameters": 51.4917, "macs": 2.1576, "nonzero_macs": 39.3888},
    "accuracy_drop": 0.41,
    "seconds": {"teacher": 61.23, "student": 1120.4},
    "config": {},
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
    summary["accuracy_drop"] = -1.5
    summary["ratios"]["macs"] = 0.5
    summary["seconds"] = {}
    table = comparison_table(summary)
    assert "+1.50 points" in table
    assert "2.0x larger" in table
    assert table.endswith("39.4x smaller")
