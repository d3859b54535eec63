"""Packed files: what goes in comes out, and nothing else is let in."""

import hashlib
import json
import random
import tracemalloc
import zlib
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import assert_same

from alite_jax.deploy.pack import MAGIC, VALUES, pack, size_table, unpack
from alite_jax.deploy.streams import decode, encode, largest
from alite_jax.errors import PackedFileError

START = len(MAGIC) + 32


def network(density: float = 0.1, seed: int = 0, width: int = 40) -> dict[str, Any]:
    """Variables of something like a network; `classifier/kernel` is fully pruned."""
    draw = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return draw.normal(size=shape).astype(np.float32)

    kernels = {"stem": (3, 3, 3, width), "block": (width, 2 * width)}
    masks: dict[str, Any] = {
        name: {"kernel": draw.random(shape) < density}
        for name, shape in kernels.items()
    }
    masks["classifier"] = {"kernel": np.zeros((2 * width, 10), bool), "bias": np.True_}
    params: dict[str, Any] = {
        name: {"kernel": drawn(*mask["kernel"].shape) * mask["kernel"]}
        for name, mask in masks.items()
    }
    params["classifier"]["bias"] = drawn(10)
    masks["norm"] = {"scale": np.True_}
    params["norm"] = {"scale": drawn(width)}
    masks, params = dict(sorted(masks.items())), dict(sorted(params.items()))
    statistics = {"norm": {"mean": drawn(width), "var": 1e6 * drawn(width) ** 2}}
    return {"params": params, "batch_stats": statistics, "masks": masks}


def test_float32_comes_back_to_the_last_bit() -> None:
    variables = network()
    packed = unpack(pack({"model": "m"}, variables, "float32"))
    assert packed.model == {"model": "m"}
    assert_same(packed.variables, jax.tree.map(np.asarray, variables))


@given(st.floats(0, 1), st.integers(0, 99), st.sampled_from(VALUES), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_values_come_back_as_precise_as_they_are_stored(
    density: float, seed: int, values: str, width: int
) -> None:
    variables = network(density, seed, width)
    found = unpack(pack({}, variables, values)).variables
    assert_same(found["masks"], jax.tree.map(np.asarray, variables["masks"]))
    for name in ("stem", "block"):
        ours = found["params"][name]["kernel"]
        theirs = variables["params"][name]["kernel"]
        assert not ours[~variables["masks"][name]["kernel"]].any()
        largest_of_channel = np.abs(theirs).max(axis=tuple(range(theirs.ndim - 1)))
        step = {"float32": 0, "float16": 2**-11, "int8": 0.505 / 127}[values]
        assert (np.abs(ours - theirs) <= 1.01 * step * largest_of_channel + 1e-7).all()
    # Statistics beyond the range of float16 stay float32.
    ours, theirs = (v["batch_stats"]["norm"]["var"] for v in (found, variables))
    np.testing.assert_allclose(ours, theirs, rtol=2**-11, atol=1e-7)


def test_sizes_are_those_of_the_parts() -> None:
    variables = network(0.075, width=200)
    data = pack({}, variables, "int8")
    packed = unpack(data)
    assert sum(packed.sizes.values()) == len(data)
    weights = sum(
        mask.size
        for mask in jax.tree.leaves(variables["masks"])
        if mask.ndim > 0 and mask.any()
    )
    # 0.384 bits a weight is the entropy of such a mask, 1 byte the plain int8.
    assert packed.sizes["masks"] < 0.42 * weights / 8 + 600
    assert packed.sizes["weights"] < 1.01 * 0.075 * weights + 200
    table = size_table(packed).splitlines()
    assert table[-1].split()[-1] == f"{len(data):,}"
    assert len(table) == 1 + len(packed.sizes)


@pytest.mark.parametrize(
    ("values", "change", "message"),
    [
        ("int4", 0.0, "values are one of float32, float16, int8, found 'int4'"),
        ("int8", np.nan, "norm/scale has values that are not finite"),
    ],
)
def test_what_cannot_be_packed(values: str, change: float, message: str) -> None:
    variables = network()
    variables["params"]["norm"]["scale"][3] += change
    with pytest.raises(PackedFileError, match=message):
        pack({}, variables, values)


def sealed(header: Any, streams: bytes) -> bytes:
    """A file with any header and a digest that fits."""
    if not isinstance(header, bytes):
        coder = zlib.compressobj(9, zlib.DEFLATED, -15)
        header = coder.compress(json.dumps(header).encode()) + coder.flush()
    body = len(header).to_bytes(4, "little") + header + streams
    return MAGIC + hashlib.sha256(body).digest() + body


def opened(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[START : START + 4], "little")
    header = data[START + 4 : START + 4 + length]
    return (
        json.loads(zlib.decompressobj(-15).decompress(header)),
        data[START + 4 + length :],
    )


WILD = (-1, 0, 1, 7, 10**6, 2**31, 2**63, 10**30, 0.5, True, None, "9", [], {}, "a/b")


def wild(header: Any, draw: random.Random) -> Any:
    """Changes one thing somewhere in a header, so that it is another one."""
    place: Any = header
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = draw.choice(list(keys))
        if key == "model":
            key = "arrays"
        inner = place[key]
        if isinstance(inner, dict | list) and inner and draw.random() < 0.8:
            place = inner
            continue
        action = draw.random()
        if action < 0.1:
            del place[key]
        elif action < 0.2 and isinstance(place, list):
            place.append(inner)
        else:
            place[key] = draw.choice([w for w in WILD if w is not inner])
        return header


def test_ten_thousand_damaged_files_are_refused() -> None:
    data = pack({"model": "resnet26"}, network(0.1), "int8")
    header, streams = opened(data)
    assert unpack(sealed(header, streams)).model == {"model": "resnet26"}
    draw = random.Random(0)
    damaged: list[bytes] = []
    for _ in range(3000):
        flipped = bytearray(data)
        for _ in range(draw.choice([1, 1, 2, 50])):
            flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        damaged.append(bytes(flipped))
    damaged += [data[: draw.randrange(len(data))] for _ in range(1000)]
    damaged += [draw.randbytes(draw.randrange(200)) for _ in range(500)]
    damaged += [data + draw.randbytes(1 + draw.randrange(9)) for _ in range(500)]
    text = json.dumps(header)
    for _ in range(4000):
        damaged.append(sealed(wild(json.loads(text), draw), streams))
    for _ in range(1000):  # With a digest that fits, whatever is inside.
        cut = bytearray(streams)
        cut[draw.randrange(len(cut))] ^= 1 << draw.randrange(8)
        damaged.append(sealed(header, bytes(cut[: -draw.choice([1, 1, 5])])))
    assert len(damaged) == 10_000
    tracemalloc.start()
    unpack(data)
    honest = tracemalloc.get_traced_memory()[1]
    let_in = 0
    for case in damaged:
        if case == data:
            continue
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            unpack(case)
        except PackedFileError as error:
            assert str(error).startswith("it")
        else:
            let_in += 1
        assert tracemalloc.get_traced_memory()[1] - before <= 2 * honest
    tracemalloc.stop()
    assert let_in <= 40, "only changes that keep the header true may pass"


def test_other_versions_and_other_files() -> None:
    data = pack({}, network())
    with pytest.raises(PackedFileError, match="it has version 2 of the format, where"):
        unpack(data[: len(MAGIC) - 1] + b"\x02" + data[len(MAGIC) :])
    for other in (b"", b"PK\x03\x04" + bytes(90), MAGIC):
        with pytest.raises(PackedFileError):
            unpack(other)


@given(st.binary(max_size=3000))
@settings(max_examples=60, deadline=None)
def test_streams_come_back_and_cannot_grow(data: bytes) -> None:
    coded = encode(data)
    assert decode(coded, len(data), "bytes") == data
    assert len(data) <= largest(len(coded))
    if data:
        with pytest.raises(PackedFileError, match="do not have the"):
            decode(coded, len(data) - 1, "bytes")


def test_a_bomb_does_not_go_off() -> None:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = coder.compress(bytes(10**8)) + coder.flush()
    with pytest.raises(PackedFileError, match=f"which {len(bomb)} cannot stand for"):
        decode(bomb, 10**8, "mask bits")
    _, streams = opened(pack({}, network()))
    tracemalloc.start()
    with pytest.raises(PackedFileError, match="its header cannot be read"):
        unpack(sealed(bomb, streams))
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()
