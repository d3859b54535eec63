"""Training a network of two layers with `fit`, and reading what it left."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import pytest
from tiny import TwoLayers, random_data, tiny_config, tiny_models

from alite_jax.runs import parallel
from alite_jax.runs.evaluation import Evaluator
from alite_jax.runs.fit import Network, fit
from alite_jax.runs.metrics import MetricWriter, read_metrics
from alite_jax.runs.timings import Timings
from alite_jax.sparsity.masks import dense_masks, init_masks
from alite_jax.sparsity.methods import find_method
from alite_jax.training.objective import Objective
from alite_jax.training.optimizer import create_optimizer
from alite_jax.training.state import create_state

STEPS_PER_EPOCH, EPOCHS = 4, 3
TOTAL = STEPS_PER_EPOCH * EPOCHS
DATA = random_data()
TEMPLATES: dict[str, Any] = {}


def make_config(**changes: Any) -> Any:
    """A config of `EPOCHS` epochs; `section__field` stands for `section.field`."""
    with tiny_models():
        return tiny_config(
            {"student.density": 0.25, "checkpoint.every_steps": 3, "checkpoint.keep": 9}
            | {name.replace("__", "."): value for name, value in changes.items()}
        )


def make_network(folder: Path, config: Any, model: Any = None, alpha: float = 0) -> Any:
    density = config.student.density
    start = 1.0 if find_method(config.pruning.method).starts_dense else density
    distribution = config.pruning.distribution
    return Network(
        phase="student",
        model=model or TwoLayers(),
        recipe=config.student,
        objective=Objective(
            label_smoothing=config.student.optimizer.label_smoothing,
            **config.distillation.to_dict() | {"alpha": alpha},
        ),
        make_masks=partial(init_masks, density=start, distribution=distribution)
        if density < 1
        else lambda key, params: dense_masks(params),
        identity={"model": "two layers"},
        folder=folder / "checkpoints",
    )


def train(
    folder: Path,
    config: Any,
    model: Any = None,
    teacher: Any = None,
    alpha: float = 0,
    timings: Timings | None = None,
) -> tuple[Any, float]:
    """Runs `fit`; the teacher is a module and its variables."""
    network = make_network(folder, config, model, alpha)
    evaluator = Evaluator(network.model, DATA, config.data.eval_batch_size)
    with MetricWriter(folder) as writer:
        timings = timings or Timings()
        return fit(network, teacher, config, DATA, evaluator, writer, timings)


def make_create(folder: Path, config: Any) -> Callable[[], Any]:
    network = make_network(folder, config)
    optimizer = create_optimizer(config.student.optimizer, STEPS_PER_EPOCH, EPOCHS)
    return partial(
        create_state,
        network.keys(config.seed)[0],
        network.model,
        optimizer,
        DATA.image_shape,
        network.make_masks,
    )


def start(folder: Path, config: Any) -> Any:
    """The state before training, made anew."""
    return jax.device_get(parallel.run_once(make_create(folder, config)))


def states(folder: Path, config: Any, last: bool = False) -> dict[int, Any]:
    """Every checkpoint of a run by its step, or only the last one."""
    checkpoints = make_network(folder, config).checkpoints(config.checkpoint.keep)
    like = str(config.student)  # Nothing else changes the shapes of a state.
    if like not in TEMPLATES:
        TEMPLATES[like] = jax.eval_shape(make_create(folder, config))
    steps = sorted(int(path.name) for path in (folder / "checkpoints").iterdir())
    steps = steps[-1:] if last else steps
    return {step: checkpoints.restore(TEMPLATES[like], step)[0] for step in steps}


def records(folder: Path) -> list[dict[str, Any]]:
    """The record of a run without its times and its pace."""
    return [
        {
            name: value
            for name, value in line.items()
            if name not in ("time", "images_per_second")
        }
        for line in read_metrics(folder)
    ]


def share_programs(
    patch: pytest.MonkeyPatch,
    programs: dict[Any, Any],
    key: Callable[[str], Any] = str,
) -> None:
    """Compiles a step, and draws a start, once for all runs that say the same of it.

    Args:
        patch: undoes it.
        programs: those that there are; more are added.
        key: from a step's name, or "start", to all that makes a difference to it.
    """
    spread, run_once = parallel.spread, parallel.run_once

    def look_up(step: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        return programs.setdefault(key(step.__name__), spread(step, **options))

    def look_up_start(create: Callable[[], Any]) -> Any:
        if key("start") not in programs:
            programs[key("start")] = run_once(create)
        return programs[key("start")]

    patch.setattr(parallel, "spread", look_up)
    patch.setattr(parallel, "run_once", look_up_start)


class Stop(Exception):
    """What a test raises in the middle of a run."""


def failing(function: Callable[..., Any], calls: int) -> Callable[..., Any]:
    """`function`, which raises at its call number `calls`, counted from 0."""
    made = iter(range(1000))

    def call(*arguments: Any, **options: Any) -> Any:
        if next(made) == calls:
            raise Stop
        return function(*arguments, **options)

    return call
