"""Each step is traced and compiled once in a run, whatever happens in it."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from fitting import DATA, Stop, failing, make_config, make_network, train

from alite_jax.runs import fit as fit_module
from alite_jax.runs import parallel
from alite_jax.runs.evaluation import Evaluator
from alite_jax.runs.metrics import MetricWriter
from alite_jax.runs.timings import Timings


class Counts:
    """How often the steps were called, traced and compiled, by their names."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.traces: Counter[str] = Counter()
        self.compilations: Counter[str] = Counter()
        self._running = "nothing"

    def listen(self, event: str, duration: float, **context: Any) -> None:
        if "backend_compile" in event:
            self.compilations[self._running] += 1

    def traced(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A pure step whose traces are counted."""

        def trace(*arguments: Any) -> Any:
            self.traces[step.__name__] += 1
            return step(*arguments)

        return trace

    def called(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        """A compiled step whose calls are counted, and compilations within them."""

        def call(*arguments: Any) -> Any:
            self.calls[name] += 1
            self._running = name
            try:
                return run(*arguments)
            finally:
                self._running = "nothing"

        return call


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counts]:
    """Counts all that `parallel.spread` spreads from here on."""
    counts = Counts()
    spread = parallel.spread

    def count(step: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        return counts.called(step.__name__, spread(counts.traced(step), **options))

    monkeypatch.setattr(parallel, "spread", count)
    jax.monitoring.register_event_duration_secs_listener(counts.listen)
    yield counts
    jax.monitoring.unregister_event_duration_listener(counts.listen)


@pytest.mark.parametrize(
    "method",
    [
        "sparse_momentum",
        pytest.param("rigl", marks=pytest.mark.processes),
        pytest.param("gradual", marks=pytest.mark.processes),
    ],
)
def test_each_step_is_traced_and_compiled_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    counts: Counts,
    method: str,
) -> None:
    """Over epochs, rewirings and short batches, and in a resumed run."""
    config = make_config(pruning__method=method, logging__every_steps=5)
    with monkeypatch.context() as patch:
        # In the second epoch.
        patch.setattr(MetricWriter, "write", failing(MetricWriter.write, 5))
        with pytest.raises(Stop):
            train(tmp_path, config)
    check(counts)
    for counter in (counts.calls, counts.traces, counts.compilations):
        counter.clear()
    train(tmp_path, config)
    check(counts)


def check(counts: Counts) -> None:
    spread = ["train_step", "rewire_step", "eval_step"]
    assert counts.calls["train_step"] >= 3
    assert counts.calls["rewire_step"] >= 1
    assert counts.calls["eval_step"] in (4, 8)  # 50 examples, 16 in a batch
    assert counts.traces == dict.fromkeys(spread, 1)
    assert {name: counts.compilations[name] for name in spread} == dict.fromkeys(
        spread, 1
    )


def test_evaluating_stored_variables_compiles_nothing_new(
    tmp_path: Path, counts: Counts
) -> None:
    """As the summary does, with the evaluator that the training used."""
    config = make_config(student__epochs=1, student__density=1.0)
    network = make_network(tmp_path, config)
    evaluator = Evaluator(network.model, DATA, config.data.eval_batch_size)
    with MetricWriter(tmp_path) as writer:
        variables, _ = fit_module.fit(
            network, None, config, DATA, evaluator, writer, Timings()
        )
    evaluator(parallel.replicate(variables))
    assert counts.calls["eval_step"] == 8
    assert counts.traces["eval_step"] == counts.compilations["eval_step"] == 1


def test_a_second_trace_would_be_noticed(counts: Counts) -> None:
    def step(numbers: jax.Array) -> jax.Array:
        return numbers + 1

    program = parallel.spread(step)
    for dtype in ("float32", "float32", "int32"):
        program(parallel.shard(np.ones((2, 3), dtype)))
    assert counts.calls["step"] == 3
    assert counts.traces["step"] == counts.compilations["step"] == 2
