"""Making a failure inside Orbax no more than the exception that it raises."""

import asyncio
import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

from absl import logging


@contextlib.contextmanager
def contained_failures() -> Iterator[None]:
    """Makes a failure inside Orbax nothing but the exception that it raises.

    Without this each of its threads logs the failure with its traceback, and a failed
    read closes an event loop under the other reads in flight, which then raise in
    TensorStore's threads and, unfinished, wherever the garbage collector meets them:
    here such loops finish their tasks first.
    """
    make_loop = asyncio.new_event_loop

    def make_patient_loop() -> asyncio.AbstractEventLoop:
        loop = make_loop()
        close_loop = loop.close

        def close() -> None:
            tasks = set() if loop.is_closed() else asyncio.all_tasks(loop)
            if tasks:
                loop.run_until_complete(asyncio.wait(tasks))
            close_loop()

        loop.close = close  # type: ignore[method-assign]
        return loop

    def is_not_of_orbax(record: Any) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname

    logger = logging.get_absl_logger()
    logger.addFilter(is_not_of_orbax)
    asyncio.new_event_loop = make_patient_loop
    try:
        yield
    finally:
        asyncio.new_event_loop = make_loop
        logger.removeFilter(is_not_of_orbax)


def reason(error: BaseException) -> str:
    """Returns a short cause: the operating system's words where there are any."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    from_tensorstore = re.search(r"([^:]+) \[os_error_code=", str(error))
    if from_tensorstore:
        return from_tensorstore[1].strip()
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
