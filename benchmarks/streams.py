"""Photographs read from files: beside torchvision, beside a training step, in memory.

All are JPEGs made by `photographs`, in a temporary folder. Rates are those of batches
that are taken one after another, once the workers run.
"""

import itertools
import os
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import alite_jax
from alite_jax.data.augment import create_augmentation
from alite_jax.data.pipeline import TrainBatches
from alite_jax.data.sources import Split, describe, load_split, measured
from alite_jax.models.resnet import create_model
from alite_jax.runs import parallel
from alite_jax.sparsity.masks import init_masks
from alite_jax.training.optimizer import create_optimizer
from alite_jax.training.state import create_state
from alite_jax.training.step import AXIS, JointStep, Objective
from benchmarks.photographs import CLASSES, make_photographs
from benchmarks.timing import Row, Rows, interleave, ratios

BATCH, BATCHES = 64, 16  # Taken at a time, and how often for one round.
STEP_BATCH, MEMORY_BATCH = 32, 128
WIDTH = 16
# Images a second, and a second that a core works for the workers.
WALL, CORE = "images/s", "images/core-s"


def compare(rounds: int) -> Rows:
    """Rates of loading and streaming photographs of 160 pixels."""
    try:
        from benchmarks.peers import torchvision_folder
    except ImportError as error:
        torchvision_folder = None
        print(f"without the peer torchvision ({error})", file=sys.stderr)
    rows: Rows = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "photographs"
        make_photographs(folder, count=1280, side=160, different=320)
        for size in (64, 128):
            name = f"load_{size}_images_per_second"
            rows[name] = _loading(_config(folder, size, "memory"), rounds)
        for size, workers in itertools.product((64, 128), (1, 2)):
            config = _config(folder, size, "stream", workers)
            streams: dict[str, Generator[Any]] = {"ours": _stream(config, BATCH)}
            if torchvision_folder:
                streams["torchvision"] = torchvision_folder.batches(
                    folder, size, BATCH, workers
                )
            found = _rates(streams, workers, rounds)
            for stream in streams.values():
                stream.close()
            what = f"160 to {size} pixels, batches of {BATCH}, {workers} worker(s)"
            name = f"stream_{size}_by_{workers}"
            for unit, rates in found.items():
                end = "per_core" if unit == CORE else "rate"
                for peer, values in rates.items():
                    row = Row.of(values, unit, f"{peer}, {what}")
                    rows[f"{name}_{peer}_{end}"] = row
                if torchvision_folder:
                    gain = ratios(rates["ours"], rates["torchvision"])
                    detail = f"{unit}, ours / torchvision, {what}"
                    rows[f"{name}_{end}_vs_torchvision"] = Row.of(gain, "x", detail)
    return rows


def feeding(rounds: int) -> Rows:
    """The rate of a stream of 224 pixels beside that of the training step."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "photographs"
        make_photographs(folder, count=1280, side=256, different=320)
        config = _config(folder, 224, "stream", workers=2)
        stream = _stream(config, STEP_BATCH)
        _take(stream, 1)
        step = _step(config, load_split(config, "train"))
        fed, steps = [], []
        for _ in range(rounds):
            _take(stream, 8)  # What was made while the step ran does not count.
            start = time.perf_counter()
            images = _take(stream, BATCHES)
            fed.append(images / (time.perf_counter() - start))
            steps += [STEP_BATCH / s for s in interleave({"": step}, 1)[""]]
        stream.close()
    what = f"224 pixels, batches of {STEP_BATCH}"
    network = f"R26 attention, width {WIDTH}, ImageNet stem"
    return {
        "feed_224_images_per_second": Row.of(
            fed, "images/s", f"from JPEGs of 256 pixels, {what}, 2 workers"
        ),
        "step_224_images_per_second": Row.of(
            steps, "images/s", f"training step of {network}, {what}"
        ),
        "feed_224_vs_step": Row.of(
            ratios(fed, steps), "x", f"images a second, stream / step, {what}"
        ),
    }


def memory() -> Rows:
    """The most memory that streaming 20,000 images of 224 pixels takes."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "photographs"
        make_photographs(folder, count=20_000, side=224, different=320)
        config = _config(folder, 224, "stream", workers=2)
        stream = _stream(config, MEMORY_BATCH)
        with _Watch() as watch:
            _take(stream, 20_000 // MEMORY_BATCH)
        stream.close()
    what = f"20,000 images of 224 pixels, batches of {MEMORY_BATCH}, 2 workers"
    return {
        "stream_224_memory": Row.one(
            watch.most[0], "MiB", f"of all processes while streaming {what}"
        ),
        "stream_224_memory_main": Row.one(
            watch.most[1], "MiB", "of that the process that trains"
        ),
    }


def _config(folder: Path, size: int, loading: str, workers: int = 0) -> ConfigDict:
    return alite_jax.get_config(
        "folder",
        {
            "data.folder": str(folder),
            "data.data_dir": str(folder.parent / "data"),
            "data.image_size": size,
            "data.loading": loading,
            "data.workers": workers,
        },
    ).data


def _loading(config: ConfigDict, rounds: int) -> Row:
    count = len(load_split(config, "train"))  # The first one prepares.
    times = interleave({"": lambda: load_split(config, "train")}, rounds)[""]
    what = f"160 to {config.image_size} pixels, into memory, by one thread"
    return Row.of([count / seconds for seconds in times], "images/s", what)


def _stream(config: ConfigDict, batch: int) -> Generator[Any]:
    batches = TrainBatches(load_split(config, "train"), batch, seed=0, num_shards=1)
    return batches.batches(range(10**6))


def _rates(
    streams: dict[str, Generator[Any]], workers: int, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Rates of streams that take turns, round by round.

    They are images a second of wall time, and a second that one core works for a
    stream's workers, which is the same with other programs beside.
    """
    walls: dict[str, list[float]] = {name: [] for name in streams}
    cores: dict[str, list[float]] = {name: [] for name in streams}
    processes: dict[str, list[int]] = {}
    for name, stream in streams.items():
        before = _family(os.getpid())
        _take(stream, 1)
        processes[name] = [p for p in _family(os.getpid()) if p not in before]
    for _ in range(rounds):
        for name, stream in streams.items():
            # What was made while another had its turn does not count.
            _take(stream, 4 * workers)
            worked = _seconds_of_work(processes[name])
            start = time.perf_counter()
            images = _take(stream, BATCHES)
            walls[name].append(images / (time.perf_counter() - start))
            worked = _seconds_of_work(processes[name]) - worked
            cores[name].append(images / worked)
    return {WALL: walls, CORE: cores}


def _seconds_of_work(processes: list[int]) -> float:
    """Processor time of some processes so far, to a hundredth."""
    ticks = 0
    for process in processes:
        with suppress(OSError):
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2]
            ticks += sum(map(int, fields.split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _take(stream: Generator[Any], batches: int) -> int:
    """Takes batches and returns how many images were in them."""
    images = 0
    for _ in range(batches):
        batch = next(stream)
        # Ours is `[shards, n, ...]`, the peer's `[n, ...]`.
        images += batch["label"].size if isinstance(batch, dict) else len(batch)
    return images


def _step(config: ConfigDict, split: Split) -> Any:
    """A training step at 224 pixels; the result trains one step at a call."""
    whole = alite_jax.get_config("folder", {"student.width": WIDTH})
    spec = measured(describe(config), split)
    model = create_model(
        "resnet26_attention",
        num_classes=CLASSES,
        width=WIDTH,
        stem="imagenet",
        axis_name=AXIS,
    )
    optimizer = create_optimizer(whole.student.optimizer, 1000, 1)
    step = parallel.spread(
        JointStep(
            model,
            None,
            optimizer,
            Objective(0.0, temperature=4.0),
            spec,
            augment=create_augmentation(whole.data),
            key=jax.random.key(1),
        ).train_step,
        donate_state=True,
    )
    state = parallel.run_once(
        lambda: create_state(
            jax.random.key(0),
            model,
            optimizer,
            split.images.shape[1:],
            lambda key, params: init_masks(key, params, density=0.1),
        )
    )
    states = [parallel.replicate(state)]
    batch = TrainBatches(split, STEP_BATCH, seed=0, num_shards=1).batch(0)

    def call() -> Any:
        new, metrics = step(states.pop(), parallel.replicate({}), batch)
        states.append(new)
        return metrics["loss"]

    return call


class _Watch:
    """Looks at the memory of this process and of all that it started.

    Attributes:
        most: the largest sum so far, and this process's part of it, in MiB.
    """

    def __enter__(self) -> "_Watch":
        self.most = (0.0, 0.0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.2):
            sizes = [_proportional_set_size(pid) for pid in _family(os.getpid())]
            self.most = max(self.most, (sum(sizes), sizes[0]))


def _family(process: int) -> list[int]:
    """A process and all that it started, directly or not."""
    found = [process]
    for one in found:
        with suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def _proportional_set_size(process: int) -> float:
    """MiB in memory; what several processes share counts in equal parts."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0
