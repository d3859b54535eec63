"""Timing of peers side by side, and the rows that the results are made of."""

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

Times = list[float]


@dataclasses.dataclass(frozen=True)
class Row:
    """One result.

    Attributes:
        value: the median of the rounds where there are several.
        unit: of `value`, such as `"x"` for a ratio.
        low: the smallest of the rounds.
        high: the largest of the rounds.
        detail: what was measured, in one sentence.
    """

    value: float
    unit: str
    low: float
    high: float
    detail: str

    @classmethod
    def of(cls, values: Sequence[float], unit: str, detail: str) -> "Row":
        """The median of some rounds, with their extremes."""
        return cls(statistics.median(values), unit, min(values), max(values), detail)

    @classmethod
    def one(cls, value: float, unit: str, detail: str) -> "Row":
        """Something that was measured once or does not vary."""
        return cls(value, unit, value, value, detail)


Rows = dict[str, Row]


def interleave(
    peers: Mapping[str, Callable[[], Any]], rounds: int, at_least: float = 0.05
) -> dict[str, Times]:
    """Times peers in turn, so that a slow moment of the machine meets all of them.

    Each is called once to warm up. A quick one is called several times in a row and the
    mean taken, a slow one once.

    Args:
        peers: what to call; JAX arrays among the results are waited for.
        rounds: how often each is timed.
        at_least: seconds that a quick peer is repeated for.

    Returns:
        Seconds of one call in each round.
    """
    repeats = {}
    for name, call in peers.items():
        jax.block_until_ready(call())
        seconds = _time(call, 1)
        repeats[name] = max(1, round(at_least / seconds))
    times: dict[str, Times] = {name: [] for name in peers}
    gc.disable()
    try:
        for _ in range(rounds):
            for name, call in peers.items():
                gc.collect()
                # Threads of the peer before may still be spinning.
                time.sleep(0.02)
                times[name].append(_time(call, repeats[name]))
    finally:
        gc.enable()
    return times


def _time(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        jax.block_until_ready(call())
    return (time.perf_counter() - start) / repeats


def ratios(slow: Times, fast: Times) -> Times:
    """`slow / fast`, round by round."""
    return [one / other for one, other in zip(slow, fast, strict=True)]


def total(times: Sequence[Times]) -> Times:
    """Sums over several measurements, round by round."""
    return [sum(of_round) for of_round in zip(*times, strict=True)]


def milliseconds(times: Times, detail: str) -> Row:
    """A row of times that were measured in seconds."""
    return Row.of([1e3 * seconds for seconds in times], "ms", detail)
