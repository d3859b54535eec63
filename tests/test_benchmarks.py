"""How the benchmarks count; what they measure is theirs, and no test's business."""

import gc

import jax
import numpy as np
import pytest
from exports import onnx_model, some_images
from jax.sharding import Mesh

from alite_jax.training.step import AXIS
from benchmarks.__main__ import DEFAULT, SECTIONS, table
from benchmarks.ahead_programs import lower
from benchmarks.compile_ahead import Case, Outcome, cases, outcome_of, row
from benchmarks.kernel_registers import Kernel, kernels_of
from benchmarks.runtimes import BATCHES, SIZES, by_kind, profile, summary
from benchmarks.targets import TARGETS
from benchmarks.timing import Row, interleave, ratios, total


def test_a_row_is_the_median_of_its_rounds_with_the_extremes() -> None:
    assert Row.of([3.0, 1.0, 8.0], "x", "d") == Row(3.0, "x", 1.0, 8.0, "d")


def test_ratios_and_sums_go_round_by_round() -> None:
    assert ratios([8.0, 9.0], [2.0, 3.0]) == [4.0, 3.0]
    assert total([[1.0, 2.0], [10.0, 20.0]]) == [11.0, 22.0]


def test_peers_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "collect", lambda: 0)  # Of all tests, that takes seconds.
    calls = []
    peers = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    times = interleave(peers, rounds=2, at_least=0.0)
    # Warm-up and the estimate of the repeats, then one call a round.
    assert calls == [*"aa", *"bb", *"ab", *"ab"]
    assert {name: len(found) for name, found in times.items()} == {"a": 2, "b": 2}


def test_the_table_says_which_targets_are_reached() -> None:
    def row(value: float) -> dict:
        return {"value": value, "unit": "x", "low": value, "high": value}

    lines = table(
        {
            "joint_step_vs_torch": row(8.0),
            "attention_vs_jax_unfold": row(7.9),
            "attention_step_over_conv_step": row(2.1),
            "attention_growth_kernel_3": row(1.0),
        }
    ).splitlines()
    ends = [line.split()[-1] for line in lines[1:]]
    assert ends == ["reached", "missed", "missed", "x"]
    assert {relation for relation, _ in TARGETS.values()} == {">=", "<="}


def test_what_runs_by_default_can_be_run() -> None:
    assert set(DEFAULT) < set(SECTIONS)
    assert "runtimes" in DEFAULT


def test_runtimes_are_compared_by_the_rows_that_have_targets() -> None:
    times = {
        "teacher": [8.0, 6.0],
        "convolutional": [4.0, 4.0],
        "student": [4.0, 8.0],
        "structured": [2.0, 3.0],
    }
    macs = {"teacher": 200, "convolutional": 120, "student": 100, "structured": 40}
    rows = summary("onnx_16x16_batch_1", times, macs)
    rows = {name.removeprefix("onnx_16x16_batch_1_"): row for name, row in rows.items()}
    student = Row(6000.0, "ms", 4000.0, 8000.0, "0.500 of the teacher's MACs")
    assert rows["student"] == student
    gain = rows["student_vs_teacher"]
    assert (gain.value, gain.low, gain.high) == (1.375, 0.75, 2.0)
    # 2 / 4 and 3 / 8 of the time, for 0.4 of the MACs.
    over = rows["structured_over_promise"]
    assert (over.low, over.high) == pytest.approx((0.375 / 0.4, 0.5 / 0.4))

    targets = {
        f"onnx_{side}x{side}_batch_{batch}_{name}"
        for side, _ in SIZES
        for batch in BATCHES
        for name in rows.keys() - times.keys() - {"convolutional_vs_teacher"}
    }
    assert targets == {name for name in TARGETS if name.startswith("onnx_")}


def test_nodes_are_summed_by_kind_and_small_kinds_together() -> None:
    nodes = [("Add", 0.01), ("Conv", 0.4), ("Pad", 0.01), ("Add", 0.18), ("Conv", 0.4)]
    rows = by_kind(nodes)
    assert list(rows) == ["Conv", "Add", "others"]
    assert [row.value for row in rows.values()] == pytest.approx([800, 190, 10])
    assert rows["Conv"].detail == "2 nodes, 80% of 1000 ms"


def test_each_node_of_a_program_is_timed_once() -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    nodes = profile(onnx_model(None), some_images(2))
    assert sorted(kind for kind, _ in nodes) == ["Cast", "Flatten", "MatMul"]
    assert all(0 <= seconds < 1 for _, seconds in nodes)


JOINT = Case("H100", "cifar10", "joint", "float32", "128")


def test_an_abort_of_the_compiler_is_a_row_with_its_reason() -> None:
    errors = (
        "W1126 09:45:16.1 14403 cuda.cc:1] no driver\n"
        "F1126 09:45:17.242   14403 tiling.cc:627] Check failed: a == b (256 vs. 32)\n"
        "*** Check failure stack trace: ***\n    @  0x7f  main\n"
    )
    outcome = outcome_of(-6, "", errors)
    reason = "SIGABRT: tiling.cc:627] Check failed: a == b (256 vs. 32)"
    assert outcome == Outcome(False, reason=reason)
    line = row(JOINT, outcome)
    assert line.split()[:6] == [*JOINT, "no"]
    assert line.endswith(reason)


def test_an_exception_and_a_result_are_rows_too() -> None:
    failed = outcome_of(1, "", "Traceback ...\nImportError: no plugin\n")
    assert failed == Outcome(False, reason="ImportError: no plugin")
    found = outcome_of(0, "something else\n[61.4, 1880.04, 25, 3]\n", "")
    assert found == Outcome(True, 61.4, 1880.04, 25, 3)
    assert row(JOINT, found).split() == [*JOINT, "yes", "61", "1880", "25", "3"]


def test_what_has_no_batch_is_compiled_once() -> None:
    found = cases(["H100"], ["digits"], ["rewiring", "joint"], ["float32"], ["8", "9"])
    assert [(case.program, case.batch) for case in found] == [
        ("rewiring", "8"),
        ("joint", "8"),
        ("joint", "9"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet26", "evaluation_resnet50", "exported"])
def test_what_is_compiled_ahead_can_be_lowered(name: str) -> None:
    mesh = Mesh(np.array(jax.devices()[:1]), (AXIS,))
    lowered = lower("cifar10", name, "bfloat16", 8, mesh)
    assert "8x32x32x3xui8" in lowered.as_text()


def test_registers_and_spills_are_read_from_what_the_assembler_says() -> None:
    said = (
        "ptxas info    : Compiling entry function 'input_fusion' for 'sm_90a'\n"
        "    0 bytes stack frame, 7 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Used 16 registers, used 0 barriers\n"
        "ptxas info    : Compiling entry function 'local_attention_map' for 'sm_90a'\n"
        "    8 bytes stack frame, 12 bytes spill stores, 28 bytes spill loads\n"
        "ptxas info    : Used 255 registers, used 1 barriers\n"
    )
    assert kernels_of(said) == [Kernel("map", spilled=12, registers=255)]
