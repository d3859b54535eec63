"""What changes over a training, against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alite_jax.errors import ConfigError
from alite_jax.schedules import SCHEDULES, interpolate
from alite_jax.sparsity.schedules import RewiringSteps, prune_rate


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
        ("constant", 0.0, 0.5),
        ("constant", 0.9, 0.5),
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


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_value_may_rise_too(schedule):
    assert float(interpolate(0.0, 1.0, 4.0, schedule)) == 1.0
    middle = 1.0 if schedule == "constant" else 2.5
    assert float(interpolate(0.5, 1.0, 4.0, schedule)) == pytest.approx(middle)


@pytest.mark.parametrize(
    "total, every, stop_fraction, expected",
    [
        pytest.param(12, 4, 1.0, [4, 8], id="each epoch but the last"),
        pytest.param(12, 5, 1.0, [5, 10], id="across epochs"),
        pytest.param(12, 4, 0.75, [4, 8], id="the stop after a change"),
        pytest.param(12, 3, 0.75, [3, 6, 9], id="the stop at a change"),
        pytest.param(12, 4, 0.5, [4], id="the stop before a change"),
        pytest.param(100, 29, 0.29, [29], id="a product below a whole number"),
        pytest.param(4, 4, 1.0, [], id="one epoch"),
        pytest.param(12, 4, 0.3, [], id="an early stop"),
    ],
)
def test_masks_change_after_these_steps(total, every, stop_fraction, expected):
    steps = RewiringSteps(total, every, stop_fraction)
    assert [step for step in range(total + every) if step in steps] == expected
    assert steps.last == max(expected, default=0)
    remaining = steps.remaining()
    assert remaining.shape == (len(expected),)
    wanted = [(1 - step / expected[-1]) ** 3 for step in expected]
    np.testing.assert_allclose(remaining, wanted)
    assert not expected or remaining[-1] == 0


def test_progress_ends_at_the_stop():
    steps = RewiringSteps(total=8, every=2, stop_fraction=0.75)
    progress = jax.vmap(steps.progress)(jnp.array([0, 3, 6, 7]))
    assert progress.tolist() == [0.0, 0.5, 1.0, 1.0]
    # RigL's decay, alpha / 2 * (1 + cos(pi * t / T_end)).
    rate = prune_rate(steps.progress(jnp.int32(2)), 0.3, 0.0, "cosine")
    np.testing.assert_allclose(rate, 0.15 * (1 + np.cos(np.pi / 3)), rtol=1e-6)


@pytest.mark.parametrize("wrong", [{"every": 0}, {"every": 5, "stop_fraction": 0.0}])
def test_steps_outside_their_range_are_refused(wrong):
    with pytest.raises(ConfigError, match="masks cannot change every . steps up to"):
        RewiringSteps(total=10, **wrong)
