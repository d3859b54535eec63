"""Whole training steps: against eager PyTorch, against the convolutional network.

Images are 32x32 and random, networks 16 channels wide, batches of 64: what a small
machine trains. What a step costs does not depend on the pixels. A batch is shared by
all JAX devices; the runner makes a device of each core, which is the faster way.
"""

import functools
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from jax.typing import DTypeLike

import alite_jax
from alite_jax.counting.layers import trace_layers
from alite_jax.data.augment import create_augmentation
from alite_jax.data.pipeline import TrainBatches, prefetch
from alite_jax.data.sources import Split
from alite_jax.data.specs import DATASETS
from alite_jax.models.resnet import ResNet, create_model
from alite_jax.runs import parallel
from alite_jax.sparsity.masks import init_masks
from alite_jax.training.optimizer import create_optimizer
from alite_jax.training.rewire import (
    create_pruner,
    make_rewire_step,
    rewiring_steps,
)
from alite_jax.training.state import TrainState, create_state
from alite_jax.training.step import AXIS, JointStep, Objective
from benchmarks.peers import torch_resnet
from benchmarks.timing import Row, Rows, interleave, milliseconds, ratios

IMAGE_SHAPE = (32, 32, 3)
WIDTH, BATCH = 16, 64
STEPS_PER_EPOCH = 390
DATASET = DATASETS["cifar10"]
CONFIG = alite_jax.get_config("cifar10", {"student.width": WIDTH})


class Step:
    """One training step of this project, compiled, with the state it works on.

    Args:
        student: name of the network that is trained.
        teacher: name of a frozen network to learn from, or None.
        width: of both.
        batch: images in a batch.
        dtype: in which the networks compute.
    """

    def __init__(
        self,
        student: str,
        teacher: str | None,
        width: int = WIDTH,
        batch: int = BATCH,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.objective = Objective(0.9 if teacher else 0.0, temperature=4.0)
        self.optimizer = create_optimizer(
            CONFIG.student.optimizer, STEPS_PER_EPOCH, CONFIG.student.epochs
        )
        self.student = _model(student, width, dtype)
        self.teacher = _model(teacher, width, dtype) if teacher else None
        self.images = {
            "image": np.random.default_rng(0).integers(
                256, size=(batch, *IMAGE_SHAPE), dtype=np.uint8
            ),
            "label": np.arange(batch, dtype=np.int32) % DATASET.num_classes,
        }
        self._step = parallel.spread(
            JointStep(
                self.student,
                self.teacher,
                self.optimizer,
                self.objective,
                DATASET,
                augment=create_augmentation(CONFIG.data),
                key=jax.random.key(1),
            ).train_step,
            donate_state=True,
        )

    def initial(self, model: ResNet) -> Callable[[], TrainState]:
        """Makes a start of one of the networks."""
        return functools.partial(
            create_state,
            jax.random.key(0),
            model,
            self.optimizer,
            IMAGE_SHAPE,
            lambda key, params: init_masks(key, params, density=0.1),
        )

    def compile(self) -> tuple[Any, float]:
        """The compiled step, and the seconds of tracing and compiling it."""
        state = jax.eval_shape(self.initial(self.student))
        teacher = {}
        if self.teacher:
            teacher = jax.eval_shape(self.initial(self.teacher)).variables
        devices = parallel.device_count()
        arguments = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((devices, *x.shape), x.dtype),
            (state, teacher),
        )
        arguments = (*arguments, self._shares())
        start = time.perf_counter()
        program = self._step.lower(*arguments).compile()
        return program, time.perf_counter() - start

    def start(self) -> Callable[[], Any]:
        """Initial weights on the device; the result trains one step at a call."""
        self.state = parallel.replicate(parallel.run_once(self.initial(self.student)))
        teacher = {}
        if self.teacher:
            teacher = parallel.run_once(self.initial(self.teacher)).variables
        teacher = parallel.replicate(teacher)
        batch = self._shares()

        def call() -> Any:
            self.state, metrics = self._step(self.state, teacher, batch)
            return metrics["loss"]

        return call

    def _shares(self) -> dict[str, np.ndarray]:
        """The batch, shared by the devices."""
        devices = parallel.device_count()
        return {
            name: array.reshape(devices, -1, *array.shape[1:])
            for name, array in self.images.items()
        }

    def macs(self) -> int:
        """Of one image: forward through both networks, twice that much back."""
        total = 0
        for model, passes in ((self.student, 3), (self.teacher, 1)):
            for layer in trace_layers(model, IMAGE_SHAPE) if model else ():
                total += passes * (layer.weight + layer.core)
        return total


def _model(name: str, width: int, dtype: DTypeLike) -> ResNet:
    return create_model(
        name,
        num_classes=DATASET.num_classes,
        width=width,
        axis_name=AXIS,
        dtype=dtype,
    )


def torch_step(ours: Step) -> Callable[[], float]:
    """The same joint step in eager PyTorch, from the same kind of start."""
    networks = []
    for name, model in (
        ("resnet26_attention", ours.student),
        ("resnet50", ours.teacher),
    ):
        peer = torch_resnet.create_model(
            name, num_classes=DATASET.num_classes, width=WIDTH
        )
        state = parallel.run_once(ours.initial(model))
        networks.append((torch_resnet.load_flax(peer, state.variables), state))
    (student, state), (teacher, _) = networks
    step = torch_resnet.JointStep(
        student,
        teacher,
        torch_resnet.to_torch(state.masks),
        objective=ours.objective,
        optimizer=CONFIG.student.optimizer,
        dataset=DATASET,
    )
    return functools.partial(step.step, ours.images["image"], ours.images["label"])


def compare(rounds: int) -> Rows:
    """Rows of steps, rewiring, pipeline and peak, all in one run."""
    joint = Step("resnet26_attention", "resnet50")
    attention = Step("resnet26_attention", None)
    convolution = Step("resnet26", None)
    rows: Rows = {}
    calls: dict[str, Callable[[], Any]] = {
        "joint": joint.start(),
        "attention": attention.start(),
        "convolution": convolution.start(),
        "torch": torch_step(joint),
    }
    # By PyTorch, since a JAX device may have been given one core only.
    matrix = torch.ones(2048, 2048)
    calls["product"] = lambda: matrix @ matrix
    split = _random_split()
    calls["pipeline"] = lambda: _run_pipeline(split)
    rewire_step = parallel.spread(
        make_rewire_step(
            create_pruner(CONFIG, rewiring_steps(CONFIG, STEPS_PER_EPOCH)),
            jax.random.key(2),
        )
    )
    calls["rewire"] = lambda: rewire_step(attention.state)

    times = interleave(calls, rounds)
    what = f"width {WIDTH}, batch {BATCH}, 32x32"
    for name, detail in {
        "joint": "joint step, R50 teacher and R26 attention student",
        "attention": "step of R26 attention alone",
        "convolution": "step of the convolutional R26 alone",
        "torch": "joint step in eager PyTorch",
        "rewire": "rewiring of R26 attention",
    }.items():
        rows[f"step_{name}"] = milliseconds(times[name], f"{detail}, {what}")
    rows["joint_step_images_per_second"] = Row.of(
        [BATCH / seconds for seconds in times["joint"]], "images/s", what
    )
    rows["joint_step_vs_torch"] = Row.of(
        ratios(times["torch"], times["joint"]), "x", f"eager PyTorch / ours, {what}"
    )
    rows["attention_step_over_conv_step"] = Row.of(
        ratios(times["attention"], times["convolution"]),
        "x",
        f"training step of R26, attention / convolution, {what}",
    )
    images = PIPELINE_BATCHES * BATCH
    rows["pipeline_images_per_second"] = Row.of(
        [images / seconds for seconds in times["pipeline"]],
        "images/s",
        f"batches of {BATCH} 32x32 images made by the host, as training takes them",
    )
    rows["pipeline_share_of_step"] = Row.of(
        [s / PIPELINE_BATCHES for s in ratios(times["pipeline"], times["joint"])],
        "fraction",
        "time to make a batch / time of the joint step (they overlap in training)",
    )
    rows["rewire_share_of_epoch"] = Row.of(
        [r / STEPS_PER_EPOCH for r in ratios(times["rewire"], times["joint"])],
        "fraction",
        f"one rewiring / {STEPS_PER_EPOCH} joint steps",
    )
    gflops = [2 * 2048**3 / seconds / 1e9 for seconds in times["product"]]
    rows["matmul_peak_gflops"] = Row.of(gflops, "GFLOP/s", "2048x2048x2048, float32")
    work = 2 * joint.macs() * BATCH / 1e9
    rows["joint_step_share_of_peak"] = Row.of(
        [work / s / peak for s, peak in zip(times["joint"], gflops, strict=True)],
        "fraction",
        "2 FLOP per MAC; student counted three times, teacher once",
    )
    return rows


PIPELINE_BATCHES = 200


def _random_split() -> Split:
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(50_000, *IMAGE_SHAPE), dtype=np.uint8)
    return Split(images, rng.integers(10, size=len(images), dtype=np.int32))


def _run_pipeline(split: Split) -> None:
    batches = TrainBatches(split, BATCH, seed=0, num_shards=1)
    for _ in prefetch(batches.batch, range(PIPELINE_BATCHES)):
        pass


def compilation() -> Rows:
    """Seconds to compile the joint step, and what compiled steps need of memory."""
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        return _compilation()


def _compilation() -> Rows:
    rows: Rows = {}
    for name, cache in (("cold", "empty"), ("warm", "filled")):
        jax.clear_caches()
        joint, seconds = Step("resnet26_attention", "resnet50").compile()
        rows[f"compile_{name}_seconds"] = Row.one(
            seconds,
            "s",
            f"joint step, width {WIDTH}, with tracing, persistent cache {cache}",
        )
    programs = {
        "joint": joint,
        "attention": Step("resnet26_attention", None).compile()[0],
        "convolution": Step("resnet26", None).compile()[0],
    }
    for name, program in programs.items():
        rows[f"memory_{name}_step"] = Row.one(
            _bytes(program) / 2**20,
            "MiB",
            f"arguments and temporary memory, width {WIDTH}, batch {BATCH}",
        )
    small, large = (
        _bytes(Step("resnet26_attention", "resnet50", 64, batch).compile()[0])
        for batch in (32, 64)
    )
    per_image = (large - small) / 32
    rows["largest_batch_in_16_gib"] = Row.one(
        int((16 * 2**30 - small) / per_image) + 32,
        "images",
        f"joint step at width 64, 32x32: {per_image / 2**20:.1f} MiB an image, as"
        " compiled for this backend at batches 32 and 64",
    )
    return rows


def _bytes(program: Any) -> int:
    found = program.memory_analysis()
    return int(
        found.temp_size_in_bytes
        + found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
    )
