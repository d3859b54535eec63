"""Both ways to feed the steps: the same batches, but who makes them, and when."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from fitting import DATA, make_config, records, states, train
from tiny import assert_same, random_split

from alite_jax.data.pipeline import TrainBatches
from alite_jax.training import parallel
from alite_jax.training.dispatch import dispatches
from alite_jax.training.feeds import KeptFeed, SentFeed, keeps_split, make_feed

SPLIT = random_split(27)
BATCHES = TrainBatches(SPLIT, batch_size=6, seed=4, num_shards=2)  # 4 steps an epoch


def fed(feed: Any, first: int, last: int, length: int) -> dict[int, Any]:
    """What the feed's `take` finds on the devices, by step."""
    found = {}
    sources = feed.sources(dispatches(first, last, length, (4,)))
    for steps, source in sources:
        for i, step in enumerate(steps):
            at = parallel.replicate((np.int32(step), np.int32(i)))
            take = jax.vmap(lambda source, at: feed.take(source, *at))
            found[step] = jax.device_get(take(source, at))
        if length > 1:
            assert np.asarray(source["count"]).tolist() == [len(steps)] * 2
    return found


@pytest.mark.parametrize("length", [1, 3])
def test_both_feeds_give_the_batches_of_the_steps(length: int) -> None:
    feeds = [SentFeed(BATCHES, length), KeptFeed(BATCHES, SPLIT, length)]
    for first, last in ((0, 9), (6, 8)):
        for feed in feeds:
            found = fed(feed, first, last, length)
            assert list(found) == list(range(first, last))
            for step, batch in found.items():
                assert_same(batch, BATCHES.batch(step))


def test_a_kept_split_is_on_every_device_and_orders_come_once_an_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard, epochs = parallel.shard, []

    def count(order: np.ndarray) -> Any:
        epochs.append(order)
        return shard(order)

    monkeypatch.setattr(parallel, "shard", count)
    feed = KeptFeed(BATCHES, SPLIT, 1)
    sources = [source for _, source in feed.sources(dispatches(2, 12, 1, (4,)))]
    assert len(epochs) == 3
    assert all(source["image"] is sources[0]["image"] for source in sources)
    image = sources[0]["image"]
    assert image.shape == (2, 27, 8, 8, 1) and image.dtype == np.uint8
    assert len(image.sharding.device_set) == 2
    # Each device has its own share of the order only.
    shards = sources[0]["order"].addressable_shards
    assert [shard.data.shape for shard in shards] == [(1, 4, 3), (1, 4, 3)]


def guarded_run(folder: Path, monkeypatch: pytest.MonkeyPatch, config: Any) -> int:
    """Trains with no leave to move anything in any call of a step; counts the calls."""
    spread, calls = parallel.spread, []

    def guard(step: Any, **options: Any) -> Any:
        run = spread(step, **options)

        def call(*arguments: Any) -> Any:
            calls.append(step)
            with jax.transfer_guard("disallow"):
                return run(*arguments)

        return call if options.get("donate_state") else run  # not the evaluation

    monkeypatch.setattr(parallel, "spread", guard)
    train(folder, config)
    return len(calls)


@pytest.mark.parametrize(("length", "calls"), [(1, 12), (3, 6)])
def test_steps_on_a_kept_split_transfer_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int, calls: int
) -> None:
    config = make_config(
        data__on_device="always",
        compute__steps_per_dispatch=length,
        logging__every_steps=50,
        checkpoint__every_steps=0,
    )
    rewirings = 2
    assert guarded_run(tmp_path, monkeypatch, config) == calls + rewirings


def test_the_transfers_of_sent_batches_would_be_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        guarded_run(tmp_path, monkeypatch, make_config(data__on_device="never"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"compute__steps_per_dispatch": 3, "compute__accumulation": 2},
    ],
    ids=["step by step", "by threes and in parts"],
)
def test_a_run_is_the_same_to_the_last_bit(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    """With crops, several devices, a checkpoint amid an epoch and rewirings."""
    results = []
    for on_device in ("always", "never"):
        config = make_config(
            **changes,
            data__on_device=on_device,
            data__crop_padding=1,
            logging__every_steps=5,
        )
        train(tmp_path / on_device, config)
        results.append(
            (states(tmp_path / on_device, config), records(tmp_path / on_device))
        )
    (found, lines), (wanted, wanted_lines) = results
    assert_same(found, wanted)
    assert lines == wanted_lines
    assert len(lines) > 6


BYTES = DATA.train.images.nbytes + DATA.train.labels.nbytes


@pytest.mark.parametrize(
    ("choice", "limits", "wanted"),
    [
        ("always", [None], True),
        ("never", [100 * BYTES], False),
        ("auto", [None], False),
        ("auto", [10 * BYTES], True),
        ("auto", [10 * BYTES - 10], False),
        ("auto", [100 * BYTES, 10 * BYTES - 10], False),
        ("auto", [100 * BYTES, None], False),
        ("auto", [100 * BYTES] * 4, True),
        ("auto", ["silent"], False),
    ],
)
def test_where_the_split_lies(choice: str, limits: list[Any], wanted: bool) -> None:
    stats = [
        None
        if limit is None
        else {"bytes_in_use": 3}
        if limit == "silent"
        else {"bytes_in_use": 3, "bytes_limit": limit}
        for limit in limits
    ]
    assert keeps_split(choice, DATA.train, stats) == wanted


def test_on_a_cpu_batches_are_sent_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = TrainBatches(DATA.train, 16, seed=0, num_shards=2)
    kinds = {
        choice: type(
            make_feed(make_config(data__on_device=choice), batches, DATA.train)
        )
        for choice in ("auto", "always", "never")
    }
    assert kinds == {"auto": SentFeed, "always": KeptFeed, "never": SentFeed}
    monkeypatch.setattr(
        parallel, "memory_stats", lambda: [{"bytes_limit": 1 << 34}] * 2
    )
    assert type(make_feed(make_config(), batches, DATA.train)) is KeptFeed
