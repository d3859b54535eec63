"""The header of a packed file: what it is written as, and what is not believed."""

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from alite_jax.errors import PackedFileError

T = TypeVar("T")

VALUES = ("float32", "float16", "int8")
COLLECTIONS = ("params", "batch_stats")

# Names repeat, so they are coded as they come, and up to here in any case.
_LARGEST = 1 << 20


def write_header(
    model: Mapping[str, Any],
    arrays: Sequence[Any],
    streams: Sequence[tuple[str, int]],
) -> bytes:
    """Writes a header.

    Args:
        model: JSON values.
        arrays: (path, shape, how values are stored, whether it has a mask) of each.
        streams: (name, bytes) of each.
    """
    header = {"model": dict(model), "arrays": arrays, "streams": streams}
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    text = json.dumps(header, separators=(",", ":")).encode()
    return coder.compress(text) + coder.flush()


def read_header(coded: bytes, streams_wanted: list[str]) -> dict[str, Any]:
    """Reads a header and checks that it has the form that the rest relies on.

    Args:
        coded: what `write_header` wrote.
        streams_wanted: names of the streams that there must be, in their order.

    Returns:
        `model`, `arrays` and `streams` as they were given to `write_header`.

    Raises:
        PackedFileError: it is damaged, or describes no network.
    """
    try:
        header = json.loads(_decode(coded))
        streams = [(_a(str, name), _count(size)) for name, size in header["streams"]]
        arrays = [
            (_a(str, path), tuple(map(_count, shape)), _a(str, kind), _a(bool, masked))
            for path, shape, kind, masked in header["arrays"]
        ]
        model = dict(header["model"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PackedFileError(f"its header cannot be read ({error})") from error
    paths = [path for path, *_ in arrays]
    folders = {path[:end] for path in paths for end in _slashes(path)}
    well_formed = (
        [name for name, _ in streams] == streams_wanted
        and len(set(paths)) == len(paths)
        and not folders & set(paths)
        and all(len(shape) <= 8 and 0 not in shape for _, shape, *_ in arrays)
        and all(kind in VALUES for *_, kind, _ in arrays)
        and all(path.partition("/")[0] in COLLECTIONS for path in paths)
        and all(masked or kind != "int8" for *_, kind, masked in arrays)
        and all(shape or not masked for _, shape, _, masked in arrays)
    )
    if not well_formed:
        raise PackedFileError("its header does not describe a network")
    return {"model": model, "arrays": arrays, "streams": streams}


def _slashes(path: str) -> list[int]:
    return [place for place, letter in enumerate(path) if letter == "/"]


def _decode(coded: bytes) -> bytes:
    coder = zlib.decompressobj(-15)
    try:
        data = coder.decompress(coded, _LARGEST)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not coder.eof or coder.unused_data:
        raise ValueError("it is cut off or too long")
    return data


def _a(kind: type[T], value: Any) -> T:
    if type(value) is not kind:
        raise ValueError(f"{value!r} is no {kind.__name__}")
    return value


def _count(number: Any) -> int:
    if _a(int, number) < 0:
        raise ValueError(f"{number} is no size")
    return int(number)
