"""The header of a packed file: what it is written as, and what is not believed."""

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from alite_jax.deploy.streams import deflate, inflate
from alite_jax.errors import PackedFileError

T = TypeVar("T")

VALUES = ("float32", "float16", "int8")
COLLECTIONS = ("params", "batch_stats")

_LARGEST = 1 << 20  # Bytes of a header.
# Levels of names above an array, and of the model, which are walked by recursion.
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
    try:
        header = {"model": dict(model), "arrays": arrays, "streams": streams}
        text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise PackedFileError(f"its model is no JSON object ({error})") from error
    # Names repeat, which the default strategy makes use of.
    compressed = deflate(text, zlib.Z_DEFAULT_STRATEGY)
    read_header(compressed, [name for name, _ in streams])
    return compressed


def read_header(compressed: bytes, stream_names: list[str]) -> dict[str, Any]:
    """Returns `model`, `arrays` and `streams` as `write_header` was given them.

    They have the form that the rest relies on; `stream_names` are in their order.

    Raises:
        PackedFileError: it is damaged, or describes no network.
    """
    try:
        header = _checked(dict, json.loads(inflate(compressed, _LARGEST)))
        # JSON of Python has numbers and letters that no other program reads.
        json.dumps(header, allow_nan=False, ensure_ascii=False).encode()
        streams = [
            (_checked(str, name), _size(size))
            for name, size in _checked(list, header["streams"])
        ]
        arrays = [
            (
                _checked(str, path),
                tuple(map(_size, _checked(list, shape))),
                _checked(str, kind),
                _checked(bool, masked),
            )
            for path, shape, kind, masked in _checked(list, header["arrays"])
        ]
        model = _checked(dict, header["model"])
        if _depth(model) > _DEEPEST:
            raise ValueError("its model is nested too deeply")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PackedFileError(f"its header cannot be read ({error})") from error
    if [name for name, _ in streams] != stream_names or len(header) > 3:
        raise PackedFileError("its header does not describe the streams of a network")
    check_arrays(arrays)
    return {"model": model, "arrays": arrays, "streams": streams}


def check_arrays(arrays: Sequence[tuple[str, tuple[int, ...], str, bool]]) -> None:
    """Refuses arrays that no network has.

    Args:
        arrays: as for `write_header`.

    Raises:
        PackedFileError: one is no array of a network, or two have one place.
    """
    for array in arrays:
        if not _well_formed(*array):
            raise PackedFileError(
                f"its header describes no array of a network: {array!r:.200}"
            )
    paths = [path for path, *_ in arrays]
    folders = {path[:i] for path in paths for i, c in enumerate(path) if c == "/"}
    if len(set(paths)) < len(paths) or folders & set(paths):
        raise PackedFileError("its header has two arrays at one place")


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


def _checked(kind: type[T], value: Any) -> T:
    if type(value) is not kind:
        raise ValueError(f"{value!r:.80} is no {kind.__name__}")
    return value


def _size(number: Any) -> int:
    if _checked(int, number) < 0:
        raise ValueError(f"{number!r:.80} is no size")
    return int(number)
