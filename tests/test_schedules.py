"""The prune rate over a training, against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alite_jax.errors import ConfigError
from alite_jax.sparsity.schedules import prune_rate


@pytest.mark.parametrize(
    "schedule, progress, expected",
    [
        ("cosine", 0.0, 0.5),
        # .005 + .2475 (1 + cos(pi / 4)), as sparse momentum's code has it
        ("cosine", 0.25, 0.42750892),
        ("cosine", 1 / 3, 0.37625),
        ("cosine", 0.5, 0.2525),
        ("cosine", 2 / 3, 0.12875),
        ("cosine", 1.0, 0.005),
        ("linear", 0.0, 0.5),
        ("linear", 0.2, 0.401),
        ("linear", 0.5, 0.2525),
        ("linear", 1.0, 0.005),
    ],
)
def test_rate_at(schedule, progress, expected):
    rate = prune_rate(progress, 0.5, 0.005, schedule)
    assert rate.dtype == jnp.float32 and rate.shape == ()
    np.testing.assert_allclose(rate, expected, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_rate_falls_all_the_way_also_traced(schedule):
    rates = jax.jit(
        jax.vmap(lambda progress: prune_rate(progress, 0.3, 0.0, schedule))
    )(jnp.linspace(0, 1, 21))
    assert np.all(np.diff(rates) < 0)
    np.testing.assert_allclose(rates[jnp.array([0, 20])], [0.3, 0.0], atol=1e-7)


def test_equal_ends_give_a_constant():
    assert float(prune_rate(0.7, 0.25, 0.25, "cosine")) == 0.25


def test_an_unknown_schedule_is_an_error():
    with pytest.raises(ConfigError, match="'cosin'; did you mean 'cosine'"):
        prune_rate(0.5, 0.5, 0.0, "cosin")
