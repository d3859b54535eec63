"""The joint step: what it computes, what it leaves alone, how often it compiles."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from chex import assert_trees_all_close
from jaxprs import equations
from tiny import TwoLayers, assert_same, random_split, unaugmented

import alite_jax
from alite_jax.data.augment import augment
from alite_jax.data.pipeline import TrainBatches
from alite_jax.data.specs import DATASETS
from alite_jax.runs import parallel
from alite_jax.sparsity.masks import count_nonzero, init_masks
from alite_jax.sparsity.schedules import RewiringSteps
from alite_jax.training.optimizer import create_optimizer
from alite_jax.training.rewire import create_pruner, make_rewire_step
from alite_jax.training.state import create_state
from alite_jax.training.step import AXIS, JointStep, Objective

SPEC = DATASETS["digits"]
MODEL = TwoLayers()
CONFIG = alite_jax.get_config(
    "digits",
    {
        "student.optimizer.warmup_epochs": 0.0,
        "student.optimizer.clip_norm": 0.2,
        "student.optimizer.weight_decay": 0.01,
    },
)
OPTIMIZER = create_optimizer(CONFIG.student.optimizer, steps_per_epoch=4, epochs=2)
PRUNER = create_pruner(CONFIG, RewiringSteps(8, every=1))
OBJECTIVE = Objective(alpha=0.7, temperature=3.0, label_smoothing=0.1)
BATCHES = TrainBatches(random_split(64), batch_size=16, seed=0, num_shards=2)


@jax.jit
def make_state(key: jax.Array) -> Any:
    masks = partial(init_masks, density=0.25)
    return create_state(key, MODEL, OPTIMIZER, (8, 8, 1), masks)


def make_step(model: Any = MODEL, teacher: Any = MODEL, **changes: Any) -> Any:
    settings = {"augment": unaugmented, "key": jax.random.key(1)} | changes
    objective = settings.pop("objective", OBJECTIVE)
    step = JointStep(model, teacher, OPTIMIZER, objective, SPEC, **settings).train_step
    return parallel.spread(step, donate_state=True)


@pytest.fixture(scope="module")
def start() -> Any:
    """The state before training, on the host."""
    return jax.device_get(make_state(jax.random.key(0)))


@pytest.fixture(scope="module")
def teacher() -> Any:
    """The variables of a teacher, on the host; its running statistics are its own."""
    state = jax.device_get(make_state(jax.random.key(7)))
    stats = jax.tree.map(lambda leaf: leaf + np.float32(0.5), state.batch_stats)
    return dataclasses.replace(state, batch_stats=stats).variables


@pytest.fixture(scope="module")
def joint_step() -> Any:
    return make_step()


@pytest.fixture(scope="module")
def after_one(joint_step: Any, start: Any, teacher: Any) -> tuple[Any, Any]:
    """State and metrics after the first step, on the host."""
    state, metrics = joint_step(
        parallel.replicate(start), parallel.replicate(teacher), BATCHES.batch(0)
    )
    return parallel.to_host(state), parallel.to_host(metrics)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def test_the_step_equals_a_composition_by_hand(
    start: Any, teacher: Any, after_one: tuple[Any, Any]
) -> None:
    """On the whole batch at once, while the step saw two halves."""
    batch = BATCHES.batch(0)
    labels = batch["label"].reshape(-1)
    images = batch["image"].reshape(16, 8, 8, 1) / np.float32(255)
    images = (images - np.float32(SPEC.mean[0])) / np.float32(SPEC.std[0])
    alone = TwoLayers(axis_name=None)
    answer = jax.jit(partial(alone.apply, train=False))
    teacher_logits = np.float64(answer(teacher, images))

    @jax.jit
    def forward(params: Any) -> Any:
        variables = {"params": params, "batch_stats": start.batch_stats}
        return alone.apply(variables, images, train=True, mutable=["batch_stats"])

    logits, updates = forward(start.params)
    logits = np.float64(logits)
    targets = 0.9 * np.eye(10)[labels] + 0.01
    task = -np.mean(np.sum(targets * log_softmax(logits), axis=1))
    soft = log_softmax(teacher_logits / 3)
    divergence = np.sum(np.exp(soft) * (soft - log_softmax(logits / 3)), axis=1)
    distillation = 9 * np.mean(divergence)
    # d loss / d logits, from the textbook.
    error = 0.3 * (np.exp(log_softmax(logits)) - targets)
    error += 0.7 * 3 * (np.exp(log_softmax(logits / 3)) - np.exp(soft))
    gradients = jax.jit(
        lambda params, error: jax.vjp(lambda p: forward(p)[0], params)[1](error)[0]
    )(start.params, jnp.float32(error / 16))
    norm = float(optax.tree.norm(gradients))
    assert norm > 0.2

    state, metrics = after_one
    assert metrics["task_loss"] == pytest.approx(task, rel=1e-5)
    assert metrics["distillation_loss"] == pytest.approx(distillation, rel=1e-4)
    assert metrics["loss"] == pytest.approx(0.3 * task + 0.7 * distillation, rel=1e-5)
    assert metrics["accuracy"] == np.mean(np.argmax(logits, axis=1) == labels)
    assert metrics["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    assert state.step == 1
    decayed = {"kernel": 0.01, "bias": 0.0, "scale": 0.0}
    direction = jax.tree_util.tree_map_with_path(
        lambda path, gradient, param: (
            gradient * 0.2 / norm + decayed[path[-1].key] * param
        ),
        jax.device_get(gradients),
        start.params,
    )
    wanted = jax.tree.map(
        lambda mask, param, direction: mask * (param - 0.05 * 1.9 * direction),
        *(start.masks, start.params, direction),
    )
    momentum = optax.tree_utils.tree_get(state.opt_state, "trace")
    assert_trees_all_close(momentum, direction, rtol=1e-4, atol=1e-6)
    assert_trees_all_close(state.params, wanted, rtol=1e-4, atol=1e-6)
    assert_trees_all_close(
        state.batch_stats, updates["batch_stats"], rtol=1e-5, atol=1e-6
    )


def check_absent_weights_have_momentum(state: Any) -> None:
    momentum = optax.tree_utils.tree_get(state.opt_state, "trace")
    for layer in ("hidden", "classifier"):
        absent = ~state.masks[layer]["kernel"]
        assert absent.any()
        assert not state.params[layer]["kernel"][absent].any()
        assert np.mean(momentum[layer]["kernel"][absent] != 0) > 0.5


def test_gradients_are_dense(after_one: tuple[Any, Any]) -> None:
    check_absent_weights_have_momentum(after_one[0])


class MasksInside:
    """The mistake: the mask is part of what is differentiated."""

    def __init__(self, masks: Any) -> None:
        self.masks = masks

    def apply(self, variables: Any, images: jax.Array, **options: Any) -> Any:
        params = jax.tree.map(jnp.multiply, self.masks, variables["params"])
        return MODEL.apply(variables | {"params": params}, images, **options)


def test_a_mask_inside_the_differentiated_function_would_be_noticed(
    start: Any, teacher: Any
) -> None:
    step = make_step(model=MasksInside(start.masks))
    state, _ = step(
        parallel.replicate(start), parallel.replicate(teacher), BATCHES.batch(0)
    )
    with pytest.raises(AssertionError):
        check_absent_weights_have_momentum(parallel.to_host(state))


def test_the_teacher_stays_while_the_state_s_memory_is_reused(
    joint_step: Any, start: Any, teacher: Any
) -> None:
    variables = parallel.replicate(teacher)
    before = parallel.replicate(start)
    state, _ = joint_step(before, variables, BATCHES.batch(0))
    donated = jax.tree.leaves((before.params, before.opt_state))
    assert all(leaf.is_deleted() for leaf in donated)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(variables))
    joint_step(state, variables, BATCHES.batch(1))
    assert_same(parallel.to_host(variables), teacher)


class Undifferentiable:
    """A teacher whose backward pass is an error."""

    def apply(self, variables: Any, images: jax.Array, *, train: bool) -> jax.Array:
        assert not train

        @jax.custom_vjp
        def forward(variables: Any) -> jax.Array:
            return MODEL.apply(variables, images, train=False)

        def backward(residuals: Any, tangents: Any) -> Any:
            raise AssertionError("the teacher is differentiated")

        forward.defvjp(lambda variables: (forward(variables), None), backward)
        return forward(variables)


def test_the_teacher_is_not_differentiated(start: Any, teacher: Any) -> None:
    step = make_step(teacher=Undifferentiable())
    step(parallel.replicate(start), parallel.replicate(teacher), BATCHES.batch(0))


class Uncallable:
    """A teacher that must not run."""

    def apply(self, *arguments: Any, **options: Any) -> Any:
        raise AssertionError("the teacher runs")


@pytest.mark.parametrize(
    ("teacher_model", "settings"),
    [
        (None, {"alpha": 0.7}),
        (None, {"alpha": 0.7, "feature_weight": 9.0}),
        (Uncallable(), {"alpha": 0.0}),
        (Uncallable(), {"alpha": 0.0, "alpha_end": 0.0, "schedule": "linear"}),
        (Uncallable(), {"alpha": 0.0, "alpha_end": 0.5, "schedule": "constant"}),
    ],
    ids=["no teacher", "no features", "alpha 0", "alpha 0 to 0", "alpha stays 0"],
)
def test_without_distillation_no_teacher_runs(
    start: Any, teacher_model: Any, settings: dict[str, Any]
) -> None:
    objective = Objective(**settings, label_smoothing=0.1)
    step = make_step(teacher=teacher_model, objective=objective)
    _, metrics = step(parallel.replicate(start), {}, BATCHES.batch(0))
    metrics = parallel.to_host(metrics)
    assert metrics["distillation_loss"] == 0
    assert metrics["loss"] == metrics["task_loss"] > 0


@pytest.mark.parametrize(
    ("settings", "logits", "teacher"),
    [
        ({}, False, False),
        ({"alpha": 0.1}, True, True),
        ({"alpha_end": 0.1}, False, False),
        ({"alpha_end": 0.1, "schedule": "linear"}, True, True),
        ({"alpha": 0.1, "alpha_end": 0.0, "schedule": "cosine"}, True, True),
        ({"feature_weight": 0.1}, False, True),
    ],
)
def test_who_needs_a_teacher(
    settings: dict[str, Any], logits: bool, teacher: bool
) -> None:
    objective = Objective(**settings)
    assert (objective.needs_logits, objective.needs_teacher) == (logits, teacher)


def test_weights_are_traced_only_where_they_change() -> None:
    step = jnp.int32(3)
    assert OBJECTIVE.weights(step, 0) == (0.7, 3.0)
    constant = dataclasses.replace(OBJECTIVE, alpha_end=0.0, temperature_end=1.0)
    assert constant.weights(step, 12) == (0.7, 3.0)
    linear = dataclasses.replace(OBJECTIVE, temperature_end=1.0, schedule="linear")
    alpha, temperature = linear.weights(step, 12)
    assert alpha == 0.7 and isinstance(alpha, float)
    assert isinstance(temperature, jax.Array) and temperature == 2.5
    cosine = dataclasses.replace(OBJECTIVE, alpha_end=0.1, schedule="cosine")
    assert float(cosine.weights(jnp.int32(6), 12)[0]) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="a cosine schedule needs total_steps"):
        cosine.weights(step, 0)


def products(start: Any, teacher: Any, alpha: float) -> int:
    """The number of matrix products in a step of `TwoLayers`."""
    objective = Objective(alpha=alpha)
    settings = {"augment": unaugmented, "key": jax.random.key(1)}
    step = JointStep(MODEL, MODEL, OPTIMIZER, objective, SPEC, **settings).train_step
    batch = jax.tree.map(lambda a: a[0], BATCHES.batch(0))
    jaxpr = jax.make_jaxpr(step, axis_env=[(AXIS, 2)])(start, teacher, batch)
    return sum(e.primitive.name == "dot_general" for e in equations(jaxpr))


def test_with_alpha_0_the_teacher_is_not_in_the_program(
    start: Any, teacher: Any
) -> None:
    """Two products forward and four backward, and the teacher's two."""
    assert products(start, teacher, alpha=0.0) == 6
    assert products(start, teacher, alpha=0.5) == 8


class Pixels:
    """A network that answers with pixels and keeps what it saw on each device."""

    def __init__(self, mirrored: bool = False) -> None:
        self.order = -1 if mirrored else 1

    def apply(self, variables: Any, images: jax.Array, **options: Any) -> Any:
        logits = images[:, 4, :: self.order, 0] + variables["params"]["bias"]
        if options["train"]:
            # The step takes the mean over the devices.
            slots = jnp.zeros((2, *images.shape))
            seen = slots.at[jax.lax.axis_index(AXIS)].set(2 * images)
            return logits, {"batch_stats": {"seen": seen}}
        return logits


def pixels_state() -> Any:
    params = {"bias": np.zeros((1, 8), np.float32)}
    state = jax.device_get(make_state(jax.random.key(0)))
    return dataclasses.replace(
        state,
        params=params,
        masks={"bias": np.True_},
        batch_stats={"seen": np.zeros((2, 8, 8, 8, 1), np.float32)},
        opt_state=jax.device_get(OPTIMIZER.init(params)),
    )


def look(images: np.ndarray, steps: int, mirrored: bool = False) -> tuple[Any, Any]:
    """Returns what the student saw on each device, and the last metrics."""
    views = partial(augment, crop_padding=2, flip=True)
    step = make_step(Pixels(), Pixels(mirrored), augment=views)
    first = pixels_state()
    state = parallel.replicate(first)
    variables = parallel.replicate({"params": first.params})
    batch = {"image": images, "label": np.zeros((2, 8), np.int32)}
    for _ in range(steps):
        state, metrics = step(state, variables, batch)
    return np.asarray(state.batch_stats["seen"])[0], parallel.to_host(metrics)


def test_teacher_and_student_see_the_same_view() -> None:
    images = BATCHES.batch(0)["image"]
    seen, metrics = look(images, steps=1)
    plain = (images / np.float32(255) - np.float32(SPEC.mean)) / np.float32(SPEC.std)
    assert np.abs(seen - plain).max() > 1, "nothing is augmented"
    assert metrics["distillation_loss"] == pytest.approx(0, abs=1e-6)
    _, metrics = look(images, steps=1, mirrored=True)
    assert metrics["distillation_loss"] > 0.01


def test_views_differ_between_devices_and_steps_and_can_be_repeated() -> None:
    images = np.stack([BATCHES.batch(0)["image"][0]] * 2)
    first, _ = look(images, steps=1)
    again, _ = look(images, steps=1)
    second, _ = look(images, steps=2)
    np.testing.assert_array_equal(first, again)
    assert (first[0] != first[1]).any()
    assert (first != second).any()


@pytest.fixture(scope="module")
def trained(joint_step: Any, start: Any, teacher: Any) -> tuple[Any, Any, Any]:
    """Three steps and a rewiring: the states before and after it, and compilations.

    The last is the number of programs compiled when all was done once more.
    """
    variables = parallel.replicate(teacher)
    rewire_step = parallel.spread(
        make_rewire_step(PRUNER, jax.random.key(2)),
        donate_state=True,
    )
    compiled: list[str] = []

    def listen(event: str, duration: float, **context: Any) -> None:
        if "backend_compile" in event or "jaxpr_trace" in event:
            compiled.append(event)

    state = parallel.replicate(start)
    for n in range(3):
        state, _ = joint_step(state, variables, BATCHES.batch(n))
    before = jax.device_get(state)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        state = rewire_step(state)
        first = len(compiled)
        after = jax.device_get(state)
        for n in range(3, 8):
            state, _ = joint_step(state, variables, BATCHES.batch(n))
            state = rewire_step(state)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert first > 0, "compilations go unnoticed"
    return before, after, compiled[first:]


def test_devices_stay_the_same(trained: tuple[Any, Any, Any]) -> None:
    for state in trained[:2]:
        assert_same(*(jax.tree.map(lambda leaf, n=n: leaf[n], state) for n in (0, 1)))


def test_each_step_compiles_once(trained: tuple[Any, Any, Any]) -> None:
    """Also on its own results, and on those of the other."""
    assert trained[2] == []


def test_rewiring_keeps_the_total_and_the_optimizer(
    trained: tuple[Any, Any, Any],
) -> None:
    before, after, _ = (jax.tree.map(lambda a: a[0], state) for state in trained)
    assert_same(after.opt_state, before.opt_state)
    assert_same(after.batch_stats, before.batch_stats)
    assert after.step == before.step == 3
    wanted = count_nonzero(before.masks, before.params)
    assert count_nonzero(after.masks, after.params) == wanted
    for layer in ("hidden", "classifier"):
        old, new = (state.masks[layer]["kernel"] for state in (before, after))
        weights = after.params[layer]["kernel"]
        assert (new & ~old).any()
        assert (old & ~new).any()
        assert not weights[new & ~old].any()
        assert not weights[~new].any()
        kept = old & new
        assert_same(weights[kept], before.params[layer]["kernel"][kept])


def test_rewiring_grows_absent_weights_by_momentum(
    trained: tuple[Any, Any, Any],
) -> None:
    before, after, _ = (jax.tree.map(lambda a: a[0], state) for state in trained)
    momentum = optax.tree_utils.tree_get(before.opt_state, "trace")
    for layer in ("hidden", "classifier"):
        size = np.abs(momentum[layer]["kernel"])
        old, new = (state.masks[layer]["kernel"] for state in (before, after))
        assert size[new & ~old].min() > size[~new & ~old].max()


def test_the_prune_rate_decays_with_the_steps(start: Any) -> None:
    """A half of each layer at the start, next to nothing at the end."""
    rewire_step = make_rewire_step(PRUNER, jax.random.key(2))
    rewire = jax.jit(rewire_step)
    old = start.masks["hidden"]["kernel"]
    gone = []
    for step in (0, 8):
        state = dataclasses.replace(start, step=jnp.int32(step))
        gone.append(np.mean(~rewire(state).masks["hidden"]["kernel"][old]))
    # Without any momentum yet, some of the dropped weights come back at once.
    assert 0.4 < gone[0] <= 0.5
    assert gone[1] <= 0.01
