"""Exact top-k: against a stable sort, with ties, empty choices and traced counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import full_jit
from hypothesis import given, settings
from hypothesis import strategies as st
from references import top_by_sorting

from alite_jax.sparsity.selection import Layout


def top(scores, count):
    """Of one layer alone."""
    layout = Layout((len(scores),))
    real = layout.pack([jnp.ones(len(scores), bool)])
    packed = jnp.where(real, layout.pack([jnp.asarray(scores)]), -jnp.inf)
    return layout.unpack(layout.top(packed, jnp.asarray(count)[None]))[0]


select = full_jit(top)

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


SIZES = (1, 511, 512, 513, 3, 2000)


def test_layers_of_many_sizes_are_laid_out_and_taken_out_again():
    layout = Layout(SIZES)
    layers = [np.arange(size, dtype=np.float32) for size in SIZES]
    matrix = jax.jit(layout.pack)(layers)
    assert matrix.shape == layout.shape == (10, 512)
    for found, layer in zip(jax.jit(layout.unpack)(matrix), layers, strict=True):
        np.testing.assert_array_equal(found, layer)
    np.testing.assert_array_equal(
        layout.sums(matrix), [layer.sum() for layer in layers]
    )
    values = jnp.arange(len(SIZES))
    np.testing.assert_array_equal(layout.per_row(values)[:, 0], layout.layer_of_row)


@pytest.mark.parametrize("seed", range(5))
def test_each_layer_is_chosen_from_as_if_it_were_alone(seed):
    rng = np.random.default_rng(seed)
    layout = Layout(SIZES)
    layers = [rng.integers(0, 9, size).astype(np.float32) for size in SIZES]
    counts = np.array([rng.integers(0, size + 1) for size in SIZES])

    @jax.jit
    def choose(layers, counts):
        real = layout.pack([jnp.ones(size, bool) for size in SIZES])
        scores = jnp.where(real, layout.pack(layers), -jnp.inf)
        return layout.unpack(layout.top(scores, counts))

    chosen = choose(layers, counts)
    for found, layer, count in zip(chosen, layers, counts, strict=True):
        np.testing.assert_array_equal(found, top_by_sorting(layer, count))
