"""Spreading over devices: two of them do what one does."""

import gc
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TwoLayers, assert_same, random_data, random_split, unaugmented

import alite_jax
from alite_jax.data.pipeline import TrainBatches
from alite_jax.data.specs import DATASETS
from alite_jax.runs import parallel
from alite_jax.runs.networks import create_networks
from alite_jax.sparsity.masks import init_masks
from alite_jax.training.optimizer import create_optimizer
from alite_jax.training.state import create_state
from alite_jax.training.step import AXIS, JointStep, Objective

STEPS = 3
KEY = jax.random.key(3)
OPTIMIZER = create_optimizer(
    alite_jax.get_config("digits").student.optimizer, steps_per_epoch=4, epochs=20
)


def test_the_tests_have_two_devices() -> None:
    assert parallel.device_count() == jax.local_device_count() == 2


def test_replicated_trees_have_a_copy_on_each_device() -> None:
    tree = {"a": np.arange(3, dtype=np.int32), "b": (np.float32(2), np.True_)}
    spread = parallel.replicate(tree)
    twice = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), tree)
    assert_same(jax.device_get(spread), twice)
    assert all(len(x.sharding.device_set) == 2 for x in jax.tree.leaves(spread))
    host = parallel.to_host(spread)
    assert_same(host, tree)
    assert not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(host))


def test_spread_reduces_over_the_axis_and_donates_only_if_told() -> None:
    def total(state: jax.Array, numbers: jax.Array) -> jax.Array:
        return state + jax.lax.psum(jnp.sum(numbers), AXIS)

    numbers = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    for donate in (False, True):
        state = parallel.replicate(np.float32(1))
        result = parallel.spread(total, donate_state=donate)(state, numbers)
        np.testing.assert_array_equal(result, [16, 16])
        assert state.is_deleted() == donate


def test_run_once_is_the_function_itself() -> None:
    # Whole numbers, so that no order of additions makes a difference.
    found = parallel.run_once(lambda: {"sum": jnp.sum(jnp.arange(5))})
    assert_same(jax.device_get(found), {"sum": np.asarray(10, np.int32)})


def train(devices: int, axis_name: str | None) -> tuple[Any, list[Any]]:
    """Trains a small network; one device is a mapped axis of size 1."""
    model = TwoLayers(axis_name)
    step = JointStep(
        model,
        model,
        OPTIMIZER,
        Objective(alpha=0.5, temperature=2.0),
        DATASETS["digits"],
        augment=unaugmented,
        key=jax.random.key(0),
    ).train_step
    masks = partial(init_masks, density=0.5)
    create = partial(create_state, image_shape=(8, 8, 1), make_masks=masks)
    state = jax.device_get(jax.jit(lambda k: create(k, model, OPTIMIZER))(KEY))
    if devices == 1:
        spread: Any = jax.jit(jax.vmap(step, axis_name=AXIS))
        state = jax.tree.map(lambda leaf: np.asarray(leaf)[None], state)
        teacher = state.variables
    else:
        spread = parallel.spread(step)
        state = parallel.replicate(state)
        teacher = state.variables
    batches = TrainBatches(random_split(64), 16, seed=0, num_shards=devices)
    history = []
    for n in range(STEPS):
        state, metrics = spread(state, teacher, batches.batch(n))
        history.append({name: value[0] for name, value in metrics.items()})
    state = jax.device_get(state)
    # Whatever BatchNorm normalises by, the devices go on with the same state.
    assert all((leaf == leaf[:1]).all() for leaf in jax.tree.leaves(state))
    return jax.tree.map(lambda leaf: leaf[0], state), history


def difference(found: Any, wanted: Any) -> float:
    gaps = jax.tree.map(
        lambda a, b: np.max(np.abs(np.float64(a) - np.float64(b))), found, wanted
    )
    return max(jax.tree.leaves(gaps))


def test_two_devices_equal_one_on_the_same_batch() -> None:
    one, alone = train(devices=1, axis_name=AXIS)
    two, together = train(devices=2, axis_name=AXIS)
    assert_same(two.masks, one.masks)
    assert difference(together, alone) < 1e-5
    assert difference(two.params, one.params) < 1e-5
    assert difference(two.batch_stats, one.batch_stats) < 1e-5
    assert difference(two.opt_state, one.opt_state) < 1e-5


@pytest.mark.processes
def test_statistics_of_each_device_alone_would_be_noticed() -> None:
    one, alone = train(devices=1, axis_name=None)
    two, together = train(devices=2, axis_name=None)
    assert difference(together, alone) > 1e-3
    assert difference(two.params, one.params) > 1e-3


@pytest.mark.parametrize(("choice", "axis"), [("global", AXIS), ("device", None)])
def test_what_batch_norm_shares_is_a_field(
    tmp_path: Path, choice: str, axis: str | None
) -> None:
    config = alite_jax.get_config("digits", {"compute.batch_norm": choice})
    for network in create_networks(config, random_data(), tmp_path):
        assert network.model.axis_name == axis


def test_a_batch_for_another_number_of_devices_is_refused() -> None:
    step = parallel.spread(lambda state: jax.lax.psum(state, AXIS))
    with pytest.raises(ValueError, match="3"):
        step(np.zeros(3, np.float32))


@pytest.mark.processes
def test_a_program_is_given_back_with_what_called_it() -> None:
    """`jax.pmap` alone would keep it as long as the process lives."""

    def run(spread: Any) -> None:
        number = np.float32(len(kept))
        program = spread(lambda x: x + number)
        jax.block_until_ready(program(np.ones((2, 3), np.float32)))

    def programs() -> int:
        gc.collect()
        return len(jax.devices()[0].client.live_executables())

    kept: list[int] = []
    for spread in (parallel.spread, jax.pmap):
        run(spread)
        before = programs()
        for _ in range(3):
            run(spread)
        kept.append(programs() - before)
    assert kept == [0, 3]
