"""How layers share a density: against the definitions, and what always holds."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references import erk_shares

from alite_jax.errors import ConfigError
from alite_jax.sparsity.distributions import DISTRIBUTIONS, layer_counts

# The kernels of a stem, a bottleneck and a classifier.
NETWORK = [(3, 3, 3, 16), (16, 16), (3, 3, 16, 16), (16, 64), (64, 128), (128, 10)]
SIZES = [math.prod(shape) for shape in NETWORK]
DENSITIES = [0.01, 0.03, 0.05, 0.1, 0.25, 0.5, 0.9, 0.99, 1.0]

shapes_of_layers = st.lists(
    st.lists(st.integers(1, 24), min_size=1, max_size=4).map(tuple),
    min_size=1,
    max_size=7,
)
densities = st.floats(0.001, 1.0)


@pytest.mark.parametrize("density", DENSITIES)
def test_uniform_rounds_each_layer(density):
    counts = layer_counts(NETWORK, density, "uniform")
    assert counts == [max(1, round(density * size)) for size in SIZES]


def test_erk_by_hand():
    # Dimensions sum to 20 and 11; at density .3 the 110 weights keep 33, of which the
    # second layer's share 33 * 11 / 31 = 11.7 is more than its 10.
    assert layer_counts([(10, 10), (1, 10)], 0.3, "erk") == [23, 10]
    # Nothing is full here: 20, 20 and 60 of sum 100 share 200 weights as 40, 40, 120.
    layers = [(10, 10), (10, 10), (30, 30)]
    assert layer_counts(layers, 200 / 1100, "erk") == [40, 40, 120]


@pytest.mark.parametrize("density", DENSITIES)
def test_erk_keeps_the_total_and_follows_its_definition(density):
    counts = layer_counts(NETWORK, density, "erk")
    assert sum(counts) == math.floor(density * sum(SIZES) + 0.5)
    for count, share, size in zip(
        counts, erk_shares(NETWORK, density), SIZES, strict=True
    ):
        assert count <= size
        assert abs(count - share) < 1.0001


def test_erk_leaves_small_layers_denser_than_uniform():
    counts = layer_counts(NETWORK, 0.05, "erk")
    kept = [count / size for count, size in zip(counts, SIZES, strict=True)]
    assert kept[1] > 0.1 > 0.05 > kept[4]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(shapes=shapes_of_layers, density=densities)
def test_erk_on_any_network(shapes, density):
    sizes = [math.prod(shape) for shape in shapes]
    counts = layer_counts(shapes, density, "erk")
    shares = erk_shares(shapes, density)
    total = math.floor(density * sum(sizes) + 0.5)
    # A layer whose share rounds to nothing still gets one weight.
    lifted = sum(share < 1 for share in shares)
    assert total <= sum(counts) + 1e-6 <= total + lifted + 1
    for count, share, size in zip(counts, shares, sizes, strict=True):
        assert 1 <= count <= size
        assert abs(count - share) < 1.0001


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@settings(max_examples=50, deadline=None, derandomize=True)
@given(shapes=shapes_of_layers, density=densities)
def test_every_distribution_gives_plain_numbers_within_each_layer(
    distribution, shapes, density
):
    counts = layer_counts(shapes, density, distribution)
    assert all(type(count) is int for count in counts)
    assert all(
        1 <= n <= math.prod(shape) for n, shape in zip(counts, shapes, strict=True)
    )
    full = layer_counts(shapes, 1.0, distribution)
    assert full == [math.prod(shape) for shape in shapes]


@pytest.mark.parametrize("density", [0.0, -0.1, 1.0001, 5, float("nan")])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_density_that_is_no_kept_fraction_is_an_error(density, distribution):
    with pytest.raises(ConfigError, match=r"the density is .*above 0 and at most"):
        layer_counts(NETWORK, density, distribution)


def test_an_unknown_distribution_is_an_error():
    with pytest.raises(ConfigError, match="'unifrom'; did you mean 'uniform'"):
        layer_counts(NETWORK, 0.1, "unifrom")
