"""Splits that are read for each batch: the same as in memory, whoever reads them."""

import os
import pickle
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import data_config, write_images

from alite_jax.data import examples, pipeline, sources, stream
from alite_jax.data.pipeline import Batch, TrainBatches, eval_batches, in_batches
from alite_jax.data.sources import Split, describe, load_split, measured
from alite_jax.data.stream import Streamed, by_workers, memory_available
from alite_jax.errors import DataError

INDICES: dict[str, Any] = {
    "slice": slice(2, 5),
    "to the end": slice(-3, None),
    "beyond the end": slice(495, 600),
    "backwards": slice(9, 2, -3),
    "nothing": slice(4, 4),
    "numbers": np.array([7, 0, 7, -1]),
    "two axes": np.array([[3, 1, 4], [1, 5, 9]]),
    "no numbers": np.empty(0, np.int64),
    "none of two axes": np.empty((0, 3), np.int64),
    "marked": np.arange(500) % 100 == 3,
    "one": 3,
}


def both(part: str = "eval", **fields: Any) -> tuple[Split, Split]:
    """A split in memory, and the same one streamed."""
    memory, streamed = (
        load_split(data_config(loading=loading, **fields), part)  # type: ignore[arg-type]
        for loading in ("memory", "stream")
    )
    assert isinstance(memory.images, np.ndarray)
    assert isinstance(streamed.images, Streamed)
    return memory, streamed


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_indexed_as_arrays_are(index: Any) -> None:
    memory, streamed = both()
    for name in ("images", "labels"):
        array, other = getattr(memory, name), getattr(streamed, name)
        assert (other.shape, other.dtype, len(other)) == (array.shape, array.dtype, 500)
        np.testing.assert_array_equal(other[index], array[index], strict=True)


def test_read_as_whole_arrays() -> None:
    memory, streamed = both(image_size=4)
    np.testing.assert_array_equal(np.asarray(streamed.images), memory.images)
    np.testing.assert_array_equal(np.array(streamed.labels), memory.labels, strict=True)
    assert np.asarray(streamed.labels, np.float32).dtype == np.float32


def test_labels_are_read_without_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    _, streamed = both()
    monkeypatch.delattr(examples, "decode_image")
    assert np.bincount(streamed.labels[:]).tolist() == [50] * 10


@pytest.mark.parametrize("share", [2.0, 1.99])
def test_what_takes_more_than_half_of_the_memory_is_streamed(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 500 * 8 * 8
    monkeypatch.setattr(sources, "memory_available", lambda: int(share * size))
    images = load_split(data_config(), "eval").images
    assert isinstance(images, Streamed if share < 2 else np.ndarray)
    assert isinstance(both()[0].images, np.ndarray)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"meminfo": "MemTotal: 9 kB\nMemAvailable:   3 kB\n"}, 3072),
        ({"meminfo": "MemAvailable:   3 kB\n", "memory.max": "2048\n"}, 2048),
        ({"meminfo": "MemAvailable:   3 kB\n", "memory.max": "max\n"}, 3072),
        ({"memory.max": "1024\n"}, 1024),
        ({"meminfo": "MemTotal: 9 kB\n", "memory.max": "4096\n"}, 4096),
        ({}, 10**9),
    ],
)
def test_memory_of_machines_and_containers(
    files: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path) -> str:
        if path.name not in files:
            raise FileNotFoundError(2, "No such file", str(path))
        return files[path.name]

    monkeypatch.setattr(Path, "read_text", read)
    sizes = {"SC_PHYS_PAGES": 10**6, "SC_PAGE_SIZE": 1000}
    monkeypatch.setattr(stream.os, "sysconf", sizes.__getitem__)
    assert memory_available() == expected


@pytest.mark.parametrize("workers", [0, 1, 40])
def test_number_of_workers(workers: int) -> None:
    found = load_split(data_config(loading="stream", workers=workers), "eval")
    assert 1 <= found.images.workers <= max(16, workers)  # type: ignore[union-attr]
    assert not workers or found.images.workers == workers  # type: ignore[union-attr]


def assert_equal(found: Batch, expected: Batch) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of this very process."""
    monkeypatch.setattr(
        pipeline, "by_workers", lambda make, keys, workers: map(make, keys)
    )


def sent(split: Split) -> Split:
    """What a worker gets of a split."""
    copied: Split = pickle.loads(pickle.dumps(split))
    return copied


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Fields of a folder of images of mixed sizes."""
    place = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    files = {
        f"{label}/{i}.png": random.integers(0, 256, (6 + i, 20 - i, 3), np.uint8)
        for label in "abc"
        for i in range(10)
    }
    root = write_images(place / "photos", files)
    data = str(place / "data")
    return {"name": "folder", "folder": str(root), "data_dir": data, "image_size": 7}


@pytest.mark.parametrize("own", [slice(None), slice(1, 2)])
@pytest.mark.parametrize("steps", [range(0, 5), range(4, 7)])
def test_training_batches_are_those_of_memory(
    steps: range, own: slice, photos: dict[str, Any], in_process: None
) -> None:
    memory, streamed = (
        TrainBatches(sent(split), 10, seed=3, num_shards=2, own_shards=own)
        for split in both("train", **photos)
    )
    assert memory.steps_per_epoch == 2  # Of 24 images: both ranges cross a pass.

    found = list(streamed.batches(steps))
    assert len(found) == len(steps)
    for step, batch in zip(steps, found, strict=True):
        assert_equal(batch, memory.batch(step))
        assert_equal(streamed.batch(step), memory.batch(step))


def test_evaluation_is_that_of_memory(photos: dict[str, Any], in_process: None) -> None:
    for fields, size in ((photos, 4), ({}, 64)):
        memory, streamed = both("eval", **fields)
        expected = list(eval_batches(memory, size, 2))
        for found, batch in zip(
            eval_batches(sent(streamed), size, 2), expected, strict=True
        ):
            assert_equal(found, batch)
        total = in_batches(lambda images: images.sum((1, 2, 3)), memory.images, 16)
        again = in_batches(lambda images: images.sum((1, 2, 3)), streamed.images, 16)
        np.testing.assert_array_equal(again, total)


def test_mean_and_deviation_are_those_of_a_slow_reference(
    photos: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = describe(data_config(**photos))
    assert spec.mean == spec.std == ()
    memory, streamed = both("train", **photos)
    found = measured(spec, memory)
    assert found == measured(spec, streamed) and found == measured(found, memory)
    pixels = memory.images.astype(np.float64) / 255
    for channel in range(3):
        values = pixels[..., channel]
        mean = sum(values.ravel().tolist()) / values.size
        deviation = (sum(((values - mean) ** 2).ravel().tolist()) / values.size) ** 0.5
        assert abs(found.mean[channel] - mean) <= 5.1e-5
        assert abs(found.std[channel] - deviation) <= 5.1e-5
    # Of many images, some: spread evenly over the split.
    monkeypatch.setattr(sources, "_MEASURED", 4)
    chosen = memory.images[[0, 6, 12, 18]] / 255
    few = measured(spec, memory)
    np.testing.assert_allclose(few.mean, chosen.mean((0, 1, 2)), atol=5.1e-5)


def test_images_of_one_grey_have_a_deviation_to_divide_by() -> None:
    images = np.full((3, 2, 2, 1), 51, np.uint8)
    spec = describe(data_config())
    blank = measured(
        type(spec)("blank", 2, (2, 2, 1), "train", "test"),
        Split(images, np.zeros(3, np.int32)),
    )
    assert blank.mean == (0.2,) and blank.std == (round(1 / 255, 4),)


class Maker:
    """Makes what the test below asks a worker for."""

    def __init__(self, batches: TrainBatches) -> None:
        self.batches = batches

    def __call__(self, key: int) -> Batch:
        if key == 3:
            raise DataError("example 3 is damaged; mend it")
        if key == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGINT)  # As a terminal does to all processes.
        return self.batches.batch(key) | {"process": np.array([os.getpid()])}


@pytest.mark.slow  # Workers are processes of their own.
def test_worker_processes() -> None:
    memory, streamed = (
        TrainBatches(split, 50, seed=0, num_shards=2) for split in both("train")
    )
    made = by_workers(Maker(streamed), range(1, 5), 1)
    for step in (1, 2):
        found = next(made)
        assert found.pop("process") != os.getpid()
        assert_equal(found, memory.batch(step))
    with pytest.raises(DataError, match="^example 3 is damaged; mend it$"):
        next(made)
    with pytest.raises(DataError, match="ended with exit code -9: memory was short"):
        next(by_workers(Maker(streamed), range(5, 6), 1))
    assert not list(by_workers(Maker(streamed), range(0), 1))
    held = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert not held & {signal.SIGINT, signal.SIGTERM}
