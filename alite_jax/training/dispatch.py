"""Several training steps in one dispatch: which ones, and the program that does them.

A dispatch is one call of the device by the host.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from alite_jax.training.objective import METRICS
from alite_jax.training.state import TrainState, Variables
from alite_jax.training.step import Batch, Metrics, TrainStep

# What a program takes its batches from, and how: see `alite_jax.training.feeds`.
Source = Any
Take = Callable[[Source, jax.Array, jax.Array | int], Batch]
Program = Callable[[TrainState, Variables, Source], tuple[TrainState, Metrics]]


def dispatches(
    start: int, stop: int, length: int, intervals: Sequence[int]
) -> Iterator[range]:
    """Cuts the steps of a training into dispatches.

    Args:
        start: the first step, counted from 0.
        stop: one more than the last step.
        length: the most steps in a dispatch.
        intervals: a dispatch ends at every multiple of each of these, 0 being never;
            there the host has something to do.

    Yields:
        The steps of each dispatch.
    """
    while start < stop:
        ends = [start - start % every + every for every in intervals if every]
        end = min(start + length, stop, *ends)
        yield range(start, end)
        start = end


def make_program(
    train_step: TrainStep,
    take: Take,
    length: int,
    metrics: Sequence[str] = METRICS,
) -> Program:
    """Builds the program of all dispatches.

    It loops up to a count that it is given: compiling another program for the shorter
    dispatches would take longer than they do.

    Args:
        train_step: the pure step.
        take: `take(source, step, i)` is the batch of the training's step `step`, the
            `i`-th of the dispatch.
        length: the most steps in a dispatch; with 1 there is no loop.
        metrics: the names of what `train_step` measures.

    Returns:
        `program(state, teacher_variables, source) -> (state, metrics)`. Metrics are
        those of `train_step`; with a `length` above 1, the source has the number of
        steps as `count`, int32, and metrics are arrays `[length]`, undefined from
        `count` on.
    """

    def one(
        state: TrainState, teacher_variables: Variables, source: Source
    ) -> tuple[TrainState, Metrics]:
        return train_step(state, teacher_variables, take(source, state.step, 0))

    def several(
        state: TrainState, teacher_variables: Variables, source: Source
    ) -> tuple[TrainState, Metrics]:
        def body(
            i: jax.Array, carry: tuple[TrainState, Metrics]
        ) -> tuple[TrainState, Metrics]:
            state, record = carry
            batch = take(source, state.step, i)
            state, metrics = train_step(state, teacher_variables, batch)
            return state, {
                name: values.at[i].set(metrics[name]) for name, values in record.items()
            }

        record = {name: jnp.zeros(length, jnp.float32) for name in metrics}
        return jax.lax.fori_loop(0, source["count"], body, (state, record))

    return one if length == 1 else several


def on_last_batch(
    function: Callable[[TrainState, Variables, Batch], Any], take: Take, length: int
) -> Callable[[TrainState, Variables, Source], Any]:
    """Lets a function of a batch work on a dispatch's last one, after its steps.

    Args:
        function: of the state, the teacher's variables and a batch.
        take: as for `make_program`.
        length: as for `make_program`.
    """

    def call(state: TrainState, teacher_variables: Variables, source: Source) -> Any:
        last = 0 if length == 1 else source["count"] - 1
        return function(state, teacher_variables, take(source, state.step - 1, last))

    return call
