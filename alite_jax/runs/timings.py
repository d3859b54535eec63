"""What the time of a job went into."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal, TypeVar

import jax

T = TypeVar("T")
Kind = Literal["reading", "compiling", "training", "evaluating", "writing", "other"]

# Tracing is not among them: JAX counts what is traced within a trace twice.
_COMPILING = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


class Timings:
    """Splits the wall time of a job into disjoint parts.

    Inside a span of another kind, the outer one pauses; what JAX compiles, or fetches
    from its cache of programs, is taken out of the span that it happens in. A span
    counts what the host waits for: where devices work on while the host reads, that is
    not the time that they take.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {
            kind: 0.0
            for kind in ("reading", "compiling", "training", "evaluating", "writing")
        }
        self._seconds["other"] = 0.0
        self._kind: Kind = "other"
        self._compiled = 0.0  # Since the last change of kind.
        self._since = time.monotonic()

    def __enter__(self) -> "Timings":
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *error: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    @contextlib.contextmanager
    def spent(self, kind: Kind) -> Iterator[None]:
        """Counts what is done inside as of a kind."""
        outer = self._change(kind)
        try:
            yield
        finally:
            self._change(outer)

    def each(self, kind: Kind, items: Iterable[T]) -> Iterator[T]:
        """Yields the items; waiting for one is of a kind, using it is not."""
        iterator = iter(items)
        while True:
            with self.spent(kind):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of each kind so far."""
        self._change(self._kind)
        return dict(self._seconds)

    def _change(self, kind: Kind) -> Kind:
        now = time.monotonic()
        compiled, self._compiled = self._compiled, 0.0
        self._seconds["compiling"] += compiled
        self._seconds[self._kind] += max(0.0, now - self._since - compiled)
        before, self._kind, self._since = self._kind, kind, now
        return before

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        if event in _COMPILING:
            self._compiled += duration_secs
