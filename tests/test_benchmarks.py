"""How the benchmarks count; what they measure is theirs, and no test's business."""

from benchmarks.__main__ import DEFAULT, SECTIONS, table
from benchmarks.targets import TARGETS
from benchmarks.timing import Row, interleave, ratios, total


def test_a_row_is_the_median_of_its_rounds_with_the_extremes() -> None:
    assert Row.of([3.0, 1.0, 8.0], "x", "d") == Row(3.0, "x", 1.0, 8.0, "d")


def test_ratios_and_sums_go_round_by_round() -> None:
    assert ratios([8.0, 9.0], [2.0, 3.0]) == [4.0, 3.0]
    assert total([[1.0, 2.0], [10.0, 20.0]]) == [11.0, 22.0]


def test_peers_take_turns() -> None:
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
