"""The pruner around optimizers of all kinds, parameters of all shapes, any loop."""

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from optax import contrib
from tiny import TwoLayers, assert_same, random_split, unaugmented

import alite_jax
from alite_jax.data.specs import DATASETS
from alite_jax.errors import ConfigError
from alite_jax.runs import parallel
from alite_jax.sparsity.distributions import layer_counts
from alite_jax.sparsity.masked import PrunerState
from alite_jax.sparsity.masks import apply_masks, dense_masks, init_masks, prunes
from alite_jax.sparsity.moments import (
    WithMoment,
    first_moment,
    mask_first_moment,
    with_first_moment,
)
from alite_jax.sparsity.pruner import Pruner
from alite_jax.sparsity.rewiring import rewire
from alite_jax.sparsity.schedules import RewiringSteps
from alite_jax.training.optimizer import create_optimizer
from alite_jax.training.rewire import make_rewire_step
from alite_jax.training.state import create_state
from alite_jax.training.step import JointStep, Objective

PAGE = Path(__file__).resolve().parent.parent / "docs" / "library.md"

# Masks change after updates 2 and 4 of 6.
SCHEDULE = RewiringSteps(6, every=2)
STEPS = 6
SHAPES = {
    "first": {"kernel": (6, 10), "bias": (10,)},
    "second": {"kernel": (10, 4)},
}
KERNELS = [(6, 10), (10, 4)]
DENSITY = 0.3
COUNTS = layer_counts(KERNELS, DENSITY, "uniform")


def noise(shapes: Any, seed: int = 0, dtype: Any = np.float32) -> Any:
    """A pytree of random arrays of these shapes, or of those of these arrays."""
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(random.normal(size=np.shape(shape)), dtype),
        jax.tree.map(np.zeros, shapes, is_leaf=lambda s: isinstance(s, tuple)),
    )


def pruner(method: str = "sparse_momentum", **options: Any) -> Pruner:
    return Pruner(method, DENSITY, schedule=SCHEDULE, **options)


def pull(target: Any, params: Any) -> Any:
    """Gradients towards a target."""
    return jax.tree.map(lambda p, t: p - t, params, target)


def frozen_first() -> optax.GradientTransformation:
    return optax.multi_transform(
        {"trained": optax.adam(1e-2), "frozen": optax.set_to_zero()},
        {"first": "frozen", "second": "trained"},
    )


# Optimizer, and the parts of its state that are the first moment; None where it has
# none for some parameter, so that the pruner keeps a mean of the gradients.
OPTIMIZERS: dict[str, tuple[Callable[[], Any], tuple[str, ...] | None]] = {
    "sgd": (lambda: optax.sgd(0.1), None),
    "momentum": (lambda: optax.sgd(0.1, momentum=0.9), ("trace",)),
    "nesterov": (lambda: optax.sgd(0.1, momentum=0.9, nesterov=True), ("trace",)),
    "adamw": (lambda: optax.adamw(1e-2), ("mu",)),
    "lion": (lambda: optax.lion(1e-2), ("mu",)),
    "lamb": (lambda: optax.lamb(1e-2), ("mu",)),
    "adafactor": (lambda: optax.adafactor(1e-2, min_dim_size_to_factor=4), None),
    "adafactor with momentum": (lambda: optax.adafactor(1e-2, momentum=0.9), ("ema",)),
    "rmsprop": (lambda: optax.rmsprop(1e-2, momentum=0.9), ("trace",)),
    "muon": (lambda: contrib.muon(1e-2), ("mu",)),
    "prodigy": (lambda: contrib.prodigy(), ("exp_avg",)),
    "schedule-free": (lambda: contrib.schedule_free_sgd(0.1), None),
    "frozen part": (frozen_first, None),
    "accumulating": (lambda: optax.MultiSteps(optax.adam(1e-2), 2), ("mu",)),
    "finite": (lambda: optax.apply_if_finite(optax.adam(1e-2), 3), ("mu",)),
    "injected": (
        lambda: optax.inject_hyperparams(optax.sgd)(0.1, momentum=0.9),
        ("trace",),
    ),
    "clipped": (
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)),
        ("mu",),
    ),
}

# What the steps of one training have in common: masks, counts and one program.
METHODS = ("sparse_momentum", "rigl", "set", "static", "gradual", "gradual_global")


def checked_run(
    how: Pruner, optimizer: Any, params: Any, gradients: Callable[[Any], Any]
) -> tuple[Any, Any]:
    """Trains for `STEPS`, checks each update, returns the states before and after.

    Absent weights are zero, others go where the bare optimizer sends them, and masks
    change at the steps of the schedule only.
    """
    bare, tx = with_first_moment(optimizer), how.wrap(optimizer)

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, ...]:
        grads = gradients(params)
        expected, _ = bare.update(grads, state.inner, params)
        updates, state = tx.update(grads, state, params)
        after = optax.apply_updates(params, updates)
        return after, state, optax.apply_updates(params, expected)

    start = state = tx.init(params)
    for number in range(1, STEPS + 1):
        before, types = state.masks, [a.dtype for a in jax.tree.leaves(params)]
        params, state, expected = step(params, state)
        assert int(state.step) == number
        assert types == [a.dtype for a in jax.tree.leaves(params)]
        assert_same(params, apply_masks(state.masks, params))
        kept = jax.tree.map(jnp.logical_and, before, state.masks)
        assert_same(params, apply_masks(kept, params))  # What comes in is zero.
        chex.assert_trees_all_close(
            apply_masks(kept, params), apply_masks(kept, expected), atol=1e-6
        )
        if how.schedule is None or number not in how.schedule:
            assert_same(state.masks, before)
    assert step._cache_size() == 1
    return start, state


def equal(one: Any, other: Any) -> bool:
    """Whether two pytrees of arrays are the same."""
    return all(map(np.array_equal, *map(jax.tree.leaves, (one, other))))


def counts(masks: Any) -> list[int]:
    return [int(mask.sum()) for mask in jax.tree.leaves(masks) if mask.ndim > 0]


class Leaf:
    """Stands for a leaf of a state, and knows where it was."""

    def __init__(self, path: Any, leaf: Any) -> None:
        self.path, self.shape = jax.tree_util.keystr(path), leaf.shape


# Those whose states or updates are unlike; the others differ in numbers alone.
KINDS = ("sgd", "adamw", "adafactor", "schedule-free", "frozen part", "accumulating")


@pytest.mark.parametrize(
    "name",
    [
        name if name in KINDS else pytest.param(name, marks=pytest.mark.processes)
        for name in OPTIMIZERS
    ],
)
def test_every_optimizer_is_pruned(name: str) -> None:
    make, _ = OPTIMIZERS[name]
    params, target = noise(SHAPES), noise(SHAPES, seed=1)
    how = pruner()
    first, state = checked_run(how, make(), params, functools.partial(pull, target))
    assert sum(counts(state.masks)) == sum(COUNTS)
    assert not equal(first.masks, state.masks)
    assert how.density(state) == pytest.approx(sum(COUNTS) / 100)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_pruned_by_its_own_first_moment(name: str) -> None:
    make, moment = OPTIMIZERS[name]
    params = noise(SHAPES)
    state = jax.eval_shape(pruner().wrap(make()).init, params)
    places = jax.tree_util.tree_map_with_path(Leaf, state.inner)
    for path, found in jax.tree_util.tree_leaves_with_path(
        first_moment(places, params)
    ):
        own = moment is not None or (name == "frozen part" and "second" in str(path))
        assert own != (isinstance(state.inner, WithMoment) and found.path[:4] == ".mu[")
        names = moment or ("mu",)
        assert any(
            found.path.endswith(f".{n}{jax.tree_util.keystr(path)}") for n in names
        )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_its_counts(method: str) -> None:
    how = pruner(method)
    target = noise(SHAPES, seed=1)
    gradients = functools.partial(pull, target)
    first, state = checked_run(how, optax.lion(1e-2), noise(SHAPES), gradients)
    found = counts(state.masks)
    assert sum(found) == sum(COUNTS)
    if method not in ("sparse_momentum", "gradual_global"):
        assert found == COUNTS
    if method.startswith("gradual"):
        assert counts(first.masks) == [60, 40]
    else:
        assert counts(first.masks) == COUNTS
        assert equal(first.masks, state.masks) == (method == "static")


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(6, 6, rngs=rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(6, rngs=rngs)


# Parameters, and how many of their leaves are pruned.
TREES: dict[str, tuple[Callable[[], Any], int]] = {
    "nnx": (lambda: nnx.state(Net(nnx.Rngs(0)), nnx.Param), 2),
    "haiku": (
        lambda: {
            "mlp/~/linear_0": noise({"w": (6, 6), "b": (6,)}),
            "mlp/~/linear_1": noise({"w": (6, 6), "b": (6,)}, seed=1),
        },
        2,
    ),
    "list": (lambda: [noise((6, 6)), noise((6,)), noise((6, 6), seed=1)], 2),
    "tuple of lists": (lambda: ([noise((6, 6))], [noise((6, 6), seed=1)]), 2),
    "array": (lambda: noise((6, 6)), 1),
    "names of moments": (
        lambda: {"kernel": noise((6, 6)), "mu": {"kernel": noise((6, 6), seed=1)}},
        2,
    ),
    "bfloat16": (lambda: noise(SHAPES, dtype=jnp.bfloat16), 2),
    "both types": (
        lambda: [noise((6, 6), dtype=jnp.bfloat16), noise((6, 6), seed=1)],
        2,
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_any_tree_of_parameters_is_pruned(name: str) -> None:
    make, pruned = TREES[name]
    params = make()
    target = jax.tree.map(lambda leaf: leaf + 1, params)
    gradients = functools.partial(pull, target)
    how = pruner("sparse_momentum")
    _, state = checked_run(how, optax.adam(1e-2), params, gradients)
    assert len(counts(state.masks)) == pruned
    assert jax.tree.structure(state.masks) == jax.tree.structure(params)
    assert how.density(state) == pytest.approx(DENSITY, abs=0.03)


@pytest.mark.parametrize(
    ("of_params", "of_gradients"), [("bfloat16", "float32"), ("float32", "bfloat16")]
)
def test_absent_weights_are_zero_whatever_types_are_added(
    of_params: str, of_gradients: str
) -> None:
    params = noise(SHAPES, dtype=of_params)

    def gradients(params: Any) -> Any:
        return jax.tree.map(lambda leaf: (leaf / 3).astype(of_gradients), params)

    _, state = checked_run(pruner("set"), optax.sgd(0.1), params, gradients)
    assert counts(state.masks) == COUNTS


@pytest.mark.processes
def test_importance_is_summed_with_enough_digits() -> None:
    """In bfloat16 the sum over the many rows of a large layer would stand still."""
    params = [jnp.ones((400, 512)), jnp.ones((100, 512))]
    how = Pruner(density=0.1, schedule=SCHEDULE, prune_rate_schedule="constant")
    masks = how.init_masks(jax.random.key(0), params)
    momentum = [jnp.full_like(leaf, 0.25) for leaf in params]
    found = []
    for dtype in (jnp.float32, jnp.bfloat16):
        ones = jax.tree.map(functools.partial(jnp.ones_like, dtype=dtype), params)
        mu = [leaf.astype(dtype) for leaf in momentum]
        change = jax.jit(functools.partial(how.change, jax.random.key(1)))
        now = apply_masks(masks, ones)
        found.append(change(jnp.int32(2), now, masks, optax.TraceState(mu))[0])
    assert_same(*found)


# Loops other than one jitted step after another.


def shares(seed: int = 1) -> Any:
    """Targets of two devices."""
    return jax.tree.map(lambda *a: jnp.stack(a), noise(SHAPES, seed), noise(SHAPES, 7))


def step_on(tx: Any, axis: str | None) -> Callable[..., Any]:
    """A step by the mean gradient of the targets in front, or over devices."""

    def step(params: Any, state: Any, targets: Any) -> Any:
        target = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), targets)
        gradients = pull(target, params)
        if axis:
            gradients = jax.lax.pmean(gradients, axis)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


@functools.cache
def reference(method: str) -> Any:
    """Parameters and state after `STEPS` jitted steps of Adam, and before."""
    tx = pruner(method).wrap(optax.adam(1e-2))
    step = jax.jit(step_on(tx, None))
    params = noise(SHAPES)
    start = now = params, jax.jit(tx.init)(params)
    for _ in range(STEPS):
        now = step(*now, shares())
    return tx, jax.device_get(start), jax.device_get(now)


def assert_close(found: Any, expected: Any) -> None:
    (params, state), (expected_params, expected_state) = found, expected
    assert_same(jax.device_get(state.masks), expected_state.masks)
    chex.assert_trees_all_close(params, expected_params, atol=1e-6)
    chex.assert_trees_all_close(state.inner, expected_state.inner, atol=1e-6)


@pytest.mark.parametrize(
    "method",
    ["rigl", pytest.param("sparse_momentum", marks=pytest.mark.processes)],
)
def test_devices_of_pmap_keep_the_same_masks(method: str) -> None:
    tx, start, expected = reference(method)
    step = jax.pmap(step_on(tx, "devices"), axis_name="devices", donate_argnums=(0, 1))
    now = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start)
    targets = jax.tree.map(lambda leaf: leaf[:, None], shares())
    for _ in range(STEPS):
        now = step(*now, targets)
    assert_close(jax.tree.map(lambda leaf: leaf[0], now), expected)
    assert_close(jax.tree.map(lambda leaf: leaf[1], now), expected)


@pytest.mark.parametrize("method", ["sparse_momentum", "rigl"])
def test_shard_map_sees_that_masks_are_replicated(method: str) -> None:
    tx, now, expected = reference(method)
    step = jax.jit(
        jax.shard_map(
            step_on(tx, "devices"),
            mesh=Mesh(np.array(jax.devices()), ("devices",)),
            in_specs=(P(), P(), P("devices")),
            out_specs=P(),
            check_vma=True,
        )
    )
    for _ in range(STEPS):
        now = step(*now, shares())
    assert_close(now, expected)


def test_steps_can_be_scanned() -> None:
    tx, start, expected = reference("sparse_momentum")
    step = step_on(tx, None)

    @jax.jit
    def train(start: Any) -> Any:
        return jax.lax.scan(
            lambda now, _: (step(*now, shares()), None), start, length=STEPS
        )[0]

    assert_close(train(start), expected)


def test_a_saved_state_goes_on_as_if_nothing_had_been(tmp_path: Any) -> None:
    tx, now, expected = reference("rigl")
    step = jax.jit(step_on(tx, None), donate_argnums=(0, 1))
    now = jax.tree.map(jnp.array, now)
    for _ in range(3):
        now = step(*now, shares())
    leaves, structure = jax.tree.flatten(now)
    np.savez(tmp_path / "state.npz", *leaves)
    with np.load(tmp_path / "state.npz") as file:
        now = jax.tree.unflatten(structure, [jnp.array(file[n]) for n in file.files])
    for _ in range(3, STEPS):
        now = step(*now, shares())
    assert_same(jax.device_get(now), expected)


# The same as other ways to do the same.


def test_a_loop_written_by_hand_prunes_alike() -> None:
    """Masks in NumPy, momentum by hand, and `rewire` called from the host."""
    how = pruner(prune_rate=0.4, prune_rate_end=0.1, seed=3)
    tx = how.wrap(optax.sgd(0.1, momentum=0.9))
    start, target = noise(SHAPES), noise(SHAPES, seed=1)
    state = jax.jit(tx.init)(start)
    masks = init_masks(jax.random.key(3), start, DENSITY)
    assert_same(state.masks, masks)
    params = by_hand = apply_masks(masks, start)
    trace = jax.tree.map(np.zeros_like, by_hand)
    update = jax.jit(tx.update)
    for step in range(1, STEPS + 1):
        updates, state = update(pull(target, params), state, params)
        params = optax.apply_updates(params, updates)

        trace = jax.tree.map(lambda m, g: 0.9 * m + g, trace, pull(target, by_hand))
        by_hand = jax.tree.map(
            lambda p, m, mask: np.where(mask, p - 0.1 * m, 0.0), by_hand, trace, masks
        )
        if step in (2, 4):
            rate = 0.1 + 0.3 * (1 + np.cos(np.pi * step / STEPS)) / 2
            masks = rewire(by_hand, trace, masks, rate, jax.random.key(0))
            by_hand = jax.tree.map(np.multiply, by_hand, masks)
        assert_same(jax.device_get(state.masks), jax.device_get(masks))
        chex.assert_trees_all_close(params, by_hand, atol=1e-6)


@pytest.fixture(scope="module")
def own_training() -> Any:
    """The project's step and its gradients as programs, optimizer, dense weights."""
    config = alite_jax.get_config("digits")
    optimizer = create_optimizer(config.student.optimizer, steps_per_epoch=3, epochs=2)
    joint = JointStep(
        TwoLayers(),
        None,
        optimizer,
        Objective(),
        DATASETS["digits"],
        augment=unaugmented,
        key=jax.random.key(1),
    )
    make = functools.partial(
        create_state,
        jax.random.key(0),
        joint.model,
        optimizer,
        (8, 8, 1),
        lambda key, params: dense_masks(params),
    )
    programs = parallel.spread(joint.train_step), parallel.spread(joint.gradients)
    return *programs, optimizer, parallel.run_once(make)


@pytest.mark.parametrize(
    "method",
    ["sparse_momentum", pytest.param("set", marks=pytest.mark.processes), "gradual"],
)
def test_the_projects_own_training_prunes_alike(own_training: Any, method: str) -> None:
    train_step, gradients_of, optimizer, state = own_training
    how = pruner(method)
    tx = how.wrap(optimizer)
    masks = how.init_masks(jax.random.key(0), state.params)
    params = apply_masks(masks, state.params)
    own = jax.jit(tx.init)(params)
    assert_same(own.masks, masks)
    state = dataclasses.replace(state, masks=masks, params=params)
    rewire_step = parallel.spread(make_rewire_step(how, jax.random.key(0)))
    update, state = jax.jit(tx.update), parallel.replicate(state)
    split = random_split(16)
    batch = {"image": split.images, "label": split.labels}
    batch = parallel.shard(
        {name: rows.reshape(2, 8, *rows.shape[1:]) for name, rows in batch.items()}
    )
    for step in range(1, STEPS + 1):
        gradients = parallel.to_host(gradients_of(state, {}, batch))
        updates, own = update(gradients, own, params)
        params = optax.apply_updates(params, updates)
        state, _ = train_step(state, {}, batch)
        if step in SCHEDULE:
            state = rewire_step(state)
        theirs = parallel.to_host(state)
        assert_same(jax.device_get(own.masks), theirs.masks)
        chex.assert_trees_all_close(params, theirs.params, atol=1e-6)
        chex.assert_trees_all_close(own.inner, theirs.opt_state, atol=1e-6)
    assert not np.array_equal(*(m["hidden"]["kernel"] for m in (masks, own.masks)))


# Inside other transformations.


def test_a_pruner_may_be_one_part_of_a_partition() -> None:
    """The other part is trained as if there were no pruner."""
    how = pruner()
    tx = optax.multi_transform(
        {"pruned": how.wrap(optax.adam(1e-2)), "other": optax.sgd(0.1)},
        {"first": "other", "second": "pruned"},
    )
    params, target = noise(SHAPES), noise(SHAPES, seed=1)
    state = jax.jit(tx.init)(params)
    update = jax.jit(tx.update)
    expected = params["first"]
    for _ in range(STEPS):
        updates, state = update(pull(target, params), state, params)
        params = optax.apply_updates(params, updates)
        gradients = pull(target["first"], expected)
        expected = jax.tree.map(lambda p, g: p - 0.1 * g, expected, gradients)
    assert counts(how.masks(state)) == [12]
    assert np.count_nonzero(params["second"]["kernel"]) == 12
    chex.assert_trees_all_close(params["first"], expected, atol=1e-6)


def test_accumulation_around_a_pruner_counts_whole_updates() -> None:
    how = pruner("set")
    tx = optax.MultiSteps(how.wrap(optax.sgd(0.1)), every_k_schedule=2)
    params = noise(SHAPES)
    state = jax.jit(tx.init)(params)
    update = jax.jit(tx.update)
    for call in range(1, 2 * STEPS + 1):
        before = how.masks(state)
        updates, state = update(params, state, params)
        params = optax.apply_updates(params, updates)
        if call >= 2:
            assert_same(params, apply_masks(how.masks(state), params))
        assert equal(before, how.masks(state)) == (call not in (4, 8))


def test_an_update_that_is_not_finite_changes_nothing_and_is_made_up_for() -> None:
    how = pruner()
    tx = optax.apply_if_finite(how.wrap(optax.adam(1e-2)), 3)
    params = noise(SHAPES)
    state = jax.jit(tx.init)(params)
    update = jax.jit(tx.update)
    broken = jax.tree.map(lambda leaf: leaf * np.nan, params)
    for gradients, step, changed in (
        (params, 1, False),
        (broken, 1, False),
        (params, 2, True),
    ):
        before = how.masks(state)
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        assert int(state.inner_state.step) == step
        assert_same(params, apply_masks(how.masks(state), params))
        assert equal(before, how.masks(state)) == (not changed)


def test_a_mean_that_is_kept_forgets_gradients_that_are_not_finite() -> None:
    tx = with_first_moment(optax.apply_if_finite(optax.sgd(0.1), 3))
    params = {"kernel": jnp.ones((2, 2))}
    state = tx.init(params)
    for value in (1.0, np.inf, np.nan):
        gradients = {"kernel": jnp.full((2, 2), value)}
        _, state = tx.update(gradients, state, params)
    found = first_moment(state, params)["kernel"]
    np.testing.assert_allclose(found, np.full((2, 2), 0.1 * 0.9**2), rtol=1e-6)


def test_an_optimizer_that_has_its_own_moment_keeps_its_state() -> None:
    params = noise(SHAPES)
    for make, moment in OPTIMIZERS.values():
        tx = with_first_moment(make())
        state = jax.eval_shape(tx.init, params)
        assert isinstance(state, WithMoment) == (moment is None)
        again = jax.eval_shape(with_first_moment(tx).init, params)
        assert jax.tree.structure(again) == jax.tree.structure(state)


def test_what_a_moment_is_not_stays_when_moments_are_masked() -> None:
    """Also where parameters have the names of moments."""
    params = {"kernel": jnp.ones((2, 2)), "mu": {"kernel": jnp.ones((2, 2))}}
    tx = optax.adam(0.1)
    _, state = tx.update(params, tx.init(params), params)
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), params)
    after = mask_first_moment(state, params, nothing)
    assert not any(leaf.any() for leaf in jax.tree.leaves(after[0].mu))
    assert_same(after[0].nu, state[0].nu)


def test_what_comes_in_starts_without_momentum_where_the_method_says_so() -> None:
    for method in ("rigl", "sparse_momentum"):
        _, (_, start), (_, state) = reference(method)
        del start
        fresh = jax.tree.map(
            lambda mask, mu: np.count_nonzero(~mask & (mu == 0)),
            state.masks["first"]["kernel"],
            state.inner[0].mu["first"]["kernel"],
        )
        assert fresh == 0  # What is absent gathers momentum.
    how = pruner("set")
    params = noise(SHAPES)
    tx = how.wrap(optax.sgd(0.0, momentum=0.9))
    state = jax.jit(tx.init)(params)
    for _ in range(2):
        before = state.masks
        _, state = jax.jit(tx.update)(params, state, params)
    came = jax.tree.map(lambda old, new: new & ~old, before, state.masks)
    assert sum(int(c.sum()) for c in jax.tree.leaves(came)) > 5
    for in_now, trace in zip(
        jax.tree.leaves(came), jax.tree.leaves(state.inner[0].trace), strict=True
    ):
        np.testing.assert_array_equal(trace == 0, np.broadcast_to(in_now, trace.shape))


# Before, after and instead.


def test_dense_again_all_weights_train() -> None:
    how = pruner()
    tx = how.wrap(optax.adam(1e-2))
    step = jax.jit(step_on(tx, None))
    now = step(noise(SHAPES), jax.jit(tx.init)(noise(SHAPES)), shares())
    params, state = now
    state = how.to_dense(state)
    assert how.density(state) == 1.0 and not prunes(how.masks(state))
    for _ in range(STEPS):
        params, state = step(params, state, shares())
    assert int(state.step) == STEPS + 1 and how.density(state) == 1.0
    assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(params))


def test_rules_say_what_may_be_pruned() -> None:
    how = pruner(rules=(("second", False), ("", "matrices")))
    state = jax.eval_shape(how.wrap(optax.sgd(0.1)).init, noise(SHAPES))
    assert jax.tree.map(lambda mask: mask.shape, state.masks) == {
        "first": {"kernel": (6, 10), "bias": ()},
        "second": {"kernel": ()},
    }


def test_the_seed_draws_the_masks() -> None:
    params = noise(SHAPES)
    drawn = [pruner(seed=s).wrap(optax.sgd(0.1)).init(params).masks for s in (0, 0, 1)]
    assert_same(drawn[0], drawn[1])
    assert not np.array_equal(*(m["first"]["kernel"] for m in drawn[1:]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "rgil"}, "'rgil'.*'rigl'"),
        ({"density": 0.0}, "density is 0.0.*above 0 and at most 1"),
        ({"density": 1.5}, "density is 1.5"),
        ({"distribution": "erc"}, "'erc'.*'erk'"),
        ({"prune_rate": 1.5}, "rate is 1.5.*from 0 to 1"),
        ({"prune_rate_end": -0.1}, "rate is -0.1"),
        ({"prune_rate_schedule": "cosin"}, "'cosin'.*'cosine'"),
        ({"schedule": None}, "the schedule is None; give RewiringSteps"),
    ],
)
def test_a_mistake_is_named_before_anything_is_computed(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Pruner(**{"schedule": SCHEDULE} | options)


def test_mistakes_in_the_use_are_named() -> None:
    params = noise(SHAPES)
    with pytest.raises(ConfigError, match="every 9 of 6 steps.*lower `every`"):
        Pruner(schedule=RewiringSteps(6, every=9)).wrap(optax.sgd(0.1))
    how = pruner(rules=(("first", True),))
    with pytest.raises(ConfigError, match=r"no rule says.*'second/kernel'.*add a pair"):
        how.wrap(optax.sgd(0.1)).init(params)
    with pytest.raises(ConfigError, match="nothing to prune.*give `rules`"):
        pruner().wrap(optax.sgd(0.1)).init({"bias": jnp.ones(3)})
    how = pruner()
    with pytest.raises(ConfigError, match="holds no masks.*Pruner.wrap"):
        how.masks(optax.adam(0.1).init(params))
    tx = how.wrap(optax.sgd(0.1))
    state = tx.init(params)
    with pytest.raises(ConfigError, match=r"update\(gradients, state, params\)"):
        tx.update(params, state)
    less = {"first": params["first"]}
    with pytest.raises(ConfigError, match="differ in second/kernel; take the state"):
        tx.update(less, state, less)
    wide = params | {"second": {"kernel": jnp.ones((10, 5))}}
    with pytest.raises(ConfigError, match=r"second/kernel has shape \(10, 4\), but"):
        tx.update(wide, state, wide)


def test_a_pruner_of_density_one_prunes_nothing() -> None:
    how = Pruner(density=1)
    tx = how.wrap(optax.sgd(0.1, momentum=0.9))
    params = noise(SHAPES)
    state = tx.init(params)
    updates, state = tx.update(params, state, params)
    assert how.density(state) == 1.0
    assert isinstance(state, PrunerState)
    chex.assert_trees_all_close(updates, jax.tree.map(lambda p: -0.1 * p, params))


EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_examples_of_the_page_run(capsys: pytest.CaptureFixture[str]) -> None:
    for example in EXAMPLES:
        exec(example, {})
    assert capsys.readouterr().out == "0.25 8\n"
