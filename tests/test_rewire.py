"""The change of masks within a training: what each method does with the state."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from fitting import (
    TOTAL,
    Stop,
    failing,
    make_config,
    make_create,
    records,
    start,
    states,
    train,
)
from references import gradual, rigl
from test_rewiring import prunable
from tiny import TwoLayers, assert_same

from alite_jax.data.pipeline import TrainBatches
from alite_jax.errors import ConfigError
from alite_jax.runs import parallel
from alite_jax.sparsity.methods import METHODS
from alite_jax.training.rewire import (
    check_rewiring_steps,
    create_pruner,
    make_rewire_step,
    rewiring_steps,
)

# Two rewirings of RigL, after steps 3 and 6 of 12, and none between 9 and 12.
RIGL = {
    "pruning.method": "rigl",
    "pruning.every_steps": 3,
    "pruning.stop_fraction": 0.6,
    "pruning.prune_rate": 0.3,
    "pruning.prune_rate_end": 0.0,
}
GRADUAL = {
    "pruning.method": "gradual",
    "pruning.every_steps": 3,
    "pruning.distribution": "erk",
}


@functools.cache
def teacher() -> Any:
    """A network to learn from, and its variables on the host."""
    model = TwoLayers()
    init = jax.jit(
        lambda: model.init(jax.random.key(3), np.zeros((1, 8, 8, 1)), train=False)
    )
    return model, jax.device_get(init())


@pytest.fixture(scope="module")
def programs() -> dict[str, Callable[..., Any]]:
    """Those of a training that no method of pruning changes."""
    return {}


@pytest.fixture
def run(
    programs: dict[str, Callable[..., Any]], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path, Any], Any]:
    """Trains; compiles the change of the masks once a test, all else once."""
    spread, own = parallel.spread, {}

    def look_up(step: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        known = own if step.__name__ == "rewire_step" else programs
        return known.setdefault(step.__name__, spread(step, **options))

    monkeypatch.setattr(parallel, "spread", look_up)
    return functools.partial(train, teacher=teacher(), alpha=0.5)


def noisy_state(folder: Path, config: Any) -> Any:
    """A state whose momentum and step are those of a training under way."""
    state = jax.device_get(jax.jit(make_create(folder, config))())
    trace = optax.tree_utils.tree_get(state.opt_state, "trace")
    rng = np.random.default_rng(0)
    noise = jax.tree.map(lambda a: np.float32(rng.normal(size=a.shape)), trace)
    opt_state = optax.tree_utils.tree_set(state.opt_state, trace=noise)
    return dataclasses.replace(state, opt_state=opt_state, step=np.int32(3))


def test_rigl_grows_by_the_gradient_and_forgets_the_momentum_of_what_came(
    tmp_path: Path,
) -> None:
    """By the gradient at the views, alpha and temperature of the step just taken."""
    config = make_config(**RIGL)
    state = noisy_state(tmp_path, config)
    rng = np.random.default_rng(1)
    gradients = jax.tree.map(
        lambda a: np.float32(rng.normal(size=a.shape)), state.params
    )
    steps = rewiring_steps(config, steps_per_epoch=4)

    def at_step_2(state: Any, given: Any) -> Any:  # The third one, counted from 0.
        return jax.tree.map(lambda leaf: leaf * (state.step == 2), given)

    step = make_rewire_step(create_pruner(config, steps), jax.random.key(0), at_step_2)
    after = jax.jit(step)(state, gradients)
    rate = 0.15 * (1 + np.cos(np.pi * 3 / (12 * 0.6)))
    trees = (state.params, gradients, state.masks)
    expected = rigl(*(prunable(tree, state.masks) for tree in trees), rate)
    found = prunable(after.masks, state.masks)
    momenta = [
        prunable(optax.tree_utils.tree_get(s.opt_state, "trace"), state.masks)
        for s in (state, after)
    ]
    for n, old in enumerate(prunable(state.masks, state.masks)):
        np.testing.assert_array_equal(found[n], expected[n])
        came = expected[n] & ~old
        assert came.any()
        assert not momenta[1][n][came].any()
        np.testing.assert_array_equal(momenta[1][n][~came], momenta[0][n][~came])
    for params, mask in zip(prunable(after.params, after.masks), found, strict=True):
        assert not params[~mask].any()
    assert after.step == 3
    assert_same(after.batch_stats, state.batch_stats)


def test_set_forgets_the_momentum_of_what_came(tmp_path: Path) -> None:
    config = make_config(pruning__method="set")
    state = noisy_state(tmp_path, config)
    steps = rewiring_steps(config, steps_per_epoch=4)
    after = jax.jit(make_rewire_step(create_pruner(config, steps), jax.random.key(0)))(
        state
    )
    traces = (optax.tree_utils.tree_get(s.opt_state, "trace") for s in (state, after))
    momenta = [prunable(trace, state.masks) for trace in traces]
    masks = [prunable(s.masks, state.masks) for s in (state, after)]
    for old, new, before, found in zip(*masks, *momenta, strict=True):
        came = new & ~old
        assert came.any()
        np.testing.assert_array_equal(found, np.where(came, 0, before))


@pytest.mark.parametrize("method", ["sparse_momentum", "gradual"])
def test_others_leave_the_optimizer_as_it_is(tmp_path: Path, method: str) -> None:
    config = make_config(pruning__method=method)
    state = noisy_state(tmp_path, config)
    steps = rewiring_steps(config, steps_per_epoch=4)
    after = jax.jit(make_rewire_step(create_pruner(config, steps), jax.random.key(0)))(
        state
    )
    assert any(
        (a != b).any()
        for a, b in zip(*map(jax.tree.leaves, (after.masks, state.masks)), strict=True)
    )
    assert_same(after.opt_state, state.opt_state)


def rewired(saved: dict[int, Any]) -> list[int]:
    """The steps at which masks differ from those of the checkpoint before."""
    steps = sorted(saved)
    return [
        b
        for a, b in zip(steps, steps[1:], strict=False)
        if any(
            np.any(x != y)
            for x, y in zip(
                *(jax.tree.leaves(saved[step].masks) for step in (a, b)), strict=True
            )
        )
    ]


@pytest.mark.processes
@pytest.mark.parametrize("changes", [RIGL, GRADUAL], ids=["rigl", "gradual"])
def test_a_resumed_run_ends_as_if_it_had_never_stopped(
    run: Callable[[Path, Any], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    """Stopped in the third epoch; its last checkpoint is after a change of masks."""
    config = make_config(**changes)
    run(tmp_path / "whole", config)
    with monkeypatch.context() as patch:
        patch.setattr(TrainBatches, "batch", failing(TrainBatches.batch, 7))
        with pytest.raises(Stop):
            run(tmp_path / "parts", config)
    run(tmp_path / "parts", config)
    whole, parts = (states(tmp_path / name, config) for name in ("whole", "parts"))
    assert_same(parts, whole)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    whole = {0: start(tmp_path, config)} | whole
    assert rewired(whole) == ([3, 6] if changes is RIGL else [3, 6, 9])


def test_gradual_pruning_records_the_density_of_each_step(
    run: Callable[[Path, Any], Any], tmp_path: Path
) -> None:
    config = make_config(**GRADUAL)
    run(tmp_path, config)
    sizes = np.array([64 * 16, 16 * 10])  # hidden, classifier
    final = round(0.25 * sizes.sum())
    after = [final + (1 - k / 3) ** 3 * (sizes.sum() - final) for k in range(4)]
    found = [line["density"] for line in records(tmp_path) if "density" in line]
    for step, density in enumerate(found, start=1):
        wanted = after[(step - 1) // 3] / sizes.sum()
        assert density == pytest.approx(wanted, abs=1 / sizes.sum())
    assert found[-1] == final / sizes.sum()
    # The masks are those of the weights at that moment, in the layers' own order.
    saved = states(tmp_path, config)
    mask = prunable(saved[TOTAL].masks, saved[TOTAL].masks)
    again = gradual(
        prunable(saved[9].params, saved[9].masks),
        prunable(saved[9].masks, saved[9].masks),
        [int(m.sum()) for m in mask],
        everywhere=False,
    )
    for one, other in zip(mask, again, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "method", [name for name, method in METHODS.items() if method.changes]
)
@pytest.mark.parametrize(
    "changes",
    [{"pruning.every_steps": 12}, {"pruning.stop_fraction": 0.3}],
    ids=["too rarely", "too short"],
)
def test_masks_that_would_never_change_stop_a_run_before_anything_is_computed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    method: str,
) -> None:
    monkeypatch.setattr(parallel, "run_once", failing(lambda f: f(), 0))
    does = "prunes" if METHODS[method].starts_dense else "changes masks"
    with pytest.raises(
        ConfigError, match=f"'{method}' {does} every .* set pruning.every"
    ):
        train(tmp_path, make_config(pruning__method=method, **changes))
    # Static masks need no such step, nor does a dense student.
    for other in ({"pruning__method": "static"}, {"student__density": 1.0}):
        config = make_config(**{"pruning__method": method, **other}, **changes)
        steps = rewiring_steps(config, 4)
        check_rewiring_steps(config, steps)
        assert (steps.total, steps.last) == (12, 0)
