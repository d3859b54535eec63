"""Batches: every example where it belongs, whatever the sizes."""

import itertools
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alite_jax.data.pipeline import TrainBatches, eval_batches, in_batches, prefetch
from alite_jax.data.sources import Split
from alite_jax.errors import ConfigError

quick = settings(max_examples=40, deadline=None)


def numbered_split(n: int) -> Split:
    """A split whose images and labels both say which example they are."""
    labels = np.arange(n, dtype=np.int32)
    images = np.zeros((n, 2, 2, 1), np.uint8)
    images[:, 0, 0, 0] = labels % 256
    images[:, 1, 1, 0] = labels // 256
    return Split(images, labels)


def image_numbers(images: np.ndarray) -> np.ndarray:
    return images[..., 0, 0, 0].astype(int) + 256 * images[..., 1, 1, 0].astype(int)


@st.composite
def train_sizes(draw: st.DrawFn) -> tuple[int, int, int]:
    """Numbers of examples, of examples in a batch, and of shards."""
    num_shards = draw(st.integers(1, 4))
    batch_size = num_shards * draw(st.integers(1, 8))
    return draw(st.integers(batch_size, 400)), batch_size, num_shards


@given(train_sizes(), st.integers(0, 1000), st.integers(0, 50))
@quick
def test_an_epoch_is_as_many_batches_as_the_examples_fill(
    sizes: tuple[int, int, int], seed: int, epoch: int
) -> None:
    n, batch_size, num_shards = sizes
    batches = TrainBatches(numbered_split(n), batch_size, seed, num_shards)
    assert batches.steps_per_epoch == n // batch_size
    first = epoch * batches.steps_per_epoch
    for step in range(first, first + batches.steps_per_epoch):
        batch = batches.batch(step)
        per_shard = batch_size // num_shards
        assert batch["image"].shape == (num_shards, per_shard, 2, 2, 1)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].shape == (num_shards, per_shard)
        assert batch["label"].dtype == np.int32
        np.testing.assert_array_equal(image_numbers(batch["image"]), batch["label"])


HOSTS = (1, 2, 3, 7)


@pytest.mark.parametrize("hosts", HOSTS)
@given(n=st.integers(14, 150), per_device=st.integers(1, 3), seed=st.integers(0, 99))
@quick
def test_hosts_together_read_each_example_once_a_pass(
    hosts: int, n: int, per_device: int, seed: int
) -> None:
    devices = 2 * hosts
    batch_size = devices * per_device
    n = max(n, batch_size)
    split = numbered_split(n)
    shares = [
        TrainBatches(split, batch_size, seed, devices, slice(2 * host, 2 * host + 2))
        for host in range(hosts)
    ]
    whole = TrainBatches(split, batch_size, seed, 1)
    stream: list[int] = []
    for step in range(-(-4 * n // batch_size)):
        parts = [share.batch(step)["label"] for share in shares]
        assert all(part.shape == (2, per_device) for part in parts)
        together = np.concatenate(parts).ravel()
        np.testing.assert_array_equal(together, whole.batch(step)["label"][0])
        stream += together.tolist()
    passes = [stream[start : start + n] for start in range(0, 4 * n, n)]
    assert all(sorted(one) == list(range(n)) for one in passes)
    assert passes[0] != passes[1]


@given(train_sizes(), st.integers(1, 4), st.integers(0, 99))
@quick
def test_an_image_has_the_next_of_its_fixed_views_in_each_pass(
    sizes: tuple[int, int, int], views: int, seed: int
) -> None:
    n, batch_size, num_shards = sizes
    split, plain = (
        numbered_split(n),
        TrainBatches(numbered_split(n), batch_size, seed, num_shards),
    )
    assert plain.batch(0).keys() == {"image", "label"}
    own = slice(num_shards // 2, None)
    batches = TrainBatches(split, batch_size, seed, num_shards, own, views=views)
    whole = TrainBatches(split, batch_size, seed, num_shards, views=views)
    stream: list[tuple[int, int]] = []
    for step in range(-(-(views + 1) * n // batch_size)):
        batch, all_shards = batches.batch(step), whole.batch(step)
        for name in ("index", "view"):
            assert batch[name].dtype == np.int32
            np.testing.assert_array_equal(batch[name], all_shards[name][own])
        np.testing.assert_array_equal(all_shards["index"], all_shards["label"])
        pair = (all_shards[name].ravel().tolist() for name in ("index", "view"))
        stream += zip(*pair, strict=True)
    for number in range(views + 1):
        found = dict(stream[number * n : (number + 1) * n])
        assert found == {i: (number + i) % views for i in range(n)}


@given(train_sizes(), st.integers(0, 1000), st.lists(st.integers(0, 100), max_size=8))
@quick
def test_a_batch_depends_on_seed_and_step_alone(
    sizes: tuple[int, int, int], seed: int, steps: list[int]
) -> None:
    n, batch_size, num_shards = sizes
    split = numbered_split(n)
    used = TrainBatches(split, batch_size, seed, num_shards)
    for step in steps:
        fresh = TrainBatches(split, batch_size, seed, num_shards)
        expected = fresh.batch(step)
        np.testing.assert_array_equal(used.batch(step)["label"], expected["label"])


def test_the_order_is_numpys_and_differs_by_epoch_and_seed() -> None:
    split = numbered_split(20)
    batches = TrainBatches(split, 10, seed=7, num_shards=1)
    order = np.random.default_rng([7, 1]).permutation(20)
    assert batches.batch(2)["label"][0].tolist() == order[:10].tolist()
    assert batches.batch(3)["label"][0].tolist() == order[10:].tolist()
    other = TrainBatches(split, 10, seed=8, num_shards=1)
    orders = [b.batch(s)["label"].tolist() for b in (batches, other) for s in (0, 2)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))


@given(st.integers(0, 70), st.integers(1, 4), st.integers(1, 8))
@quick
def test_evaluation_covers_every_example_once(
    n: int, num_shards: int, per_shard: int
) -> None:
    batch_size = num_shards * per_shard
    split = numbered_split(n)
    seen: list[int] = []
    batches = list(eval_batches(split, batch_size, num_shards))
    for shard in range(num_shards):
        own = eval_batches(split, batch_size, num_shards, slice(shard, shard + 1))
        for mine, batch in zip(own, batches, strict=True):
            for name in batch:
                np.testing.assert_array_equal(mine[name][0], batch[name][shard])
    assert len(batches) == -(-n // batch_size)
    for batch in batches:
        assert batch["image"].shape == (num_shards, per_shard, 2, 2, 1)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].shape == batch["weight"].shape == (num_shards, per_shard)
        assert (batch["label"].dtype, batch["weight"].dtype) == (np.int32, np.float32)
        assert set(batch["weight"].ravel().tolist()) <= {0.0, 1.0}
        real = batch["weight"] == 1
        seen += batch["label"][real].tolist()
        np.testing.assert_array_equal(
            image_numbers(batch["image"])[real], batch["label"][real]
        )
        assert not batch["image"][~real].any() and not batch["label"][~real].any()
    assert seen == list(range(n))


@pytest.mark.parametrize(
    ("n", "batch", "sizes"), [(5, 2, [2, 2, 2]), (4, 2, [2, 2]), (3, 8, [3])]
)
def test_a_function_sees_batches_of_one_shape(
    n: int, batch: int, sizes: list[int]
) -> None:
    seen: list[np.ndarray] = []

    def function(images: np.ndarray) -> np.ndarray:
        seen.append(image_numbers(images))
        return np.stack([seen[-1], -seen[-1]], axis=1)

    images = numbered_split(n).images
    numbers = np.arange(n)
    found = in_batches(function, images, batch)
    np.testing.assert_array_equal(found, np.stack([numbers, -numbers], axis=1))
    assert [len(numbers) for numbers in seen] == sizes
    assert not np.concatenate(seen)[n:].any()  # Filled up with zeros.


@pytest.mark.parametrize(("batch_size", "num_shards"), [(0, 1), (6, 4), (-4, 2)])
def test_batch_size_that_devices_cannot_share(batch_size: int, num_shards: int) -> None:
    split = numbered_split(10)
    expected = f"data.batch_size = {batch_size} cannot .* multiple of {num_shards}"
    with pytest.raises(ConfigError, match=expected):
        TrainBatches(split, batch_size, 0, num_shards)
    # At the call, not at the first batch.
    with pytest.raises(ConfigError, match="data.eval_batch_size"):
        eval_batches(split, batch_size, num_shards)


def test_batch_size_larger_than_the_split() -> None:
    with pytest.raises(ConfigError, match="128 is larger than .* 100 examples"):
        TrainBatches(numbered_split(100), 128, 0, 1)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate()].count("prefetch") == 0


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 5))
@quick
def test_prefetch_keeps_the_order(start: int, count: int, depth: int) -> None:
    pairs = list(prefetch(lambda step: step * step, range(start, start + count), depth))
    assert pairs == [(step, step * step) for step in range(start, start + count)]


def test_prefetch_makes_batches_ahead_but_no_more_than_depth() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return step

    batches = prefetch(make, range(100), depth=3)
    assert not made
    for taken in range(1, 6):
        next(batches)
        deadline = time.monotonic() + 5
        while len(made) < taken + 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        assert len(made) == taken + 3
    batches.close()  # type: ignore[attr-defined]
    assert len(made) == 8


def test_prefetch_works_in_another_thread() -> None:
    threads = [
        thread for _, thread in prefetch(lambda _: threading.get_ident(), range(3))
    ]
    assert threading.get_ident() not in threads


def test_an_exception_comes_in_its_turn() -> None:
    def make(step: int) -> int:
        if step == 4:
            raise ValueError("step 4 is bad")
        return step

    batches = prefetch(make, range(2, 10), depth=4)
    assert [next(batches), next(batches)] == [(2, 2), (3, 3)]
    with pytest.raises(ValueError, match="step 4 is bad"):
        next(batches)


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_leaving_early_ends_the_thread(taken: int) -> None:
    batches = prefetch(lambda step: step, range(1000))
    assert len(list(itertools.islice(batches, taken))) == taken
    batches.close()  # type: ignore[attr-defined]


def test_an_exception_of_the_consumer_ends_the_thread() -> None:
    with pytest.raises(RuntimeError, match="training failed"):
        for step, _ in prefetch(lambda step: step, range(1000)):
            if step == 5:
                raise RuntimeError("training failed")
