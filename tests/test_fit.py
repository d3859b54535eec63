"""Training one network: its record, its rewirings, interruptions, a loss of NaN."""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitting import (
    TOTAL,
    Stop,
    failing,
    make_config,
    make_network,
    records,
    share_programs,
    start,
    states,
    train,
)
from tiny import TwoLayers, assert_same

from alite_jax.data.pipeline import TrainBatches
from alite_jax.errors import ConfigError, TrainingError
from alite_jax.runs import fit as fit_module
from alite_jax.runs import parallel
from alite_jax.runs.checkpoints import Checkpoints
from alite_jax.runs.evaluation import Evaluator
from alite_jax.runs.metrics import MetricWriter
from alite_jax.sparsity.masks import count_nonzero

PROGRAMS: dict[str, Any] = {}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A run's folder, its checkpoints, and what `fit` returned."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        share_programs(patch, PROGRAMS)
        result = train(folder, make_config())
        saved = {0: start(folder, make_config())} | states(folder, make_config())
    return folder, saved, result


@pytest.fixture
def shared_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests whose runs differ in nothing that is compiled."""
    share_programs(monkeypatch, PROGRAMS)


def test_record_and_checkpoints_of_a_run(undisturbed: tuple[Path, Any, Any]) -> None:
    folder, saved, (variables, seconds) = undisturbed
    assert sorted(saved) == [0, 3, 4, 6, 8, 9, 12]
    assert all(state.step == step for step, state in saved.items())
    assert_same(variables, saved[TOTAL].variables)
    assert seconds > 0
    lines = records(folder)
    training = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in training] == list(range(1, TOTAL + 1))
    assert [line["step"] for line in evaluations] == [4, 8, 12]
    for line in training:
        assert set(line) == {
            *("step", "phase", "loss", "task_loss", "distillation_loss"),
            *("accuracy", "gradient_norm", "density", "learning_rate"),
        }
        assert line["density"] == pytest.approx(0.25, abs=1e-3)
        assert line["distillation_loss"] == 0
    assert training[-1]["loss"] < training[0]["loss"]
    assert 0 < evaluations[-1]["eval_accuracy"] < 1


def test_masks_change_at_the_end_of_each_epoch_but_the_last(
    undisturbed: tuple[Path, Any, Any],
) -> None:
    saved = undisturbed[1]

    def same(first: int, second: int) -> bool:
        masks = (saved[step].masks for step in (first, second))
        return jax.tree.all(jax.tree.map(np.array_equal, *masks))

    found = [b for a, b in itertools.pairwise(sorted(saved)) if not same(a, b)]
    assert found == [4, 8]
    kept = {count_nonzero(state.masks, state.params) for state in saved.values()}
    assert len(kept) == 1
    for state in saved.values():
        absent = jax.tree.map(
            lambda mask, leaf: np.where(mask, 0, leaf), state.masks, state.params
        )
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(absent))


@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [
        # Checkpoints are at 3, 4, 6, 8, 9, 12; rewirings at 4 and 8.
        pytest.param(TrainBatches, "batch", 0, id="before the first step"),
        pytest.param(TrainBatches, "batch", 2, id="before the first checkpoint"),
        pytest.param(TrainBatches, "batch", 4, id="right after a rewiring"),
        pytest.param(TrainBatches, "batch", 7, id="after a checkpoint amid an epoch"),
        pytest.param(MetricWriter, "write", 3, id="between metrics and checkpoint"),
        pytest.param(Evaluator, "__call__", 1, id="in an evaluation"),
        pytest.param(Checkpoints, "save", 3, id="between rewiring and checkpoint"),
        pytest.param(Checkpoints, "save", 5, id="before the last checkpoint"),
    ],
)
@pytest.mark.usefixtures("shared_programs")
def test_a_resumed_run_ends_as_if_it_had_never_stopped(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: tuple[Path, Any, Any],
    owner: type,
    name: str,
    calls: int,
) -> None:
    config = make_config()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing(getattr(owner, name), calls))
        with pytest.raises(Stop):
            train(tmp_path, config)
    before = {p.name for p in (tmp_path / "checkpoints").glob("*")}
    variables, seconds = train(tmp_path, config)
    folder, saved, (wanted, _) = undisturbed
    assert_same(variables, wanted)
    assert before <= {p.name for p in (tmp_path / "checkpoints").glob("*")}
    assert records(tmp_path) == records(folder)
    resumed = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert resumed == {p.name for p in (folder / "checkpoints").iterdir()}
    assert_same(states(tmp_path, config, last=True)[TOTAL], saved[TOTAL])
    assert seconds > 0


@pytest.mark.usefixtures("shared_programs")
def test_resuming_twice_is_the_same_and_adds_the_seconds_up(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: tuple[Path, Any, Any],
) -> None:
    config, spent = make_config(), []
    for calls in (5, 5):
        with monkeypatch.context() as patch:
            patch.setattr(TrainBatches, "batch", failing(TrainBatches.batch, calls))
            with pytest.raises(Stop):
                train(tmp_path, config)
        steps = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
        meta = tmp_path / "checkpoints" / str(steps[-1]) / "meta" / "metadata"
        spent.append(json.loads(meta.read_text())["extra"]["seconds"])
    variables, seconds = train(tmp_path, config)
    assert_same(variables, undisturbed[2][0])
    assert 0 < spent[0] < spent[1] < seconds


@pytest.mark.usefixtures("shared_programs")
def test_steps_find_their_batches_on_the_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no leave to move anything in any call of a step."""
    spread, calls = parallel.spread, []

    def guarded(step: Any, **options: Any) -> Any:
        run = spread(step, **options)

        def call(*arguments: Any) -> Any:
            calls.append(step.__name__)
            with jax.transfer_guard("disallow"):
                return run(*arguments)

        return call if options.get("donate_state") else run  # not the evaluation

    monkeypatch.setattr(parallel, "spread", guarded)
    train(tmp_path, make_config())
    assert Counter(calls) == {"train_step": 12, "rewire_step": 2}


def test_a_finished_network_is_not_trained_again(
    monkeypatch: pytest.MonkeyPatch, undisturbed: tuple[Path, Any, Any]
) -> None:
    folder, _, (wanted, seconds) = undisturbed
    before = records(folder)
    monkeypatch.setattr(fit_module, "JointStep", None)
    variables, again = train(folder, make_config())
    assert_same(variables, wanted)
    assert again == seconds
    assert records(folder) == before


@pytest.mark.parametrize(
    "changes",
    [{"student.density": 1.0}, {"pruning.method": "static"}],
    ids=["dense", "static"],
)
def test_nothing_is_rewired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    def no_rewiring(*arguments: Any) -> Callable[[Any], Any]:
        def rewire_step(state: Any) -> Any:
            raise AssertionError("rewired")

        return rewire_step

    monkeypatch.setattr(fit_module, "make_rewire_step", no_rewiring)
    config = make_config(**changes)
    train(tmp_path, config)
    saved = states(tmp_path, config, last=True)
    assert_same(saved[TOTAL].masks, start(tmp_path, config).masks)
    wanted = config.student.density
    assert records(tmp_path)[0]["density"] == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            {
                "pruning.method": "set",
                "pruning.distribution": "erk",
                "pruning.prune_rate_schedule": "linear",
            },
            marks=pytest.mark.processes,
        ),
        {
            "student.optimizer.label_smoothing": 0.1,
            "student.optimizer.schedule": "steps",
            "student.optimizer.step_epochs": (1, 2),
        },
    ],
    ids=["set", "label smoothing and steps"],
)
def test_other_recipes_run(
    tmp_path: Path, undisturbed: tuple[Path, Any, Any], changes: dict[str, Any]
) -> None:
    train(tmp_path, make_config(**changes))
    losses, usual = (
        [line["loss"] for line in records(folder) if "loss" in line]
        for folder in (tmp_path, undisturbed[0])
    )
    assert len(losses) == TOTAL
    assert losses != usual
    assert np.isfinite(losses).all()


@pytest.mark.usefixtures("shared_programs")
def test_the_record_s_lines_are_means_over_their_steps(
    tmp_path: Path, undisturbed: tuple[Path, Any, Any]
) -> None:
    """Five steps a line; the end of an epoch, which has a checkpoint, ends a line."""
    train(tmp_path, make_config(logging__every_steps=5, checkpoint__every_steps=0))
    each, together = (
        {line["step"]: line["loss"] for line in records(folder) if "loss" in line}
        for folder in (undisturbed[0], tmp_path)
    )
    assert list(together) == [4, 5, 8, 10, 12]
    for first, last in ((1, 4), (5, 5), (6, 8), (9, 10), (11, 12)):
        mean = np.mean([each[step] for step in range(first, last + 1)])
        assert together[last] == pytest.approx(mean, rel=1e-5)


def test_a_loss_of_nan_stops_with_its_step_and_the_last_good_checkpoint(
    tmp_path: Path,
) -> None:
    config = make_config(
        student__optimizer__learning_rate=1e30,
        student__optimizer__clip_norm=0.0,
        checkpoint__every_steps=1,
        logging__every_steps=50,
    )
    with pytest.raises(TrainingError) as caught:
        train(tmp_path, config)
    message = str(caught.value)
    assert message.startswith("student: the loss is nan at step 2; step 1 is the last ")
    assert f"good checkpoint in {tmp_path / 'checkpoints'}" in message
    assert "student.optimizer.learning_rate" in message
    assert sorted(states(tmp_path, config)) == [1]
    assert [line["step"] for line in records(tmp_path)] == [1]


def test_a_loss_of_nan_before_any_checkpoint(tmp_path: Path) -> None:
    config = make_config(
        student__optimizer__learning_rate=1e30, student__optimizer__clip_norm=0.0
    )
    with pytest.raises(TrainingError, match="no checkpoint was written yet in "):
        train(tmp_path, config)
    assert records(tmp_path) == [] or records(tmp_path)[-1]["step"] < 3


class BrokenGradient:
    """A network whose loss is fine and whose gradient, at some steps, is not."""

    def __init__(self) -> None:
        self.model = TwoLayers()

    def init(self, *arguments: Any, **options: Any) -> Any:
        return self.model.init(*arguments, **options)

    def apply(self, variables: Any, images: jax.Array, **options: Any) -> Any:
        output = self.model.apply(variables, images, **options)
        if not options["train"]:
            return output
        bias = variables["params"]["classifier"]["bias"]
        zero = jnp.where(jnp.sum(jnp.abs(bias)) > 0.05, 0.0, 1.0) * jnp.sum(bias**2)
        return output[0] + jnp.where(zero == 0, 0.0, jnp.sqrt(zero)), output[1]


def test_a_gradient_of_nan_is_noticed_before_it_is_in_a_checkpoint(
    tmp_path: Path,
) -> None:
    """Its step has a finite loss, but NaN in every weight that it leaves behind."""
    config = make_config(checkpoint__every_steps=1)
    with pytest.raises(TrainingError, match="gradient norm is nan at step 1; no check"):
        train(tmp_path, config, BrokenGradient())
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_keys_of_teacher_and_student_and_of_seeds_differ(tmp_path: Path) -> None:
    student = make_network(tmp_path, make_config())
    teacher = dataclasses.replace(student, phase="teacher")
    keys = [
        tuple(np.asarray(jax.random.key_data(key)).tolist())
        for network in (student, teacher)
        for seed in (0, 1)
        for key in network.keys(seed)
    ]
    assert len(set(keys)) == 12


def test_parts_that_are_not_equal_stop_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "run_once", failing(parallel.run_once, 0))
    with pytest.raises(ConfigError, match="compute.accumulation = 3 does not divide"):
        train(tmp_path, make_config(compute__accumulation=3))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_teacher_is_on_the_devices_only_if_it_has_a_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alpha: float
) -> None:
    teacher = TwoLayers(hidden=5)
    variables = jax.eval_shape(
        lambda: teacher.init(jax.random.key(0), np.zeros((1, 8, 8, 1)), train=False)
    )
    variables = jax.tree.map(lambda a: np.ones(a.shape, a.dtype), variables)
    replicate, shapes = parallel.replicate, []

    def watch(tree: Any) -> Any:
        shapes.extend(leaf.shape for leaf in jax.tree.leaves(tree))
        return replicate(tree)

    monkeypatch.setattr(parallel, "replicate", watch)
    # What comes next, before anything is compiled.
    monkeypatch.setattr(fit_module, "Progress", failing(fit_module.Progress, 0))
    with pytest.raises(Stop):
        train(tmp_path, make_config(), teacher=(teacher, variables), alpha=alpha)
    assert (64, 16) in shapes
    assert ((64, 5) in shapes) == (alpha > 0)
