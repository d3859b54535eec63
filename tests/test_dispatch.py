"""Dispatches: which steps they do, and that their number changes nothing."""

import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitting import Stop, failing, make_config, records, start, states, train
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxprs import primitives
from tiny import assert_same

from alite_jax.errors import TrainingError
from alite_jax.training.dispatch import dispatches, make_program
from alite_jax.training.metrics import MetricWriter
from alite_jax.training.objective import METRICS


def cut(*arguments: Any) -> list[list[int]]:
    return [list(steps) for steps in dispatches(*arguments)]


def test_dispatches_end_where_the_host_has_something_to_do() -> None:
    assert cut(0, 12, 1, (4,)) == [[step] for step in range(12)]
    assert cut(0, 8, 3, (4, 0)) == [[0, 1, 2], [3], [4, 5, 6], [7]]
    assert cut(0, 10, 100, (4, 5, 0)) == [[0, 1, 2, 3], [4], [5, 6, 7], [8, 9]]
    assert cut(2, 7, 2, (4,)) == [[2, 3], [4, 5], [6]]
    assert cut(7, 7, 3, (4,)) == []


@given(
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(1, 9),
    st.lists(st.integers(0, 12), max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_dispatches_cover_every_step_once(
    first: int, count: int, length: int, intervals: list[int]
) -> None:
    found = cut(first, first + count, length, intervals)
    assert list(itertools.chain(*found)) == list(range(first, first + count))
    assert all(1 <= len(steps) <= length for steps in found)
    ends = {steps[-1] + 1 for steps in found}
    done = range(first + 1, first + count + 1)
    for every in filter(None, intervals):
        assert {step for step in done if step % every == 0} <= ends


def count_up(state: Any, teacher: Any, batch: Any) -> Any:
    """A step whose metrics are the batch and whose state counts the steps."""
    metrics = {name: batch.astype(jnp.float32) for name in METRICS}
    return state.replace(step=state.step + 1), metrics


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_program_does_as_many_steps_as_it_is_told(
    count: int, tmp_path: Path
) -> None:
    state = jax.device_get(start(tmp_path, make_config()))
    state = state.replace(step=jnp.int32(7))
    program = make_program(count_up, lambda s, step, i: 10 * step + s["x"][i], 3)
    source = {"x": jnp.arange(3), "count": jnp.int32(count)}
    after, metrics = jax.jit(program)(state, {}, source)
    assert after.step == 7 + count
    for name in METRICS:
        assert metrics[name].shape == (3,)
        assert metrics[name][:count].tolist() == [70, 81, 92][:count]


def test_a_length_of_one_is_the_step_itself(tmp_path: Path) -> None:
    state = start(tmp_path, make_config())
    program = make_program(count_up, lambda source, step, i: source, 1)
    jaxpr = jax.make_jaxpr(program)(state, {}, jnp.int32(5))
    assert str(jaxpr) == str(jax.make_jaxpr(count_up)(state, {}, jnp.int32(5)))
    several = make_program(count_up, lambda source, step, i: source["x"], 2)
    source = {"x": jnp.int32(5), "count": jnp.int32(1)}
    assert "while" in primitives(jax.make_jaxpr(several)(state, {}, source))


# A line each 5 steps and each checkpoint, of which there are some in the middle of an
# epoch; 3 divides neither those nor the 4 steps of an epoch.
RUN = {"logging__every_steps": 5, "checkpoint__every_steps": 6}


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The record and the checkpoints of a run with a step a dispatch."""
    folder = tmp_path_factory.mktemp("one_by_one")
    config = make_config(**RUN)
    train(folder, config)
    return records(folder), states(folder, config)


@pytest.fixture(scope="module")
def by_threes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same run with up to three steps a dispatch."""
    folder = tmp_path_factory.mktemp("by_threes")
    config = make_config(**RUN, compute__steps_per_dispatch=3)
    train(folder, config)
    return records(folder), states(folder, config)


def test_the_steps_per_dispatch_change_nothing_but_rounding(
    one_by_one: Any, by_threes: Any
) -> None:
    """XLA fuses the body of a loop in its own way: the last bit of a float32."""
    (wanted_lines, wanted), (lines, found) = one_by_one, by_threes
    assert sorted(found) == sorted(wanted) == [4, 6, 8, 12]
    for step, state in wanted.items():
        assert found[step].step == step
        assert_same(found[step].masks, state.masks)
        for a, b in zip(*map(jax.tree.leaves, (found[step], state)), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    assert [line["step"] for line in lines] == [4, 4, 4, 5, 6, 8, 8, 8, 10, 12, 12, 12]
    for line, wanted_line in zip(lines, wanted_lines, strict=True):
        assert line.keys() == wanted_line.keys()
        assert line["phase"] == wanted_line["phase"]
        for name in line.keys() - {"phase"}:
            assert line[name] == pytest.approx(wanted_line[name], rel=1e-5), name


@pytest.mark.parametrize(("calls", "length"), [(2, 3), (4, 20), (6, 3)])
def test_a_run_resumes_at_any_step(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    by_threes: Any,
    calls: int,
    length: int,
) -> None:
    """Also with another number of steps a dispatch, to the last bit."""
    config = make_config(**RUN, compute__steps_per_dispatch=3)
    with monkeypatch.context() as patch:
        patch.setattr(MetricWriter, "write", failing(MetricWriter.write, calls))
        with pytest.raises(Stop):
            train(tmp_path, config)
    config = make_config(**RUN, compute__steps_per_dispatch=length)
    train(tmp_path, config)
    assert_same(states(tmp_path, config), by_threes[1])
    # Densities of the layers come last.
    assert records(tmp_path)[-2]["eval_loss"] == by_threes[0][-2]["eval_loss"]


@pytest.mark.parametrize("on_device", ["always", "never"])
def test_the_first_bad_step_of_a_dispatch_is_named(
    tmp_path: Path, on_device: str
) -> None:
    config = make_config(
        student__optimizer__learning_rate=1e30,
        student__optimizer__clip_norm=0.0,
        checkpoint__every_steps=0,
        logging__every_steps=50,
        compute__steps_per_dispatch=4,
        data__on_device=on_device,
    )
    with pytest.raises(TrainingError, match="the loss is nan at step 2; no checkpoint"):
        train(tmp_path, config)
    assert records(tmp_path) == []
