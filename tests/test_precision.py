"""bfloat16: the networks compute in it, everything that is kept stays float32."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import equations
from tiny import random_data, tiny_config, tiny_models

from alite_jax.data.augment import augment
from alite_jax.data.pipeline import TrainBatches
from alite_jax.jobs.train import create_networks
from alite_jax.training.optimizer import create_optimizer
from alite_jax.training.state import create_state
from alite_jax.training.step import AXIS, JointStep, make_eval_step

STEPS = 24
DATA = random_data()
BATCHES = TrainBatches(DATA.train, 16, seed=0, num_shards=1)
DTYPES = ("float32", "bfloat16")


class Case:
    """Teacher and student of one dtype, as `loop` makes them, and the joint step."""

    def __init__(self, dtype: str) -> None:
        with tiny_models():
            config = tiny_config({"compute.dtype": dtype, "distillation.alpha": 0.2})
            networks = create_networks(config, DATA, Path("unused"))
        self.teacher, self.student = networks
        optimizer = create_optimizer(self.student.recipe.optimizer, 4, 6)
        self.create = {
            network.phase: partial(
                create_state,
                *(jax.random.key(3), network.model, optimizer, DATA.image_shape),
                network.make_masks,
            )
            for network in networks
        }
        self.step = JointStep(
            *(self.student.model, self.teacher.model, optimizer),
            *(self.student.objective, DATA.spec),
            augment=partial(augment, crop_padding=1, flip=False),
            key=jax.random.key(1),
        ).train_step

    def shapes(self) -> tuple[Any, Any, Any]:
        """Of the step's arguments."""
        batch = jax.tree.map(lambda a: a[0], BATCHES.batch(0))
        teacher = jax.eval_shape(self.create["teacher"]).variables
        return jax.eval_shape(self.create["student"]), teacher, batch


CASES = {dtype: Case(dtype) for dtype in DTYPES}


@pytest.fixture(scope="module")
def trained() -> dict[str, tuple[Any, list[Any]]]:
    """The state after some steps and the metrics of each, by dtype."""
    results = {}
    start = CASES["float32"].create
    state, teacher = jax.device_get(
        jax.jit(lambda: (start["student"](), start["teacher"]().variables))()
    )
    for dtype, case in CASES.items():
        step = jax.jit(jax.vmap(case.step, axis_name=AXIS))
        now, variables = jax.tree.map(lambda a: a[None], (state, teacher))
        history = []
        for n in range(STEPS):
            now, metrics = step(now, variables, BATCHES.batch(n))
            history.append(jax.tree.map(lambda a: a[0], jax.device_get(metrics)))
        results[dtype] = (jax.device_get(now), history)
    return results


@pytest.mark.processes
def test_all_that_is_kept_is_float32(trained: Any) -> None:
    states = {dtype: trained[dtype][0] for dtype in DTYPES}
    for dtype in DTYPES:
        for path, leaf in jax.tree_util.tree_leaves_with_path(states[dtype]):
            wanted = (np.float32, np.int32, np.bool_)
            assert leaf.dtype in wanted, jax.tree_util.keystr(path)
        for metrics in trained[dtype][1]:
            assert {value.dtype for value in metrics.values()} == {np.dtype("float32")}
    found, wanted = (
        jax.tree.map(lambda leaf: leaf.dtype, states[dtype]) for dtype in DTYPES
    )
    assert found == wanted


@pytest.mark.processes
def test_losses_are_near_those_of_float32(trained: Any) -> None:
    """bfloat16 has 8 bits, 0.4 %; the first losses agree to 2 %, gradients to 10 %."""
    wanted, found = (trained[dtype][1][0] for dtype in DTYPES)
    for name in ("loss", "task_loss", "distillation_loss"):
        assert found[name] == pytest.approx(wanted[name], rel=0.02)
        assert found[name] != wanted[name], "nothing is rounded"
    assert found["gradient_norm"] == pytest.approx(wanted["gradient_norm"], rel=0.1)


@pytest.mark.processes
def test_it_learns_as_float32_does(trained: Any) -> None:
    falls = []
    for dtype in DTYPES:
        losses = [metrics["loss"] for metrics in trained[dtype][1]]
        falls.append(np.mean(losses[:4]) - np.mean(losses[-4:]))
    wanted, found = falls
    assert wanted > 0.1
    assert found == pytest.approx(wanted, rel=0.2)


def products(jaxpr: Any) -> list[set[str]]:
    """The dtypes that each matrix product and convolution multiplies."""
    return [
        {str(operand.aval.dtype) for operand in equation.invars}
        for equation in equations(jaxpr)
        if equation.primitive.name in ("dot_general", "conv_general_dilated")
    ]


def operands(jaxpr: Any, *names: str) -> set[str]:
    """The dtypes that some operations work on."""
    return {
        str(equation.invars[0].aval.dtype)
        for equation in equations(jaxpr)
        if equation.primitive.name in names
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_are_of_the_dtype_and_sums_are_not(dtype: str) -> None:
    case = CASES[dtype]
    jaxpr = jax.make_jaxpr(case.step, axis_env=[(AXIS, 2)])(*case.shapes())
    found = products(jaxpr)
    assert len(found) == 25
    if dtype == "bfloat16":
        # Both classifiers, both gradients of the student's, and those of the two
        # embeddings, whose attention sums in float32.
        assert found.count({"float32"}) == 6
    else:
        assert found.count({"float32"}) == len(found)
    # Softmax, normalisation, BatchNorm's sums over the devices, losses, gradients.
    names = ("exp", "log", "rsqrt", "reduce_max", "psum")
    assert operands(jaxpr, *names) == {"float32"}


@pytest.mark.parametrize("phase", ["teacher", "student"])
def test_evaluation_is_of_the_same_dtype(phase: str) -> None:
    case = CASES["bfloat16"]
    model = getattr(case, phase).model
    variables = jax.eval_shape(case.create[phase]).variables
    batch = jax.tree.map(lambda a: a[0], BATCHES.batch(0))
    batch["weight"] = np.ones(16, np.float32)
    step = make_eval_step(model, DATA.spec)
    jaxpr = jax.make_jaxpr(step, axis_env=[(AXIS, 2)])(variables, batch)
    found = products(jaxpr)
    assert found.count({"float32"}) == 1
    assert found.count({"bfloat16"}) == len(found) - 1 >= 5
    assert {str(out.aval.dtype) for out in jaxpr.jaxpr.outvars} == {"float32"}


def test_the_dtype_is_no_part_of_a_checkpoint_s_identity() -> None:
    """A teacher of float32 may teach a student of bfloat16."""
    for phase in ("teacher", "student"):
        identities = [getattr(case, phase).identity for case in CASES.values()]
        assert identities[0] == identities[1]
    assert CASES["bfloat16"].student.model.dtype == jnp.bfloat16
