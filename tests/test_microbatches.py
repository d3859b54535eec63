"""Gradient accumulation: the same gradients in less memory."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chex import assert_trees_all_close
from jaxprs import equations, primitives
from tiny import TwoLayers, random_split, unaugmented

import alite_jax
from alite_jax.data.augment import augment
from alite_jax.data.pipeline import TrainBatches
from alite_jax.data.specs import DATASETS
from alite_jax.errors import ConfigError
from alite_jax.sparsity.masks import dense_masks
from alite_jax.training.microbatches import check_microbatches, in_microbatches
from alite_jax.training.optimizer import create_optimizer
from alite_jax.training.state import create_state
from alite_jax.training.step import AXIS, JointStep, Objective

SPEC = DATASETS["digits"]
OPTIMIZER = create_optimizer(
    alite_jax.get_config("digits").student.optimizer, steps_per_epoch=4, epochs=20
)


class NoNorm(nn.Module):
    """Two dense layers, in which no image has an influence on another."""

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        self.variable("batch_stats", "calls", lambda: jnp.zeros((), jnp.float32))
        x = images.reshape(len(images), -1)
        return nn.Dense(10, name="classifier")(nn.relu(nn.Dense(16, name="hidden")(x)))


def create(model: Any) -> Any:
    """The state before training; to be traced."""
    return create_state(
        *(jax.random.key(0), model, OPTIMIZER, (8, 8, 1)),
        make_masks=lambda key, params: dense_masks(params),
    )


def make_state(model: Any) -> Any:
    return jax.device_get(jax.jit(partial(create, model))())


def make_step(model: Any, accumulation: int, **changes: Any) -> Any:
    views = partial(augment, crop_padding=2, flip=True)
    settings = {"augment": views, "key": jax.random.key(1)} | changes
    objective = Objective(alpha=0.5, temperature=3.0)
    return JointStep(
        *(model, model, OPTIMIZER, objective, SPEC),
        microbatches=accumulation,
        **settings,
    ).train_step


def run(model: Any, accumulation: int, batch: Any, **changes: Any) -> tuple[Any, Any]:
    """State and metrics of the first of two mapped devices after a step."""
    state = jax.tree.map(lambda a: np.stack([a, a]), make_state(model))
    step = jax.vmap(make_step(model, accumulation, **changes), axis_name=AXIS)
    result = jax.device_get(jax.jit(step)(state, state.variables, batch))
    return jax.tree.map(lambda a: a[0], result)


def random_batch() -> Any:
    return TrainBatches(random_split(64), 16, seed=0, num_shards=2).batch(0)


def copied_batch() -> Any:
    """On each device four times the same two images."""
    batch = random_batch()
    return jax.tree.map(lambda a: np.concatenate([a[:, :2]] * 4, axis=1), batch)


@pytest.mark.parametrize(
    ("model", "batch", "accumulation", "changes"),
    [
        (NoNorm(), random_batch(), 2, {}),
        (NoNorm(), random_batch(), 8, {}),
        # Equal parts have equal statistics, if nothing makes their views differ.
        (TwoLayers(), copied_batch(), 4, {"augment": unaugmented}),
    ],
    ids=["without BatchNorm", "image by image", "equal parts"],
)
def test_a_step_in_parts_equals_the_whole(
    model: Any, batch: Any, accumulation: int, changes: dict[str, Any]
) -> None:
    whole, wanted = run(model, 1, batch, **changes)
    parts, found = run(model, accumulation, batch, **changes)
    assert parts.step == 1
    # The momentum after one step is the gradient, up to weight decay and clipping.
    assert_trees_all_close(parts, whole, rtol=1e-5, atol=1e-6)
    assert_trees_all_close(found, wanted, rtol=1e-5)


@pytest.mark.processes
def test_other_statistics_would_be_noticed() -> None:
    """Views that differ, and with them the statistics of the parts."""
    _, wanted = run(TwoLayers(), 1, copied_batch())
    _, found = run(TwoLayers(), 4, copied_batch())
    assert found["loss"] != pytest.approx(wanted["loss"], rel=1e-3)


def test_running_statistics_are_means_over_the_parts() -> None:
    """The step moves them once; variances are those within the parts."""
    batch = random_batch()
    model = TwoLayers()
    start = make_state(model).batch_stats["norm"]
    state, _ = run(model, 2, batch, augment=unaugmented)
    images = (batch["image"] / 255 - SPEC.mean[0]) / SPEC.std[0]
    # [device, part, image, pixel]: a part is on both devices.
    images = images.reshape(2, 2, 4, 64).swapaxes(0, 1).reshape(2, 8, 64)
    found = state.batch_stats["norm"]
    for name, values in (("mean", images.mean(1)), ("var", images.var(1))):
        wanted = 0.9 * start[name] + 0.1 * values.mean(0)
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-5)


def test_microbatches_are_contiguous() -> None:
    batch = {"a": np.arange(12.0, dtype=np.float32), "b": np.ones((12, 2), np.float32)}

    def first_and_sum(part: Any) -> Any:
        return {"first": part["a"][0], "sum": jnp.sum(part["b"], axis=0)}

    found = jax.jit(in_microbatches(first_and_sum, 3))(batch)
    assert found["first"] == np.mean([0, 4, 8])
    assert found["sum"].tolist() == [4, 4]
    assert in_microbatches(lambda part: part is batch, 1)(batch) is True


def step_and_shapes(accumulation: int, share: int, hidden: int) -> tuple[Any, Any]:
    """The step of one device, and the shapes of its arguments."""
    model = TwoLayers(hidden=hidden)
    state = jax.eval_shape(partial(create, model))
    batch = {
        "image": jax.ShapeDtypeStruct((share, 8, 8, 1), jnp.uint8),
        "label": jax.ShapeDtypeStruct((share,), jnp.int32),
    }
    step = make_step(model, accumulation, augment=unaugmented)
    return step, (state, state.variables, batch)


def floats_of_the_whole_share(jaxpr: Any) -> int:
    """How many float arrays of all the 48 images are made."""
    made = (out.aval for e in equations(jaxpr) for out in e.outvars)
    return sum(a.shape[:1] == (48,) and a.dtype == jnp.float32 for a in made)


def test_one_part_has_no_loop_and_several_nothing_of_the_whole_share() -> None:
    jaxprs = []
    for accumulation in (1, 4):
        step, shapes = step_and_shapes(accumulation, share=48, hidden=16)
        jaxprs.append(jax.make_jaxpr(step, axis_env=[(AXIS, 1)])(*shapes))
    assert "scan" not in primitives(jaxprs[0])
    (scan,) = (e for e in equations(jaxprs[1]) if e.primitive.name == "scan")
    assert scan.params["length"] == 4
    assert floats_of_the_whole_share(jaxprs[0]) > 20
    # Neither of the teacher nor of the student.
    assert floats_of_the_whole_share(jaxprs[1]) == 0


def test_memory_shrinks_with_the_parts() -> None:
    sizes = []
    for accumulation in (1, 8):
        step, shapes = step_and_shapes(accumulation, share=2048, hidden=128)
        shapes = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((1, *a.shape), a.dtype), shapes
        )
        program = jax.jit(jax.vmap(step, axis_name=AXIS))
        memory = program.lower(*shapes).compile().memory_analysis()
        sizes.append(memory.temp_size_in_bytes)
    assert sizes[1] < 0.4 * sizes[0]


@pytest.mark.parametrize(
    ("parts", "batch_size", "num_shards", "message"),
    [
        (1, 7, 1, None),
        (4, 16, 2, None),
        (8, 16, 2, None),
        (3, 16, 2, "accumulation = 3 does not divide the 8 images .* divisor of 8$"),
        (16, 16, 2, "accumulation = 16 does not divide the 8 images"),
    ],
)
def test_the_parts_must_be_equal(
    parts: int, batch_size: int, num_shards: int, message: str | None
) -> None:
    if message is None:
        check_microbatches(parts, batch_size, num_shards)
        return
    with pytest.raises(ConfigError, match=message):
        check_microbatches(parts, batch_size, num_shards)
