"""A network as one small file: bits of the masks, values of the weights that are kept.

    bytes 0-7    ALITEPK and the version of the format
    bytes 8-39   SHA-256 of all that follows
    bytes 40-43  length of the header, little-endian
    header       JSON, compressed: what the network is, its arrays, sizes of the streams
    streams      one after another, compressed (`alite_jax.deploy.streams`)

A pruned array has a bit for each of its weights and the values of those that are on, in
row-major order. Values are float32, float16, or int8: `value = integer * scale`, with a
scale for each output channel, which is the last axis. What is never pruned (BatchNorm,
biases, embeddings) and BatchNorm's running statistics are float32 with float32 values,
float16 otherwise. Any array in which float16 would overflow is float32. Bytes of one
significance lie together, each kind a stream of its own.

Reading trusts nothing: the digest comes first, then every size is checked against what
it follows from before anything is allocated. Nothing in the file is executed.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from alite_jax.deploy.header import COLLECTIONS, VALUES, read_header, write_header
from alite_jax.deploy.streams import deflate, read_stream
from alite_jax.errors import PackedFileError
from alite_jax.trees import named_leaves, nested

MAGIC = b"ALITEPK\x01"
_FIXED = len(MAGIC) + 32 + 4
# 127 of it are the largest number of float32, the smallest is 2 to the power of -149.
_LARGEST_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(127), np.float32(0))

# Groups of streams in their order, each with what a person calls it. A group of values
# has a stream for each of up to four bytes, the most significant one first.
_GROUPS = {
    "masks": "mask bits",
    "weights": "values of kept weights",
    "scales": "scales of int8 values",
    "dense": "values that are never pruned",
    "statistics": "running statistics",
}
_STREAMS = [f"{g}.{byte}" for g in _GROUPS for byte in range(4 if g != "masks" else 1)]


@dataclass(frozen=True)
class Packed:
    """What a packed file holds.

    Attributes:
        model: what it was packed with, JSON values.
        variables: `params`, `batch_stats` (float32) and `masks` (bool).
        sizes: bytes of each part of the file, by name; they sum up to its size.
    """

    model: dict[str, Any]
    variables: dict[str, Any]
    sizes: dict[str, int]


@np.errstate(over="ignore")  # What becomes infinite is refused.
def pack(
    model: Mapping[str, Any], variables: Mapping[str, Any], values: str = "int8"
) -> bytes:
    """Writes a network into bytes.

    Args:
        model: what `unpack` hands back, JSON values: enough to build the module.
        variables: `params`, `batch_stats` and `masks` of a network.
        values: how kept weights are stored, one of `VALUES`.

    Raises:
        PackedFileError: a value is not finite, a mask does not fit, `values` is not
            known, or `unpack` would refuse the names or `model`.
    """
    if values not in VALUES:
        raise PackedFileError(
            f"values are one of {', '.join(VALUES)}, found {values!r}"
        )
    masks = dict(named_leaves(variables["masks"]))
    streams = {name: bytearray() for name in _STREAMS}
    arrays = []
    for collection in COLLECTIONS:
        for path, leaf in named_leaves(variables[collection]):
            place = f"{collection}/{path}"
            array = np.asarray(leaf, np.float32)
            if not np.isfinite(array).all():
                raise PackedFileError(f"{place} has values that are not finite")
            mask = np.asarray(masks.get(path) if collection == "params" else True)
            masked = mask.ndim > 0
            fits = mask.shape == array.shape if masked else mask
            if mask.dtype != bool or not fits:
                raise PackedFileError(f"{place} has no mask of its shape {array.shape}")
            kept = array[mask].reshape(-1)
            kind = values if masked and values == "int8" else _kind(kept, values)
            arrays.append([place, list(array.shape), kind, masked])
            if masked:
                streams["masks.0"] += np.packbits(mask, axis=None).tobytes()
            if kind == "int8":
                scales, kept = _quantize(array, mask)
                _append(streams, "scales", scales)
            _append(streams, _group(place, masked), kept.astype(kind))
    compressed = {name: deflate(bytes(stream)) for name, stream in streams.items()}
    sizes = [(name, len(stream)) for name, stream in compressed.items()]
    header = write_header(model, arrays, sizes)
    body = len(header).to_bytes(4, "little") + header + b"".join(compressed.values())
    return MAGIC + hashlib.sha256(body).digest() + body


def unpack(data: bytes) -> Packed:
    """Reads what `pack` wrote.

    Weights are as they were packed, rounded as `values` says, and absent ones zero.

    Raises:
        PackedFileError: it is no such file, of another version, or damaged.
    """
    header, streams, sizes = _read(data)
    return Packed(header["model"], _rebuild(header["arrays"], streams), sizes)


def _group(path: str, masked: bool) -> str:
    """The group that the values of an array are in."""
    if masked:
        return "weights"
    return "dense" if path.startswith("params/") else "statistics"


def _append(streams: dict[str, bytearray], group: str, array: np.ndarray) -> None:
    """Adds values to the streams of their bytes."""
    columns = array.view(np.uint8).reshape(-1, array.itemsize)[:, ::-1].T
    for byte, column in enumerate(columns):
        streams[f"{group}.{byte}"] += column.tobytes()


def _kind(array: np.ndarray, values: str) -> str:
    fits = np.abs(array).max(initial=0) < np.finfo(np.float16).max
    return "float16" if values != "float32" and fits else "float32"


def _quantize(array: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales of the last axis, float32, and the kept values as integers.

    Scales are rounded up to 8 bits: the rest is zero and takes no room. Steps of the
    smallest numbers have fewer bits, and 127 of the largest must not overflow.
    """
    kept = np.where(mask, array, 0).astype(np.float64)
    steps = np.abs(kept).max(axis=tuple(range(array.ndim - 1)), initial=0) / 127
    unit = np.ldexp(1.0, np.maximum(np.frexp(steps)[1] - 8, -149))
    scales = np.minimum(np.ceil(steps / unit) * unit, _LARGEST_SCALE)
    integers = np.rint(kept / np.where(scales > 0, scales, 1))
    return scales.astype(np.float32), integers[mask].astype(np.int8)


def _read(data: bytes) -> tuple[dict[str, Any], dict[str, bytes], dict[str, int]]:
    """The header, the compressed streams, and the bytes that each part takes."""
    if data[: len(MAGIC)] != MAGIC:
        if data[: len(MAGIC) - 1] == MAGIC[:-1] and len(data) >= len(MAGIC):
            raise PackedFileError(
                f"it has version {data[len(MAGIC) - 1]} of the format, where this"
                f" program reads version {MAGIC[-1]}"
            )
        raise PackedFileError("it does not start as a packed network does")
    body = memoryview(data)[len(MAGIC) + 32 :]
    if len(data) < _FIXED or hashlib.sha256(body).digest() != data[len(MAGIC) :][:32]:
        raise PackedFileError("it was cut off or changed: its digest does not fit")
    length = int.from_bytes(body[:4], "little")
    if length > len(body) - 4:
        raise PackedFileError("its header is longer than the file")
    header = read_header(bytes(body[4 : 4 + length]), _STREAMS)
    start, streams, sizes = 4 + length, {}, {"header": _FIXED + length}
    for name, size in header["streams"]:
        streams[name] = bytes(body[start : start + size])
        group = name.partition(".")[0]
        sizes[group] = sizes.get(group, 0) + size
        start += size
    if start != len(body):
        raise PackedFileError("its streams do not fill the file")
    return header, streams, sizes


# Stored bytes may be NaN and their products infinite, which is found further down.
@np.errstate(all="ignore")
def _rebuild(arrays: list[Any], streams: dict[str, bytes]) -> dict[str, Any]:
    """The variables; sizes are known before anything is decompressed."""
    masks = _masks(arrays, streams["masks.0"])
    # How many values of each kind each group has, in the order of the arrays.
    wanted: dict[str, list[tuple[str, int]]] = {g: [] for g in _GROUPS if g != "masks"}
    for (path, shape, kind, masked), mask in zip(arrays, masks, strict=True):
        count = int(mask.sum()) if masked else math.prod(shape)
        wanted[_group(path, masked)].append((kind, count))
        if kind == "int8":
            wanted["scales"].append(("float32", shape[-1]))
    values = {g: iter(_values(g, wanted[g], streams)) for g in wanted}
    variables: dict[str, dict[str, Any]]
    variables = {"params": {}, "batch_stats": {}, "masks": {}}
    for (path, shape, kind, masked), mask in zip(arrays, masks, strict=True):
        stored = next(values[_group(path, masked)]).astype(np.float32)
        if masked:
            array = np.zeros(shape, np.float32)
            array[mask] = stored
        else:
            array = stored.reshape(shape)
        if kind == "int8":
            scales = next(values["scales"])
            array *= np.where(scales < 0, np.nan, scales)  # No size is negative.
        if not np.isfinite(array).all():
            raise PackedFileError(f"its {path} has values that are not finite")
        collection, _, name = path.partition("/")
        variables[collection][name] = array
        if collection == "params":
            variables["masks"][name] = mask
    return {name: nested(flat) for name, flat in variables.items()}


def _masks(arrays: list[Any], stream: bytes) -> list[np.ndarray]:
    """The mask of each array, the scalar True where there is none."""
    sizes = [math.prod(shape) if masked else 0 for _, shape, _, masked in arrays]
    lengths = [-(-size // 8) for size in sizes]
    bits = np.frombuffer(read_stream(stream, sum(lengths), _GROUPS["masks"]), np.uint8)
    masks = []
    for (_, shape, _, masked), size, length in zip(arrays, sizes, lengths, strict=True):
        mask = np.unpackbits(bits[:length], count=size).astype(bool)
        masks.append(mask.reshape(shape) if masked else np.asarray(True))
        bits = bits[length:]
    return masks


def _values(
    group: str, wanted: list[tuple[str, int]], streams: dict[str, bytes]
) -> list[np.ndarray]:
    """Reads the streams of a group and cuts them into the values of each array."""
    kinds = [(np.dtype(kind), count) for kind, count in wanted]
    columns = []
    for byte in range(4):
        size = sum(count for kind, count in kinds if kind.itemsize > byte)
        stream = read_stream(streams[f"{group}.{byte}"], size, _GROUPS[group])
        columns.append(np.frombuffer(stream, np.uint8))
    values = []
    for kind, count in kinds:
        stored = np.empty((count, kind.itemsize), np.uint8)
        for byte in range(kind.itemsize):
            stored[:, -1 - byte] = columns[byte][:count]
            columns[byte] = columns[byte][count:]
        values.append(stored.reshape(-1).view(kind))
    return values
