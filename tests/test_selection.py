"""Exact top-k: against a stable sort, with ties, empty choices and traced counts."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references import top_by_sorting

from alite_jax.sparsity.selection import top

select = jax.jit(top)

INF = float("inf")
CASES = {
    "all different": [0.5, -1.0, 3.0, 2.0, -7.0, 1e-8],
    "all equal": [2.0] * 6,
    "ties across the threshold": [1.0, 2.0, 1.0, 2.0, 1.0, 0.0],
    "excluded entries": [-INF, 0.0, -INF, 3.0, -INF, -1.0],
    "nothing but excluded entries": [-INF] * 6,
    "infinite and largest": [INF, 3.4e38, -3.4e38, INF, 0.0, 1.0],
    "neighbours in float32": [1.0, 1.0000001, 0.99999994, 1.0, -1.0, -1.0000001],
}


@pytest.mark.parametrize("count", range(7))
@pytest.mark.parametrize("scores", CASES.values(), ids=CASES.keys())
def test_equals_a_stable_sort(scores, count):
    scores = np.array(scores, np.float32)
    found = select(scores, count)
    assert found.dtype == bool and found.shape == scores.shape
    np.testing.assert_array_equal(found, top_by_sorting(scores, count))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_equals_a_stable_sort_on_any_floats(data):
    # Few distinct values among arbitrary ones, so that ties are common. Adding 0.0
    # turns negative zeros into positive ones.
    floats = st.floats(width=32, allow_nan=False, allow_subnormal=False)
    values = st.one_of(st.sampled_from([0.0, 1.0, -1.0, -INF]), floats)
    scores = data.draw(st.lists(values, min_size=16, max_size=16))
    count = data.draw(st.integers(0, 16))
    scores = np.array(scores, np.float32) + np.float32(0)
    np.testing.assert_array_equal(select(scores, count), top_by_sorting(scores, count))


def test_a_long_array_of_coarse_scores():
    scores = np.random.default_rng(0).integers(0, 50, 5000).astype(np.float32)
    for count in (0, 1, 777, 4999, 5000):
        np.testing.assert_array_equal(
            select(scores, count), top_by_sorting(scores, count)
        )


def test_one_program_serves_every_count():
    traces = []

    @jax.jit
    def counted(scores, count):
        traces.append(1)
        return top(scores, count)

    scores = np.arange(9, dtype=np.float32)
    assert [int(counted(scores, count).sum()) for count in range(10)] == list(range(10))
    assert len(traces) == 1


def test_works_without_jit():
    assert top(np.float32([1, 3, 2]), 2).tolist() == [False, True, True]
