"""Seeds of any size, and results that do not depend on how JAX is set up."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import assert_same, tiny_config

import alite_jax
from alite_jax.data.augment import augment, normalize, resized_crop
from alite_jax.data.pipeline import TrainBatches
from alite_jax.data.sources import Split
from alite_jax.distillation import joint_loss
from alite_jax.errors import ConfigError
from alite_jax.jax_settings import seed_key
from alite_jax.models.resnet import create_model
from alite_jax.ops.local_attention import local_attention
from alite_jax.runs.given import Given
from alite_jax.sparsity.gradual import prune
from alite_jax.sparsity.masks import apply_masks, init_masks, magnitude_masks
from alite_jax.sparsity.methods import METHODS
from alite_jax.sparsity.rewiring import rewire
from alite_jax.sparsity.schedules import RewiringSteps, prune_rate
from alite_jax.structure.channels import draw_units
from alite_jax.structure.units import Group, UnitKind

pytestmark = pytest.mark.usefixtures("models")

SEEDS = (0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64, 2**64 + 2**32)


def bits(key: jax.Array) -> list[int]:
    return np.asarray(jax.random.key_data(key)).tolist()


def test_all_bits_of_a_seed_count() -> None:
    keys = {seed: bits(seed_key(seed)) for seed in SEEDS}
    assert len(set(map(tuple, keys.values()))) == len(SEEDS)
    for seed in SEEDS[:4]:
        assert keys[seed] == bits(jax.random.key(seed))
    with jax.enable_x64(True):
        assert {seed: bits(seed_key(seed)) for seed in SEEDS} == keys
    split = Split(np.zeros((9, 1, 1, 1), np.uint8), np.zeros(9, np.int32))
    orders = [TrainBatches(split, 9, seed, 1).order(0).tolist() for seed in SEEDS]
    assert len({str(order) for order in orders}) == len(SEEDS)
    for seed in SEEDS:
        assert alite_jax.override(tiny_config(), f"seed={seed}").seed == seed


PARAMS = {
    "a": {"kernel": np.linspace(-1, 1, 120, dtype=np.float32).reshape(6, 20)},
    "b": {"kernel": np.ones((3, 3, 4, 5), np.float32), "bias": np.zeros(5, np.float32)},
}
KEY = jax.random.key(7)


def masked() -> Any:
    masks = init_masks(KEY, PARAMS, 0.2, "erk")
    return jax.tree.map(jnp.asarray, apply_masks(masks, PARAMS)), masks


def rewired(method: str) -> Any:
    params, masks = masked()
    return rewire(params, params, masks, 0.3, KEY, method)


def pruned(method: str) -> Any:
    return prune(*masked(), jnp.array([9, 9]), method)


def units() -> Any:
    kind = UnitKind("reduce", "reduce", ())
    groups = [Group("a/reduce", kind, (1, 20), ())]
    return draw_units(KEY, groups, jnp.array([7]), None)


def network(stem: str) -> Any:
    model = create_model(
        "resnet26_attention", num_classes=3, width=8, kernel_size=3, stem=stem
    )
    images = jnp.zeros((1, 4, 4, 1), jnp.float32)
    return model.init(KEY, images, train=False)["params"]["stem"]


def attention(method: str) -> Any:
    queries = jax.random.normal(KEY, (1, 4, 4, 1, 4), jnp.float32)
    table = jax.random.normal(KEY, (3, 2), jnp.float32)

    def total(queries: Any) -> Any:
        out = local_attention(
            queries, queries, queries, table, table, kernel_size=3, method=method
        )
        return jnp.sum(out)

    return jax.grad(total)(queries)


def loss(form: str) -> Any:
    logits = jax.random.normal(KEY, (4, 10), jnp.float32)
    labels = jnp.arange(4, dtype=jnp.int32)
    return joint_loss(
        *(logits, labels, logits[::-1]),
        alpha=0.5,
        temperature=2.0,
        label_smoothing=0.1,
        loss=form,
        alpha_dkd=1.0,
        beta_dkd=8.0,
    )


IMAGES = np.arange(4 * 6 * 6, dtype=np.uint8).reshape(4, 6, 6, 1)
DRAWN: dict[str, Callable[[], Any]] = {
    "random masks": lambda: init_masks(KEY, PARAMS, 0.2),
    "growth": lambda: rewired("set"),
    "units": units,
    "views": lambda: augment(KEY, IMAGES, crop_padding=2, flip=True),
    "boxes": lambda: resized_crop(KEY, IMAGES, area=0.25, aspect=2.0, flip=True),
    "weights": lambda: network("attention"),
}


@pytest.mark.parametrize("part", DRAWN)
def test_draws_do_not_depend_on_the_bits_of_a_number(part: str) -> None:
    wanted = jax.device_get(jax.jit(DRAWN[part])())
    with jax.enable_x64(True):
        found = jax.device_get(jax.jit(DRAWN[part])())
    assert_same(found, wanted)


METHODS_OF_ATTENTION = ("rows", "blocked", "all_pairs")
COMPUTED: dict[str, Callable[[], Any]] = {
    "masks by magnitude": lambda: magnitude_masks(PARAMS, 0.2, "erk"),
    **{f"rewiring by {name}": partial(rewired, name) for name in METHODS},
    "pruning": partial(pruned, "gradual_global"),
    "normalised images": lambda: normalize(jnp.asarray(IMAGES), (0.5,), (0.3,)),
    **{f"attention by {m}": partial(attention, m) for m in METHODS_OF_ATTENTION},
    **{f"loss {form}": partial(loss, form) for form in ("kd", "dkd")},
    "prune rate": lambda: prune_rate(
        RewiringSteps(10, 2, 0.5).progress(jnp.int32(3)), 0.3, 0.0, "cosine"
    ),
}


@pytest.mark.parametrize("part", COMPUTED)
def test_the_parts_work_with_strict_promotion(part: str) -> None:
    wanted = jax.eval_shape(COMPUTED[part])
    with jax.numpy_dtype_promotion("strict"):
        found = jax.eval_shape(COMPUTED[part])
    assert found == wanted


JOBS = {
    "train": "alite_jax.jobs.train",
    "evaluate": "alite_jax.jobs.evaluate",
    "restore": "alite_jax.runs.networks",
    "export": "alite_jax.jobs.export",
    "report": "alite_jax.jobs.report",
    "plan": "alite_jax.jobs.plan",
}


class Seen(Exception):
    """The settings within a job."""


@pytest.mark.parametrize("precision", [None, "highest"])
@pytest.mark.parametrize("name", JOBS)
def test_a_job_has_settings_of_its_own(
    name: str, precision: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*arguments: Any) -> None:
        read = jax.config.values
        raise Seen(
            read["jax_enable_x64"],
            read["jax_numpy_dtype_promotion"],
            read["jax_transfer_guard"],
            read["jax_default_matmul_precision"],
        )

    module = importlib.import_module(JOBS[name])
    # Whichever of them comes first in a job.
    monkeypatch.setattr(module, "describe", look, raising=False)
    monkeypatch.setattr(Given, "named", look)
    arguments = ("macs", 0.5) if name == "plan" else ("nowhere",)
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("strict"),
        jax.transfer_guard("disallow"),
        jax.default_matmul_precision("high"),
        pytest.raises(Seen) as seen,
    ):
        changes = {"compute.matmul_precision": precision or "default"}
        getattr(alite_jax, name)(tiny_config(changes), *arguments)
    assert seen.value.args == (False, "standard", "allow", precision)


def test_a_job_checks_its_configuration_first() -> None:
    config = tiny_config()
    config.student.density = 2.0
    with pytest.raises(ConfigError, match=r"student\.density must be above 0"):
        alite_jax.plan(config, "macs", 0.5)
