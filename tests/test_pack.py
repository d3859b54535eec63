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

from alite_jax.deploy.pack import MAGIC, VALUES, pack, unpack
from alite_jax.deploy.streams import deflate, inflate, largest, read_stream
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


def matrix(weights: Any, mask: Any) -> dict[str, Any]:
    """Variables of a network of one array."""
    params, masks = {"kernel": np.float32(weights)}, {"kernel": np.asarray(mask)}
    return {"params": params, "batch_stats": {}, "masks": masks}


LARGEST = float(np.finfo(np.float32).max)
MAGNITUDES = st.floats(2.0**-149, LARGEST, width=32)


@given(st.data(), st.sampled_from(VALUES))
@settings(max_examples=150, deadline=None)
def test_weights_of_any_magnitude_come_back(data: st.DataObject, values: str) -> None:
    largest = data.draw(MAGNITUDES)
    weights = st.floats(-largest, largest, width=32)
    rows = data.draw(st.lists(st.tuples(weights, weights), min_size=1, max_size=6))
    drawn = np.array([*rows, (largest, -largest)])
    mask = np.array(
        data.draw(st.lists(st.booleans(), min_size=drawn.size, max_size=drawn.size))
    )
    mask = mask.reshape(drawn.shape)
    found = unpack(pack({}, matrix(drawn, mask), values)).variables["params"]["kernel"]
    kept = np.where(mask, drawn, 0)
    errors = np.abs(found - kept)
    if values == "int8":
        # Half a step, which is rounded up to 8 bits and to a multiple of the smallest.
        steps = np.abs(kept).max(axis=0) / 127
        smallest = 2.0**-149
        assert (errors <= 0.5 * (1.0079 * steps + smallest * (steps > 0))).all()
    elif values == "float16" and np.abs(kept).max() < 65504:
        assert (errors <= np.maximum(2.0**-11 * np.abs(kept), 2.0**-25)).all()
    else:
        np.testing.assert_array_equal(found, np.float32(kept))


@pytest.mark.parametrize(
    ("values", "weights"),
    [
        ("float16", [1e5, -7e4]),
        ("float16", [65504, 1.5]),
        ("int8", [LARGEST, 3.39e38]),
        ("int8", [-LARGEST, 1.0]),
        ("int8", [1e-45, 1e-45]),
        ("int8", [2.5e-43, 1.3e-43]),
    ],
)
def test_neither_infinity_nor_nothing_comes_of_a_weight(
    values: str, weights: list[float]
) -> None:
    variables = matrix([weights] * 2, np.full((2, 2), True))
    found = unpack(pack({}, variables, values)).variables["params"]["kernel"]
    np.testing.assert_allclose(found, variables["params"]["kernel"], rtol=4e-3)


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


FULL = np.full((2, 3), True)


@pytest.mark.parametrize(
    ("model", "variables", "message"),
    [
        ({"a": float("nan")}, matrix(np.ones((2, 3)), FULL), "no JSON object"),
        ({"a": np.float32(1)}, matrix(np.ones((2, 3)), FULL), "no JSON object"),
        ({"a": "\ud800"}, matrix(np.ones((2, 3)), FULL), "header cannot be read"),
        ({"a": "long" * 2**18}, matrix(np.ones((2, 3)), FULL), "too long"),
        ({}, matrix(np.ones((2, 3)), FULL[:, :2]), r"no mask of its shape \(2, 3\)"),
        ({}, matrix(np.ones((2, 3)), FULL.astype(int)), "no mask of its shape"),
        ({}, matrix(np.ones((2, 3)), np.False_), "no mask of its shape"),
        ({}, matrix(np.ones((2, 3)), FULL) | {"masks": {}}, "no mask of its shape"),
        ({}, matrix(np.ones((0, 3)), FULL[:0]), r"no array of a network: .*\(0, 3\)"),
    ],
)
def test_what_unpack_would_refuse_cannot_be_packed(
    model: Any, variables: Any, message: str
) -> None:
    with pytest.raises(PackedFileError, match=message):
        pack(model, variables)


def sealed(header: Any, streams: bytes) -> bytes:
    """A file with any header and a digest that fits."""
    if not isinstance(header, bytes):
        header = deflate(json.dumps(header).encode())
    body = len(header).to_bytes(4, "little") + header + streams
    return MAGIC + hashlib.sha256(body).digest() + body


def opened(data: bytes) -> tuple[dict[str, Any], bytes]:
    end = START + 4 + int.from_bytes(data[START : START + 4], "little")
    return json.loads(inflate(data[START + 4 : end], 1 << 20)), data[end:]


def taken_apart(data: bytes) -> tuple[dict[str, Any], dict[str, bytearray]]:
    """The header of a file and the content of its streams."""
    header, coded = opened(data)
    streams, start = {}, 0
    for name, size in header["streams"]:
        stream = coded[start : start + size]
        streams[name] = bytearray(inflate(stream, 1 << 20) if stream else b"")
        start += size
    return header, streams


def put_together(header: dict[str, Any], streams: dict[str, bytearray]) -> bytes:
    """A file with these streams, coded and sealed as if `pack` had written it."""
    coded = {name: deflate(bytes(stream)) for name, stream in streams.items()}
    header["streams"] = [[name, len(stream)] for name, stream in coded.items()]
    return sealed(header, b"".join(coded.values()))


KERNEL, BIAS, MEAN = "params/a/kernel", "params/a/bias", "batch_stats/a/mean"
NESTED: Any = []
for _ in range(100):
    NESTED = [NESTED]


def small_file() -> bytes:
    variables = {
        "params": {"a": {"kernel": np.ones((2, 2)), "bias": np.ones(2)}},
        "batch_stats": {"a": {"mean": np.ones(2)}},
        "masks": {"a": {"kernel": np.full((2, 2), True), "bias": np.True_}},
    }
    return pack({"model": "m"}, variables, "int8")


def of_stream(name: str, high: bytes) -> Any:
    """A change of the first number of a stream, in its two highest bytes."""

    def change(header: dict[str, Any], streams: dict[str, bytearray]) -> None:
        streams[f"{name}.0"][0], streams[f"{name}.1"][0] = high

    return change


def of_array(place: str, path: str, *others: Any) -> Any:
    """A change of the path of an array, and of what follows it in the header."""

    def change(header: dict[str, Any], streams: dict[str, bytearray]) -> None:
        row = next(row for row in header["arrays"] if row[0] == place)
        row[: 1 + len(others)] = [path, *others]

    return change


def of_header(**fields: Any) -> Any:
    return lambda header, streams: header.update(fields)


def without_streams(header: dict[str, Any], streams: dict[str, bytearray]) -> None:
    for stream in streams.values():
        stream.clear()


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


@pytest.mark.parametrize(
    "thousands", [1, pytest.param(10, marks=pytest.mark.processes)]
)
def test_thousands_of_damaged_files_are_refused(thousands: int) -> None:
    data = pack({"model": "resnet26"}, network(0.1), "int8")
    header, streams = opened(data)
    assert unpack(sealed(header, streams)).model == {"model": "resnet26"}
    draw = random.Random(0)
    damaged: list[bytes] = []
    for _ in range(300 * thousands):
        flipped = bytearray(data)
        for _ in range(draw.choice([1, 1, 2, 50])):
            flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        damaged.append(bytes(flipped))
    damaged += [data[: draw.randrange(len(data))] for _ in range(100 * thousands)]
    damaged += [draw.randbytes(draw.randrange(200)) for _ in range(50 * thousands)]
    damaged += [
        data + draw.randbytes(1 + draw.randrange(9)) for _ in range(50 * thousands)
    ]
    text = json.dumps(header)
    for _ in range(400 * thousands):
        damaged.append(sealed(wild(json.loads(text), draw), streams))
    for _ in range(100 * thousands):  # With a digest that fits, whatever is inside.
        cut = bytearray(streams)
        cut[draw.randrange(len(cut))] ^= 1 << draw.randrange(8)
        damaged.append(sealed(header, bytes(cut[: -draw.choice([1, 1, 5])])))
    assert len(damaged) == 1000 * thousands
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
    assert let_in <= 4 * thousands, "only changes that keep the header true may pass"


CRAFTED = {
    "a scale of NaN": of_stream("scales", b"\x7f\xc0"),
    "an infinite scale": of_stream("scales", b"\x7f\x80"),
    "a negative scale": of_stream("scales", b"\xbf\x80"),
    "a scale whose products are infinite": of_stream("scales", b"\x7e\x80"),
    "a NaN never pruned": of_stream("dense", b"\x7e\x00"),
    "an infinite statistic": of_stream("statistics", b"\xfc\x00"),
    "no streams": without_streams,
    "no name": of_array(KERNEL, "params/"),
    "no name and no slash": of_array(KERNEL, "params"),
    "an empty name inside": of_array(KERNEL, "params//kernel"),
    "an empty name at the end": of_array(KERNEL, "params/a/"),
    "no collection": of_array(KERNEL, "/a/kernel"),
    "another collection": of_array(KERNEL, "masks/a/kernel"),
    "a name inside another": of_array(KERNEL, f"{BIAS}/kernel"),
    "a name twice": of_array(KERNEL, BIAS),
    "names too deep": of_array(KERNEL, "params" + "/a" * 2**17),
    "statistics with a mask": of_array(KERNEL, "batch_stats/a/kernel"),
    "a size of 0": of_array(KERNEL, KERNEL, [0, 2]),
    "a negative size": of_array(KERNEL, KERNEL, [-2, -2]),
    "a size that is a bool": of_array(BIAS, BIAS, [True, 2]),
    "a size that is a float": of_array(BIAS, BIAS, [2.0]),
    "sizes beyond 64 bits": of_array(KERNEL, KERNEL, [2**32, 2**32, 2]),
    "another size of the same product": of_array(KERNEL, KERNEL, [4, 1]),
    "a shape that is an object": of_array(BIAS, BIAS, {}),
    "a shape that is a text": of_array(BIAS, BIAS, ""),
    "a mask that is a number": of_array(KERNEL, KERNEL, [2, 2], "int8", 1),
    "integers without a mask": of_array(BIAS, BIAS, [2], "int8"),
    "arrays that are an object": of_header(arrays={}),
    "a model that is a list": of_header(model=[["model", "m"]]),
    "a model of NaN": of_header(model={"model": float("nan")}),
    "a model of infinity": of_header(model={"model": -float("inf")}),
    "half a letter in the model": of_header(model={"model": "\ud800"}),
    "a nested model": of_header(model={"model": NESTED}),
    "something else": of_header(more=1),
}


@pytest.mark.parametrize("change", CRAFTED.values(), ids=CRAFTED.keys())
def test_a_crafted_file_is_refused(change: Any) -> None:
    header, streams = taken_apart(small_file())
    assert unpack(put_together(header, streams)).model == {"model": "m"}
    change(header, streams)
    with pytest.raises(PackedFileError, match="^its "):
        unpack(put_together(header, streams))


def test_a_stream_that_no_array_needs_is_refused() -> None:
    header, streams = taken_apart(pack({}, matrix(np.ones((2, 3)), FULL)))
    streams["statistics.0"] += b"more"
    with pytest.raises(PackedFileError, match="its running statistics do not have the"):
        unpack(put_together(header, streams))


def test_what_is_let_in_is_finite_and_can_be_packed_again() -> None:
    draw = random.Random(0)
    files = {values: pack({"a": [1]}, network(width=4), values) for values in VALUES}
    let_in = 0
    for number in range(300):
        header, streams = taken_apart(files[VALUES[number % 3]])
        stream = draw.choice([stream for stream in streams.values() if stream])
        stream[draw.randrange(len(stream))] = draw.choice([0, 0x7F, 0x80, 0xFF])
        if number % 5 == 0:
            draw.choice(list(streams.values()))[-1:] = b""
        if number % 7 == 0:
            wild(header, draw)
        try:
            packed = unpack(put_together(header, streams))
        except PackedFileError:
            continue
        let_in += 1
        kept = packed.variables["params"], packed.variables["batch_stats"]
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept))
        again = unpack(pack(packed.model, packed.variables, "float32"))
        assert_same(again.variables, packed.variables)
    assert let_in > 50


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
    coded = deflate(data)
    assert read_stream(coded, len(data), "bytes") == data
    assert len(data) <= largest(len(coded))
    if data:
        with pytest.raises(PackedFileError, match="do not have the"):
            read_stream(coded, len(data) - 1, "bytes")


def test_a_bomb_does_not_go_off() -> None:
    bomb = deflate(bytes(10**8), zlib.Z_DEFAULT_STRATEGY)
    with pytest.raises(PackedFileError, match=f"which {len(bomb)} cannot stand for"):
        read_stream(bomb, 10**8, "mask bits")
    _, streams = opened(pack({}, network()))
    tracemalloc.start()
    with pytest.raises(PackedFileError, match="its header cannot be read"):
        unpack(sealed(bomb, streams))
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()
