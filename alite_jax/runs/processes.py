"""Several processes of one run: the first acts, and its result goes to the others.

Each process runs the same program on devices of its own. What touches the run's folder
is done by the first of them alone; the others receive its result, or its error, so that
all go on alike. They need no common folder, except for the data.
"""

import pickle
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from alite_jax.errors import AliteError, ConfigError

P = ParamSpec("P")
T = TypeVar("T")

# Whether this process is the first and acts for all, so that nobody waits for more.
_acting: ContextVar[bool] = ContextVar("acting", default=False)


def connect(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the other processes of the run; before anything is computed.

    On TPU pods and under Slurm or MPI, JAX finds out by itself what is left out.

    Args:
        coordinator_address: `host:port` on which the first process listens.
        num_processes: of the run.
        process_id: of this one, counted from 0.

    Raises:
        ConfigError: the processes do not find one another.
    """
    try:
        jax.distributed.initialize(coordinator_address, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the processes of the run do not find one another ({error}): start all of"
            " them, or give --coordinator_address, --num_processes and --process_id"
        ) from error


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints, in that process."""
    if is_first():
        print(text)


def by_first(function: Callable[P, T]) -> Callable[P, T]:
    """Decorates a function that the first process calls for all.

    All processes must call it, in the same order. Results must be what pickle takes;
    arrays are numpy's.

    Returns:
        The function, which returns in every process what it returned in the first, or
        raises there the `AliteError` that it raised.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if jax.process_count() == 1 or _acting.get():
            return function(*args, **kwargs)
        result: Any = None
        error: AliteError | None = None
        if is_first():
            before = _acting.set(True)
            try:
                result = function(*args, **kwargs)
            except AliteError as raised:
                error = raised
            finally:
                _acting.reset(before)
        result, error = _from_first((result, error))
        if error is not None:
            raise error
        return result

    return call


def first_alone(function: Callable[P, T]) -> Callable[P, T]:
    """Decorates a function that all processes call, the others after the first.

    For what is made on first use and found ready from then on.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        results: list[T] = []
        by_first(lambda: results.append(function(*args, **kwargs)))()
        return results[0] if is_first() else function(*args, **kwargs)

    return call


def _from_first(value: Any) -> Any:
    """The value of the first process, in all of them."""
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    # Arrays must have one shape everywhere before they can be sent.
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    sent = data if is_first() else np.zeros(size, np.uint8)
    received = np.asarray(multihost_utils.broadcast_one_to_all(sent))
    return pickle.loads(received.tobytes())
