"""What TFDS prepared as tfrecord is converted once, beside the old files."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from archives import data_config, write_set
from array_record.python.array_record_module import ArrayRecordReader
from ml_collections import ConfigDict

from alite_jax.data import prepare as prepare_module
from alite_jax.data import tfrecord
from alite_jax.data.prepare import prepare
from alite_jax.data.sources import load_split
from alite_jax.data.tfrecord import read_records
from alite_jax.errors import DataError


def crc32c(content: bytes) -> int:
    """Castagnoli's checksum, bit by bit."""
    rest = 0xFFFFFFFF
    for byte in content:
        rest ^= byte
        for _ in range(8):
            rest = rest >> 1 ^ 0x82F63B78 * (rest & 1)
    return rest ^ 0xFFFFFFFF


def masked(content: bytes) -> bytes:
    """As TensorFlow's documentation of the format has it."""
    crc = crc32c(content)
    return struct.pack(
        "<I", ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32
    )


def framed(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + masked(length) + content + masked(content)


def test_the_reference() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720's check value.


@pytest.mark.parametrize("records", [[], [b""], [b"a", b"", bytes(range(256))]])
def test_records(records: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "x.tfrecord"
    path.write_bytes(b"".join(map(framed, records)))
    assert list(read_records(path)) == records


COLOURS = [np.full((4, 4, 3), 40 * i, np.uint8) for i in range(5)]


@pytest.fixture
def config(tmp_path: Path) -> ConfigDict:
    """Of a set of which five examples lie in two tfrecord files."""
    return write_tfrecord(tmp_path)


def write_tfrecord(data_dir: Path) -> ConfigDict:
    features = {
        "image": tfds.features.Image(shape=(4, 4, 3)),
        "label": tfds.features.ClassLabel(names=["odd", "even"]),
    }
    train = [{"image": image, "label": i % 2} for i, image in enumerate(COLOURS)]
    folder = write_set(
        data_dir, "colours", features, {"train": train, "test": train[:1]}
    )
    for split, lengths in (("train", [2, 3]), ("test", [1])):
        (old,) = folder.glob(f"colours-{split}.array_record*")
        records = iter(ArrayRecordReader(str(old)).read_all())
        for shard, length in enumerate(lengths):
            name = f"colours-{split}.tfrecord-{shard:05d}-of-{len(lengths):05d}"
            part = b"".join(framed(next(records)) for _ in range(length))
            (folder / name).write_bytes(part)
        old.unlink()
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        split["shardLengths"] = ["2", "3"] if split["name"] == "train" else ["1"]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return data_config(name="colours", data_dir=str(data_dir))


def files(config: ConfigDict) -> dict[str, bytes]:
    folder = Path(config.data_dir) / "colours" / "1.0.0"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_it_is_converted_once_and_stays_what_it_was(
    config: ConfigDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(config)
    train, test = load_split(config, "train"), load_split(config, "eval")
    np.testing.assert_array_equal(train.images, COLOURS)
    assert train.labels.tolist() == [0, 1, 0, 1, 0] and len(test) == 1
    after = files(config)
    assert {name for name in after if "array_record" in name} == {
        "colours-train.array_record-00000-of-00002",
        "colours-train.array_record-00001-of-00002",
        "colours-test.array_record-00000-of-00001",
    }
    # Who reads it with TensorFlow finds nothing changed.
    for name in before.keys() - {"dataset_info.json"}:
        assert after[name] == before[name]
    info = json.loads(after["dataset_info.json"])
    assert info["fileFormat"] == "tfrecord"
    assert info["alternativeFileFormats"] == ["array_record"]

    monkeypatch.delattr(prepare_module, "convert")
    assert prepare(config) == str(Path(config.data_dir) / "colours" / "1.0.0")
    np.testing.assert_array_equal(load_split(config, "train").images, COLOURS)
    assert files(config) == after


def test_parts_of_it(config: ConfigDict) -> None:
    config.train_split, config.eval_split = "train[1:3]", "train[80%:]"
    assert load_split(config, "train").images[:, 0, 0, 0].tolist() == [40, 80]
    assert load_split(config, "eval").images[:, 0, 0, 0].tolist() == [160]


def cut(place: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:place]


def flip(place: int) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        flipped = bytes([content[place] ^ 1])
        return content[:place] + flipped + content[place:][1:]

    return change


@pytest.mark.parametrize(
    "damage", [cut(-1), cut(-4), cut(-20), cut(5), flip(0), flip(9), flip(40), flip(-2)]
)
def test_damage_is_one_sentence(
    damage: Callable[[bytes], bytes], config: ConfigDict
) -> None:
    folder = Path(config.data_dir) / "colours" / "1.0.0"
    path = folder / "colours-train.tfrecord-00001-of-00002"
    path.write_bytes(damage(path.read_bytes()))
    before = files(config)
    expected = f"{path} is damaged at its record [02], or cut short; prepare or copy"
    for _ in range(2):  # Nothing half done is taken for whole the second time.
        with pytest.raises(DataError, match=expected):
            load_split(config, "train")
    names = {name for name in files(config) if "array_record" in name}
    assert names <= {
        "colours-train.array_record-00000-of-00002",
        "colours-test.array_record-00000-of-00001",
    }
    assert {name: files(config)[name] for name in before} == before


def test_a_missing_file(config: ConfigDict) -> None:
    folder = Path(config.data_dir) / "colours" / "1.0.0"
    (folder / "colours-train.tfrecord-00001-of-00002").unlink()
    with pytest.raises(DataError, match="00002 cannot be read .*; prepare or copy"):
        load_split(config, "train")


def test_an_interrupted_conversion_goes_on(
    config: ConfigDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: list[str] = []

    def interrupted(path: Path) -> Iterator[bytes]:
        paths.append(path.name)
        yield from [*read_records(path)][:1]
        if len(paths) == 2:
            raise KeyboardInterrupt
        yield from [*read_records(path)][1:]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tfrecord, "read_records", interrupted)
        load_split(config, "train")
    (done,) = (name for name in files(config) if "array_record" in name)
    folder = Path(config.data_dir) / "colours" / "1.0.0"
    written = (folder / done).stat().st_mtime_ns
    np.testing.assert_array_equal(load_split(config, "train").images, COLOURS)
    assert (folder / done).stat().st_mtime_ns == written


def test_a_folder_that_cannot_be_written(
    config: ConfigDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    before = files(config)
    expected = r"cannot be converted to array_record there .*denied.; copy the data set"
    with pytest.raises(DataError, match=expected):
        load_split(config, "train")
    assert files(config) == before


def test_another_format(config: ConfigDict) -> None:
    info = Path(config.data_dir) / "colours" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"tfrecord"', '"riegeli"'))
    with pytest.raises(DataError, match="stored as riegeli, but only array_record and"):
        load_split(config, "train")
