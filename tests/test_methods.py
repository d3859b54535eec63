"""Conformance: every way to prune, with every distribution and kind of distillation."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from fitting import STEPS_PER_EPOCH, TOTAL, make_config, records, start, states, train
from test_rewire import teacher
from tiny import random_data, tiny_config, tiny_models

from alite_jax.sparsity.distributions import DISTRIBUTIONS, layer_counts
from alite_jax.sparsity.methods import METHODS
from alite_jax.training import loop, parallel
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
PROGRAMS: dict[Any, Any] = {}


@pytest.fixture
def compile_once(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Shares starts and programs of runs that are alike in what these depend on."""
    spread, run_once = parallel.spread, parallel.run_once

    def share(method: str, distribution: str, distillation: str) -> None:
        rewiring: list[str] = [method]
        if METHODS[method].starts_dense:
            rewiring.append(distribution)
        elif METHODS[method].by_gradient:
            rewiring.append(distillation)

        def look_up(step: Callable[..., Any], **options: Any) -> Callable[..., Any]:
            names = {"train_step": [distillation], "eval_step": []}
            key = (step.__name__, *names.get(step.__name__, rewiring))
            return PROGRAMS.setdefault(key, spread(step, **options))

        def look_up_start(create: Callable[[], Any]) -> Any:
            key = ("start", METHODS[method].starts_dense, distribution)
            if key not in PROGRAMS:
                PROGRAMS[key] = run_once(create)
            return PROGRAMS[key]

        monkeypatch.setattr(parallel, "spread", look_up)
        monkeypatch.setattr(parallel, "run_once", look_up_start)

    return share


def counts(state: Any) -> list[int]:
    return [int(m.sum()) for m in jax.tree.leaves(state.masks) if m.ndim > 0]


@pytest.mark.parametrize("distillation", DISTILLATION)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_its_promises(
    tmp_path: Path,
    compile_once: Callable[..., None],
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
    compile_once(method, distribution, distillation)
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
        changed = any(
            np.any(a != b)
            for a, b in zip(
                *(jax.tree.leaves(saved[s].masks) for s in (before, after)), strict=True
            )
        )
        assert changed == (method != "static" and after < TOTAL)
    for state in saved.values():
        for mask, leaf in zip(
            *map(jax.tree.leaves, (state.masks, state.params)), strict=True
        ):
            assert not np.any(np.where(mask, 0, leaf))

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
        teacher, student = loop.create_networks(config, random_data(), tmp_path)
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
    params = {"kernel": jax.ShapeDtypeStruct((8, 10), np.float32)}
    kept = student.make_masks(jax.random.key(0), params)["kernel"].sum()
    assert kept == (80 if METHODS[method].starts_dense else 20)
