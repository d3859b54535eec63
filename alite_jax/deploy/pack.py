"""A network as one small file: bits of the masks, values of the weights that are kept.

    bytes 0-7    ALITEPK and the version of the format
    bytes 8-39   SHA-256 of all that follows
    bytes 40-43  length of the header, little-endian
    header       JSON, coded: what the network is, its arrays, sizes of the streams
    streams      one after another, coded (`alite_jax.deploy.streams`)

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
from alite_jax.deploy.streams import decode, encode
from alite_jax.errors import PackedFileError
from alite_jax.trees import named_leaves, nested

MAGIC = b"ALITEPK\x01"
_FIXED = len(MAGIC) + 32 + 4
_ITEM = {"float32": 4, "float16": 2, "int8": 1}
# 127 of it are the largest number of float32, the smallest is 2 to the power of -149.
_LARGEST_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(127), np.float32(0))

# Streams in their order, each with what a person calls it.
_GROUPS = {
    "masks": "mask bits",
    "weights": "values of kept weights",
    "scales": "scales of int8 values",
    "dense": "never pruned: BatchNorm, biases, embeddings",
    "statistics": "BatchNorm's running statistics",
}
_DENSE = {"params": "dense", "batch_stats": "statistics"}  # Where there is no mask.


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
def pack(model: Mapping[str, Any], variables: Any, values: str = "int8") -> bytes:
    """Writes a network into bytes.

    Args:
        model: what `unpack` hands back, JSON values: enough to build the module.
        variables: `params`, `batch_stats` and `masks` of a network.
        values: how kept weights are stored, one of `VALUES`.

    Returns:
        The content of the file.

    Raises:
        PackedFileError: a value is not finite, a mask does not fit, `values` is not
            known, or `unpack` would refuse the names or `model`.
    """
    if values not in VALUES:
        raise PackedFileError(
            f"values are one of {', '.join(VALUES)}, found {values!r}"
        )
    masks = dict(named_leaves(variables["masks"]))
    streams = {name: bytearray() for name in _streams()}
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
            if not masked:
                _append(streams, _DENSE[collection], kept.astype(kind))
                continue
            streams["masks.0"] += np.packbits(mask, axis=None).tobytes()
            if kind == "int8":
                scales, kept = _quantize(array, mask)
                _append(streams, "scales", scales)
            _append(streams, "weights", kept.astype(kind))
    coded = {name: encode(bytes(stream)) for name, stream in streams.items()}
    sizes = [(name, len(stream)) for name, stream in coded.items()]
    header = write_header(model, arrays, sizes)
    body = len(header).to_bytes(4, "little") + header + b"".join(coded.values())
    return MAGIC + hashlib.sha256(body).digest() + body


def unpack(data: bytes) -> Packed:
    """Reads what `pack` wrote.

    Args:
        data: the content of a file.

    Returns:
        The network; its weights are those that were packed, rounded as `values` says,
        and absent ones are zero.

    Raises:
        PackedFileError: it is no such file, of another version, or damaged.
    """
    header, streams, sizes = _read(data)
    return Packed(header["model"], _rebuild(header["arrays"], streams), sizes)


def size_table(packed: Packed) -> str:
    """Where each byte of a file went, as aligned plain text."""
    rows = [(_GROUPS.get(name, name), size) for name, size in packed.sizes.items()]
    rows.append(("in all", sum(packed.sizes.values())))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {size:>11,}" for name, size in rows)


def _streams() -> list[str]:
    return ["masks.0"] + [
        f"{group}.{plane}"
        for group in _GROUPS
        if group != "masks"
        for plane in range(4)
    ]


def _append(streams: dict[str, bytearray], group: str, array: np.ndarray) -> None:
    """Adds values to the streams of their bytes, the most significant one first."""
    planes = array.view(np.uint8).reshape(-1, array.itemsize)[:, ::-1]
    for plane in range(array.itemsize):
        streams[f"{group}.{plane}"] += planes[:, plane].tobytes()


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
    """The header, the coded streams, and the bytes that each part takes."""
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
    header = read_header(bytes(body[4 : 4 + length]), _streams())
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
    """The variables; sizes are known before anything is decoded."""
    bits = [math.prod(shape) for _, shape, _, masked in arrays if masked]
    packed = decode(streams["masks.0"], sum(-(-n // 8) for n in bits), "mask bits")
    masks, start = [], 0
    for n in bits:
        stored = np.frombuffer(packed, np.uint8, -(-n // 8), start)
        start += len(stored)
        masks.append(np.unpackbits(stored, count=n).astype(bool))
    # How many values of each kind each group has, in the order of the arrays.
    wanted: dict[str, list[tuple[str, int]]] = {group: [] for group in _GROUPS}
    remaining = iter(masks)
    for path, shape, kind, masked in arrays:
        if masked:
            wanted["weights"].append((kind, int(next(remaining).sum())))
            if kind == "int8":
                wanted["scales"].append(("float32", shape[-1]))
        else:
            wanted[_DENSE[path.partition("/")[0]]].append((kind, math.prod(shape)))
    values = {
        group: iter(_values(group, wanted[group], streams))
        for group in _GROUPS
        if group != "masks"
    }
    found: dict[str, dict[str, Any]] = {"params": {}, "batch_stats": {}, "masks": {}}
    remaining = iter(masks)
    for path, shape, kind, masked in arrays:
        collection, _, name = path.partition("/")
        if masked:
            mask = next(remaining).reshape(shape)
            array = np.zeros(shape, np.float32)
            array[mask] = next(values["weights"])
        else:
            mask = np.asarray(True)
            array = next(values[_DENSE[collection]]).astype(np.float32).reshape(shape)
        if kind == "int8":
            scales = next(values["scales"])
            array *= np.where(scales < 0, np.nan, scales)  # No size is negative.
        if not np.isfinite(array).all():
            raise PackedFileError(f"its {path} has values that are not finite")
        found[collection][name] = array
        if collection == "params":
            found["masks"][name] = mask
    return {name: nested(flat) for name, flat in found.items()}


def _values(
    group: str, wanted: list[tuple[str, int]], streams: dict[str, bytes]
) -> list[np.ndarray]:
    """Decodes the streams of a group and cuts them into the values of each array."""
    planes = []
    for plane in range(4):
        size = sum(count for kind, count in wanted if _ITEM[kind] > plane)
        planes.append(decode(streams[f"{group}.{plane}"], size, _GROUPS[group]))
    starts = [0] * 4
    found = []
    for kind, count in wanted:
        item = _ITEM[kind]
        stored = np.empty((count, item), np.uint8)
        for plane in range(item):
            column = np.frombuffer(planes[plane], np.uint8, count, starts[plane])
            stored[:, item - 1 - plane] = column
            starts[plane] += count
        found.append(stored.reshape(-1).view(kind))
    return found
