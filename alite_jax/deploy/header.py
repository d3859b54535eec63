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
# Levels of names above an array, and of the model: what walks them calls itself.
_DEEPEST = 32


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

    Raises:
        PackedFileError: `read_header` would refuse it.
    """
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    try:
        header = {"model": dict(model), "arrays": arrays, "streams": streams}
        text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise PackedFileError(f"its model is no JSON object ({error})") from error
    coded = coder.compress(text) + coder.flush()
    read_header(coded, [name for name, _ in streams])
    return coded


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
        header = _a(dict, json.loads(_decode(coded)))
        # JSON of Python has numbers and letters that no other program reads.
        json.dumps(header, allow_nan=False, ensure_ascii=False).encode()
        streams = [
            (_a(str, name), _count(size)) for name, size in _a(list, header["streams"])
        ]
        arrays = [
            (
                _a(str, path),
                tuple(map(_count, _a(list, shape))),
                _a(str, kind),
                _a(bool, masked),
            )
            for path, shape, kind, masked in _a(list, header["arrays"])
        ]
        model = _a(dict, header["model"])
        if _depth(model) > _DEEPEST:
            raise ValueError("its model is nested too deeply")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PackedFileError(f"its header cannot be read ({error})") from error
    if [name for name, _ in streams] != streams_wanted or len(header) > 3:
        raise PackedFileError("its header does not describe the streams of a network")
    for array in arrays:
        if not _well_formed(*array):
            raise PackedFileError(
                f"its header describes no array of a network: {array!r:.200}"
            )
    paths = [path for path, *_ in arrays]
    folders = {path[:end] for path in paths for end in _slashes(path)}
    if len(set(paths)) < len(paths) or folders & set(paths):
        raise PackedFileError("its header has two arrays at one place")
    return {"model": model, "arrays": arrays, "streams": streams}


def _well_formed(path: str, shape: tuple[int, ...], kind: str, masked: bool) -> bool:
    collection, *names = path.split("/")
    return (
        collection in COLLECTIONS
        and 1 <= len(names) <= _DEEPEST
        and all(names)
        and len(shape) <= 8
        and 0 not in shape
        and kind in VALUES
        # Only parameters have masks, only numbers behind a mask are integers.
        and (not masked or (collection == "params" and len(shape) > 0))
        and (masked or kind != "int8")
    )


def _depth(value: Any) -> int:
    if not isinstance(value, dict | list):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(_depth, inner), default=0)


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
        raise ValueError(f"{value!r:.80} is no {kind.__name__}")
    return value


def _count(number: Any) -> int:
    if _a(int, number) < 0:
        raise ValueError(f"{number!r:.80} is no size")
    return int(number)
