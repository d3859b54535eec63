"""Conformance: every way to prune, with every distribution and kind of distillation."""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from fitting import (
    STEPS_PER_EPOCH,
    TOTAL,
    make_config,
    records,
    share_programs,
    start,
    states,
    train,
)
from test_rewire import teacher
from tiny import random_data, tiny_config, tiny_models

from alite_jax.jobs import train as train_job
from alite_jax.sparsity.distributions import DISTRIBUTIONS, layer_counts
from alite_jax.sparsity.methods import METHODS
from alite_jax.training.objective import Objective

SHAPES = [(16, 10), (64, 16)]  # classifier and hidden, in the order of the leaves
LABELS, PLAIN, FULL = "labels", "kd", "dkd, features, schedules"
DISTILLATION: dict[str, dict[str, Any]] = {
    LABELS: {"distillation.alpha": 0.0},
    PLAIN: {"distillation.alpha": 0.5},
    FULL: {
        "distillation.alpha": 0.8,
        "distillation.alpha_end": 0.0,
        "distillation.temperature_end": 1.0,
        "distillation.schedule": "cosine",
        "distillation.loss": "dkd",
        "distillation.feature_weight": 2.0,
    },
}
# In which every two of a method, a distribution and a distillation meet; all of each
# are in those without a marker.
CASES = [
    pytest.param(
        method,
        list(DISTRIBUTIONS)[(m + d) % len(DISTRIBUTIONS)],
        distillation,
        marks=() if d == m % len(DISTILLATION) else pytest.mark.processes,
    )
    for m, method in enumerate(METHODS)
    for d, distillation in enumerate(DISTILLATION)
]
PROGRAMS: dict[Any, Any] = {}


def program(name: str, method: str, distribution: str, distillation: str) -> Any:
    """What makes a difference to a step, or to the start, of a run."""
    if name == "start":
        return name, METHODS[method].starts_dense or distribution
    if name == "train_step":
        return name, distillation
    if name == "eval_step":
        return name
    if METHODS[method].starts_dense:
        return name, method, distribution
    return name, method, METHODS[method].by_gradient and distillation


def counts(state: Any) -> list[int]:
    return [int(m.sum()) for m in jax.tree.leaves(state.masks) if m.ndim > 0]


@pytest.mark.parametrize(("method", "distribution", "distillation"), CASES)
def test_every_method_keeps_its_promises(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    distribution: str,
    distillation: str,
) -> None:
    changes = DISTILLATION[distillation]
    config = make_config(
        **changes,
        pruning__method=method,
        pruning__distribution=distribution,
        checkpoint__every_steps=0,
    )
    share_programs(
        monkeypatch,
        PROGRAMS,
        lambda name: program(name, method, distribution, distillation),
    )
    alpha = changes["distillation.alpha"]
    train(tmp_path, config, teacher=teacher(), alpha=alpha)
    saved = {0: start(tmp_path, config)} | states(tmp_path, config)
    assert sorted(saved) == [0, 4, 8, 12]

    target = layer_counts(SHAPES, 0.25, distribution)
    sizes = [math.prod(shape) for shape in SHAPES]
    totals = {step: sum(counts(state)) for step, state in saved.items()}
    if METHODS[method].starts_dense:
        # Of two changes the first leaves (1/2)**3 of what is to go.
        halfway = [
            n + round((size - n) / 8) for n, size in zip(target, sizes, strict=True)
        ]
        assert totals == {
            0: sum(sizes),
            4: sum(halfway),
            8: sum(target),
            12: sum(target),
        }
        if method == "gradual":
            assert counts(saved[4]) == halfway
            assert counts(saved[TOTAL]) == target
    else:
        assert set(totals.values()) == {sum(target)}
        assert counts(saved[0]) == target
        if method != "sparse_momentum":
            assert counts(saved[TOTAL]) == target
    for before, after in ((0, 4), (4, 8), (8, 12)):
        same = jax.tree.map(np.array_equal, saved[before].masks, saved[after].masks)
        assert (not jax.tree.all(same)) == (method != "static" and after < TOTAL)
    for state in saved.values():
        absent = jax.tree.map(
            lambda mask, leaf: np.where(mask, 0, leaf), state.masks, state.params
        )
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(absent))

    lines = [line for line in records(tmp_path) if "loss" in line]
    assert len(lines) == TOTAL
    for step, line in enumerate(lines):
        epoch = step // STEPS_PER_EPOCH * STEPS_PER_EPOCH
        assert line["density"] == totals[epoch] / sum(sizes)
        wanted = line["task_loss"]
        if distillation != LABELS:
            if distillation == FULL:
                alpha = 0.4 * (1 + math.cos(math.pi * step / TOTAL))
            wanted = (1 - alpha) * wanted + alpha * line["distillation_loss"]
            assert line["distillation_loss"] > 0
        assert ("feature_loss" in line) == (distillation == FULL)
        wanted += line.get("feature_loss", 0.0)
        assert line["loss"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_config_reaches_everything(tmp_path: Path, method: str) -> None:
    """What the jobs make of it; nothing is trained."""
    changes = DISTILLATION[FULL] | {
        "pruning.method": method,
        "distillation.alpha_dkd": 0.5,
        "distillation.beta_dkd": 2.0,
        "student.optimizer.label_smoothing": 0.1,
    }
    with tiny_models():
        config = tiny_config(changes)
        teacher, student = train_job.create_networks(config, random_data(), tmp_path)
    assert not teacher.objective.needs_teacher
    assert student.objective == Objective(
        alpha=0.8,
        temperature=2.0,
        label_smoothing=0.1,
        loss="dkd",
        alpha_dkd=0.5,
        beta_dkd=2.0,
        feature_weight=2.0,
        alpha_end=0.0,
        temperature_end=1.0,
        schedule="cosine",
    )
    params = {"kernel": np.ones((8, 10), np.float32)}
    kept = jax.jit(student.make_masks)(jax.random.key(0), params)["kernel"].sum()
    assert kept == (80 if METHODS[method].starts_dense else 20)
