"""The optimizer against hand-made numbers and a plain numpy train_job."""

import jax
import numpy as np
import optax
import pytest
from chex import assert_trees_all_close

import alite_jax
from alite_jax.sparsity.moments import first_moment
from alite_jax.training.optimizer import (
    create_optimizer,
    kernels,
    learning_rate_schedule,
)

STEPS_PER_EPOCH = 4
PARAMS = {
    "layer": {
        "kernel": np.array([[1.0, -2.0], [0.5, 0.0]], np.float32),
        "bias": np.array([3.0, -1.0], np.float32),
    },
    "norm": {"scale": np.array([1.5], np.float32)},
    "spatial": {"row_embeddings": np.array([[0.25]], np.float32)},
}


def settings(**changes):
    """An optimizer's fields: rate 0.4, two epochs of warm-up, otherwise plain."""
    plain = {
        "learning_rate": 0.4,
        "warmup_epochs": 2.0,
        "momentum": 0.0,
        "nesterov": False,
        "weight_decay": 0.0,
        "clip_norm": 0.0,
    }
    fields = {f"student.optimizer.{k}": v for k, v in (plain | changes).items()}
    return alite_jax.get_config("digits", fields).student.optimizer


def rates(epochs=10, **changes):
    schedule = learning_rate_schedule(settings(**changes), STEPS_PER_EPOCH, epochs)
    return [float(schedule(step)) for step in range(epochs * STEPS_PER_EPOCH + 1)]


def gradients(seed=0, scale=1.0):
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: (scale * random.normal(size=p.shape)).astype(np.float32), PARAMS
    )


def updates(config, gradient):
    """The first update, at the full rate of 0.4 when there is no warm-up."""
    optimizer = create_optimizer(config, STEPS_PER_EPOCH, epochs=10)
    return optimizer.update(gradient, optimizer.init(PARAMS), PARAMS)[0]


def test_warm_up_starts_above_0_and_cosine_ends_at_0():
    found = rates()
    np.testing.assert_allclose(found[:8], 0.05 * np.arange(1, 9), rtol=1e-6)
    assert found[8] == pytest.approx(0.4)
    # Half, and three quarters, of the 32 steps after the warm-up.
    assert found[24] == pytest.approx(0.2)
    assert found[32] == pytest.approx(0.2 * (1 - np.sqrt(0.5)), rel=1e-5)
    assert found[40] == pytest.approx(0, abs=1e-7)
    assert min(found[:40]) > 0


def test_a_fraction_of_an_epoch_warms_up_and_none_starts_at_the_peak():
    assert rates(warmup_epochs=0.5)[:3] == pytest.approx([0.2, 0.4, 0.4])
    assert rates(warmup_epochs=0.0)[0] == pytest.approx(0.4)


def test_steps_multiply_the_rate_from_the_first_step_of_their_epochs():
    changes = {"schedule": "steps", "step_epochs": (4, 6), "step_factor": 0.5}
    found = rates(**changes)
    assert found[7:16] == pytest.approx([0.4] * 9)
    assert found[16:24] == pytest.approx([0.2] * 8)
    assert found[24:] == pytest.approx([0.1] * 17)


def test_weight_decay_is_on_kernels_only():
    zeros = jax.tree.map(np.zeros_like, PARAMS)
    found = updates(settings(weight_decay=0.1, warmup_epochs=0.0), zeros)
    np.testing.assert_allclose(
        found["layer"]["kernel"], -0.04 * PARAMS["layer"]["kernel"], rtol=1e-6
    )
    for rest in (found["layer"]["bias"], found["norm"], found["spatial"]):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(rest))
    assert kernels(PARAMS) == {
        "layer": {"kernel": True, "bias": False},
        "norm": {"scale": False},
        "spatial": {"row_embeddings": False},
    }


def test_clipping_scales_a_large_gradient_down_and_0_turns_it_off():
    large = gradients(scale=100.0)
    norm = float(optax.tree.norm(large))
    assert norm > 5
    clipped = updates(settings(clip_norm=5.0, warmup_epochs=0.0), large)
    free = updates(settings(clip_norm=0.0, warmup_epochs=0.0), large)
    for found, scale, rtol in ((clipped, 5 / norm, 1e-5), (free, 1, 1e-6)):
        wanted = jax.tree.map(lambda leaf, scale=scale: -0.4 * scale * leaf, large)
        assert_trees_all_close(found, wanted, rtol=rtol)


@pytest.mark.parametrize("nesterov", [False, True])
def test_five_jitted_steps_equal_a_numpy_loop(nesterov):
    config = settings(momentum=0.9, nesterov=nesterov, weight_decay=0.01, clip_norm=2.0)
    optimizer = create_optimizer(config, STEPS_PER_EPOCH, epochs=10)

    @jax.jit
    def step(params, state, gradient):
        update, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, update), state

    params, state = PARAMS, optimizer.init(PARAMS)
    ours = [np.float64(leaf) for leaf in jax.tree.leaves(PARAMS)]
    decays = jax.tree.leaves(kernels(PARAMS))
    momentum = [np.zeros_like(leaf) for leaf in ours]
    for n in range(5):
        gradient = gradients(seed=n)
        params, state = step(params, state, gradient)
        leaves = [np.float64(leaf) for leaf in jax.tree.leaves(gradient)]
        norm = np.sqrt(sum(np.sum(leaf**2) for leaf in leaves))
        for i, leaf in enumerate(leaves):
            leaf = leaf * min(1, 2.0 / norm) + 0.01 * decays[i] * ours[i]
            momentum[i] = 0.9 * momentum[i] + leaf
            direction = leaf + 0.9 * momentum[i] if nesterov else momentum[i]
            ours[i] = ours[i] - 0.05 * (n + 1) * direction
    trace = optax.tree_utils.tree_get(state, "trace")
    assert jax.tree.structure(trace) == jax.tree.structure(PARAMS)
    for found, wanted in zip(jax.tree.leaves(params), ours, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    for found, wanted in zip(jax.tree.leaves(trace), momentum, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_five_steps_of_adamw_equal_a_numpy_loop():
    """Decay is decoupled (arXiv 1711.05101), of kernels only, and moments are dense."""
    config = settings(
        name="adamw", momentum=0.8, beta2=0.95, weight_decay=0.01, clip_norm=2.0
    )
    optimizer = create_optimizer(config, STEPS_PER_EPOCH, epochs=10)
    params, state = PARAMS, optimizer.init(PARAMS)
    ours = [np.float64(leaf) for leaf in jax.tree.leaves(PARAMS)]
    decays = jax.tree.leaves(kernels(PARAMS))
    first, second = ([np.zeros_like(leaf) for leaf in ours] for _ in range(2))
    for n in range(1, 6):
        gradient = gradients(seed=n)
        update, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, update)
        leaves = [np.float64(leaf) for leaf in jax.tree.leaves(gradient)]
        norm = np.sqrt(sum(np.sum(leaf**2) for leaf in leaves))
        for i, leaf in enumerate(leaves):
            leaf = leaf * min(1, 2.0 / norm)
            first[i] = 0.8 * first[i] + 0.2 * leaf
            second[i] = 0.95 * second[i] + 0.05 * leaf**2
            direction = first[i] / (1 - 0.8**n)
            direction = direction / (np.sqrt(second[i] / (1 - 0.95**n)) + 1e-8)
            ours[i] = ours[i] - 0.05 * n * (direction + 0.01 * decays[i] * ours[i])
    for found, wanted in zip(jax.tree.leaves(params), ours, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    moment = jax.tree.leaves(first_moment(state, PARAMS))
    for found, wanted in zip(moment, first, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
