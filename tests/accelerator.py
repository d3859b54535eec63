"""What matters most, on the devices that JAX finds; one is enough.

    make test-accelerator

The other tests force the CPU (`conftest.py`), where products are exact. Here results
may differ by what the products of the device round, as `models.precision.bounds` has
it. The CPU itself is a device as good as any.
"""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import optax
import pytest
from compiling import QUICK_FLAGS
from references import sparse_momentum
from runs import assert_same_runs
from test_compact import IMAGES, build, drawn, logits, masked
from test_gradual import test_masks_equal_the_plain_oracle  # noqa: F401
from test_interruption import at_step
from test_local_attention import (
    CASES,
    assert_gradients_close,
    expected_from_loops,
    of_each,
    value_and_gradients,
)
from test_precision import DATA, Case
from test_rewiring import (
    SHAPES,
    make_case,
    prunable,
    rewire_jitted,
    test_rigl_equals_the_plain_oracle,  # noqa: F401
)
from tiny import run_command, tiny_config, tiny_models
from tiny_run import CACHE

import alite_jax
from alite_jax.allocator import has_accelerator
from alite_jax.data.pipeline import TrainBatches
from alite_jax.deploy.artefact import load
from alite_jax.errors import StoppedError
from alite_jax.jax_settings import ask_for_determinism, is_deterministic
from alite_jax.jobs.train import load_data
from alite_jax.models.precision import bounds, computing_dtype
from alite_jax.ops.local_attention import METHODS
from alite_jax.runs import parallel
from alite_jax.runs.metrics import read_metrics
from alite_jax.structure.compact import check_compaction, compact
from alite_jax.training.step import AXIS

if not has_accelerator():  # As for the other tests; accelerators compile in earnest.
    os.environ.setdefault("XLA_FLAGS", QUICK_FLAGS)
ask_for_determinism()
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_numpy_rank_promotion", "raise")

# Number format and precision of products; float32 on a CPU is what other tests look at.
PRECISIONS = [("bfloat16", None), ("float32", None), ("float32", "highest")]
if jax.default_backend() == "cpu":
    del PRECISIONS[1:]
in_each_precision = pytest.mark.parametrize(("dtype", "precision"), PRECISIONS)


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """Computes where the other tests do, by what is the fastest there."""
    with (
        jax.default_device(jax.devices("cpu")[0]),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(jax, "default_backend", lambda: "cpu")
        yield


@in_each_precision
@pytest.mark.parametrize(
    ("case", "border"), [("several blocks", "zero"), ("paper's window", "mask")]
)
def test_attention_and_its_gradients_equal_the_loops(
    case: str, border: str, dtype: str, precision: str | None
) -> None:
    shape = CASES[case]
    inputs, cotangent, output, gradients = expected_from_loops(shape, border)
    given = (np.asarray(x, computing_dtype(dtype)) for x in (cotangent, *inputs))
    with jax.default_matmul_precision(precision):
        options = {"kernel_size": shape[2], "border": border}
        found = of_each(METHODS, value_and_gradients, *given, **options)
        allowed = bounds(dtype, {"params": inputs}).logits_error
    for method, results in jax.tree.map(np.float64, found).items():
        scale = np.abs(output).max()
        np.testing.assert_allclose(
            results[0], output, atol=allowed * scale, rtol=0, err_msg=method
        )
        assert_gradients_close(results[1], gradients, atol=allowed, where=method)


@pytest.fixture(scope="module")
def start() -> tuple[Any, Any]:
    """The student's state and the teacher's variables before training."""
    create = Case("float32").create
    draw = jax.jit(lambda: (create["student"](), create["teacher"]().variables))
    state, teacher = jax.device_get(draw())
    return state, teacher


@pytest.fixture(scope="module")
def step_on_the_cpu(start: tuple[Any, Any]) -> tuple[Any, Any]:
    """State and metrics after the first step, in float32."""
    batch = TrainBatches(DATA.train, 16, seed=0, num_shards=1).batch(0)
    with on_the_cpu():
        step = jax.jit(jax.vmap(Case("float32").step, axis_name=AXIS))
        results = step(*jax.tree.map(lambda leaf: leaf[None], start), batch)
        return jax.device_get(jax.tree.map(lambda leaf: leaf[0], results))


@in_each_precision
def test_a_step_is_that_of_the_cpu(
    start: tuple[Any, Any],
    step_on_the_cpu: tuple[Any, Any],
    dtype: str,
    precision: str | None,
) -> None:
    shards = parallel.device_count()
    batch = TrainBatches(DATA.train, 16, seed=0, num_shards=shards).batch(0)
    with jax.default_matmul_precision(precision):
        step = parallel.spread(Case(dtype).step)
        given = parallel.replicate(start[0]), parallel.replicate(start[1])
        state, metrics = map(parallel.to_host, step(*given, parallel.shard(batch)))
        allowed = bounds(dtype, start[0].variables).logits_error
    wanted_state, wanted = step_on_the_cpu
    for name in ("loss", "task_loss", "distillation_loss", "gradient_norm"):
        assert metrics[name] == pytest.approx(wanted[name], rel=allowed)
    update, wanted_update = (
        jax.tree.map(np.subtract, after.params, start[0].params)
        for after in (state, wanted_state)
    )
    difference = jax.tree.map(np.subtract, update, wanted_update)
    norms = float(optax.tree.norm(difference)), float(optax.tree.norm(wanted_update))
    assert norms[0] <= allowed * norms[1]
    chex.assert_trees_all_equal(state.masks, wanted_state.masks)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.85])
def test_sparse_momentum_keeps_what_the_oracle_keeps(density: float) -> None:
    """But for what the order of sums moves from layer to layer."""
    for seed in range(4):
        params, scores, masks = make_case(SHAPES, density, seed)
        found = rewire_jitted(params, scores, masks, 0.5, jax.random.key(0))
        expected = sparse_momentum(
            *(prunable(tree, masks) for tree in (params, scores, masks)), 0.5
        )
        ours = prunable(found, masks)
        assert sum(map(np.sum, ours)) == sum(map(np.sum, expected))
        for one, other in zip(ours, expected, strict=True):
            assert np.sum(one != other) <= 1


@in_each_precision
def test_a_compacted_network_is_the_masked_one(
    dtype: str, precision: str | None
) -> None:
    model = build("conv", "attention", kernel_size=7)
    pruned = masked(drawn(model, seed=1), 0, density=0.5, share=0.4)
    smaller = compact(model, pruned)
    # At the highest precision, as before an export.
    check_compaction(model, pruned, smaller, IMAGES)
    networks = (model, pruned), (smaller.model, smaller.variables)
    with jax.default_matmul_precision(precision):
        wanted, found = (
            logits(network.clone(dtype=computing_dtype(dtype)), variables)
            for network, variables in networks
        )
        allowed = bounds(dtype, pruned).logits_error
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=allowed * np.abs(theirs).max())


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Digits are made once, and not in the user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("tfds")))
        yield


@pytest.fixture(scope="module")
def run(data_dir: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of an undisturbed run of the tiny networks."""
    folder = tmp_path_factory.mktemp("run")
    with tiny_models():
        alite_jax.train(tiny_config(), folder)
        yield folder


def test_a_stopped_run_ends_as_if_it_had_not_been(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_deterministic():
        pytest.skip("XLA_FLAGS say that equal runs may differ")
    with monkeypatch.context() as patch:
        # The teacher has 8 steps, the student 12.
        patch.setattr(TrainBatches, "batch", at_step(9, signal.SIGTERM))
        with pytest.raises(StoppedError, match="student: stopped by SIGTERM"):
            alite_jax.train(tiny_config(), tmp_path)
    alite_jax.train(tiny_config(), tmp_path)
    assert_same_runs(tmp_path, run)


def test_an_export_is_the_network(run: Path) -> None:
    # It compares all images, within the bounds, before it is written.
    card = alite_jax.export(tiny_config(), run, "float32")
    agreement = card["agreement"]
    images = load_data(tiny_config(), run).evaluation.images
    logits = load(run / "export").logits
    whole = np.asarray(logits(images))
    most = agreement["allowed"]["logits_error"] * agreement["largest_logit"]
    for count in (1, 3):
        some = logits(images[:count])
        np.testing.assert_allclose(some, whole[:count], atol=most, rtol=0)


def test_evaluation_finds_the_same_again(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    found = alite_jax.evaluate(tiny_config(), run)
    for network in ("teacher", "student"):
        assert found[network] == summary[network]


def test_the_demo_learns(data_dir: None, tmp_path: Path) -> None:
    assert run_command("--config=digits:smoke", f"--workdir={tmp_path}") == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["config"]["compute"]["dtype"] == computing_dtype("auto").name
    assert summary["environment"]["deterministic"] == is_deterministic()
    lines = [line for line in read_metrics(tmp_path) if "loss" in line]
    for phase in ("teacher", "student"):
        losses = [line["loss"] for line in lines if line["phase"] == phase]
        assert np.mean(losses[-3:]) < np.mean(losses[:3])
