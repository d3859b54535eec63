"""The networks where people run them, ONNX Runtime, LiteRT and XLA, on one core.

Exported as `--job=export` does it, with weights as drawn, at the sizes of
`configs/cifar10_cpu.py` and `configs/cifar10.py`.
"""

import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import numpy as np

from alite_jax.counting.layers import total_macs
from alite_jax.data.specs import DATASETS
from alite_jax.deploy.formats import FORMATS, Exportable
from alite_jax.deploy.onnx_program import onnx_program
from alite_jax.deploy.program import export_program, forward_of
from alite_jax.deploy.runtimes import (
    IMAGES_AT_ONCE,
    Call,
    compiled,
    missing_modules,
    read_onnx,
    read_tflite,
)
from alite_jax.deploy.tflite import tflite_program, with_all_pairs
from alite_jax.models.resnet import ResNet, create_model
from alite_jax.structure.widths import choose_widths
from benchmarks.timing import Row, Rows, Times, interleave, milliseconds, ratios

SIZES = ((16, 16), (32, 64))  # Pixels of a side, and channels of the stem.
BATCHES = (1, 64)
FRACTION = 0.35  # of the student's MACs, in the structured one.
SPEC = DATASETS["cifar10"]

# Those whose nodes are timed, and how often. The least time of each node counts.
_PROFILED = ("teacher", "student", "structured")
_RUNS = 10
# Kinds of nodes with a smaller share of the time are put together.
_SHARE = 0.03


class Network(NamedTuple):
    """A network with weights.

    Attributes:
        model: of which these are the weights.
        weights: `params` and `batch_stats`.
        image_shape: (height, width, channels).
        macs: of one image.
    """

    model: ResNet
    weights: dict[str, Any]
    image_shape: tuple[int, int, int]
    macs: int


def compare(rounds: int) -> Rows:
    """Times all networks in all runtimes in turns, then the nodes of ONNX Runtime."""
    # Before a runtime starts threads, which stay on the core they are started on.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows: Rows = {}
    for side, width in SIZES:
        rows |= _of_size(f"{side}x{side}", networks(side, width), rounds)
    return rows


def networks(side: int, width: int) -> dict[str, Network]:
    """The teacher, the student without attention, the student, and one with less.

    Args:
        side: of an image, in pixels.
        width: channels of the stem.
    """
    shape = (side, side, 3)
    create = partial(create_model, num_classes=SPEC.num_classes, width=width)
    student = create("resnet26_attention")
    chosen = choose_widths(student, shape, "heads", FRACTION)
    models = {
        "teacher": create("resnet50"),
        "convolutional": create("resnet26"),
        "student": student,
        "structured": student.clone(widths=chosen.widths),
    }
    found = {}
    for name, model in models.items():
        init = jax.jit(partial(model.init, train=False))
        weights = init(jax.random.key(0), np.zeros((1, *shape), np.float32))
        found[name] = Network(model, weights, shape, total_macs(model, shape))
    return found


def _of_size(size: str, of: Mapping[str, Network], rounds: int) -> Rows:
    runtimes = {"xla": {name: _in_xla(network) for name, network in of.items()}}
    programs = {}
    if _installed("onnx"):
        programs = {name: _onnx(network) for name, network in of.items()}
        runtimes["onnx"] = {
            name: dict.fromkeys(BATCHES, read_onnx(program).call)
            for name, program in programs.items()
        }
    if _installed("tflite"):
        runtimes["litert"] = {name: _in_litert(each) for name, each in of.items()}
    macs = {name: network.macs for name, network in of.items()}
    rows: Rows = {}
    for batch in BATCHES:
        images = _images(batch, of["teacher"].image_shape)
        peers = {
            f"{runtime}_{name}": partial(calls[batch], images)
            for runtime, networks in runtimes.items()
            for name, calls in networks.items()
        }
        _assert_agreement(peers, runtimes, of)
        times = interleave(peers, rounds)
        for runtime in runtimes:
            own = {name: times[f"{runtime}_{name}"] for name in of}
            rows |= summary(f"{runtime}_{size}_batch_{batch}", own, macs)
    for name in _PROFILED if programs else ():
        for batch in (1, IMAGES_AT_ONCE):
            nodes = profile(programs[name], _images(batch, of[name].image_shape))
            start = f"nodes_{size}_batch_{batch}_{name}"
            rows |= {f"{start}_{kind}": row for kind, row in by_kind(nodes).items()}
    return rows


def _installed(name: str) -> bool:
    missing = missing_modules(FORMATS[name].modules)
    if missing:
        print(
            f"{name} is left out: {', '.join(missing)} not installed; run pip install"
            f" -r {FORMATS[name].requirements}",
            file=sys.stderr,
        )
    return not missing


def _images(batch: int, image_shape: tuple[int, ...]) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (batch, *image_shape), np.uint8)


def _in_xla(network: Network) -> dict[int, Any]:
    model, weights, image_shape, _ = network
    program = export_program(forward_of(model, SPEC), weights, image_shape)
    return dict.fromkeys(BATCHES, compiled(program, weights))


def _onnx(network: Network) -> bytes:
    model, weights, image_shape, _ = network
    return onnx_program(Exportable(model, weights, {}, SPEC, image_shape), batch=None)


def _in_litert(network: Network) -> dict[int, Call]:
    """Programs for one image and, as ONNX Runtime takes many, for a few at a time."""
    model, weights, image_shape, _ = network
    forward = forward_of(with_all_pairs(model), SPEC)
    return {
        batch: read_tflite(
            tflite_program(forward, weights, image_shape, min(batch, IMAGES_AT_ONCE))
        ).call
        for batch in BATCHES
    }


def _assert_agreement(
    peers: Mapping[str, Any], runtimes: Iterable[str], names: Iterable[str]
) -> None:
    """Fails unless all runtimes compute the same logits."""
    for name in names:
        wanted = np.asarray(peers[f"xla_{name}"]())
        for runtime in runtimes:
            found = np.asarray(peers[f"{runtime}_{name}"]())
            most = 1e-4 * np.abs(wanted).max()
            what = f"{name} in {runtime} is not that in XLA"
            np.testing.assert_allclose(found, wanted, rtol=0, atol=most, err_msg=what)


def summary(prefix: str, times: Mapping[str, Times], macs: Mapping[str, int]) -> Rows:
    """The rows of one runtime, size and batch.

    Args:
        prefix: of their names.
        times: seconds of each network, by round.
        macs: of each network.
    """
    rows: Rows = {}
    for name, seconds in times.items():
        share = macs[name] / macs["teacher"]
        detail = f"{share:.3f} of the teacher's MACs"
        rows[f"{prefix}_{name}"] = milliseconds(seconds, detail)
        if name != "teacher":
            gain = ratios(times["teacher"], seconds)
            rows[f"{prefix}_{name}_vs_teacher"] = Row.of(gain, "x", "teacher over this")
    share = macs["structured"] / macs["student"]
    rows[f"{prefix}_structured_over_promise"] = Row.of(
        [r / share for r in ratios(times["structured"], times["student"])],
        "x",
        f"its time over {share:.3f} of the whole student's, which its MACs promise",
    )
    return rows


def profile(program: bytes, images: np.ndarray) -> list[tuple[str, float]]:
    """The kind of each node of a program, and its least time in seconds.

    Nodes are those that ONNX Runtime makes of the program's when it loads it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_profiling = True
    with TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/profile"
        session = onnxruntime.InferenceSession(
            program, options, providers=["CPUExecutionProvider"]
        )
        for _ in range(_RUNS):
            session.run(None, {"images": images})
        events = json.loads(Path(session.end_profiling()).read_text())
    times = defaultdict(list)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            node = event["args"]
            times[node["node_index"], node["op_name"]].append(1e-6 * event["dur"])
    return [(kind, min(found)) for (_, kind), found in times.items()]


def by_kind(nodes: Iterable[tuple[str, float]]) -> Rows:
    """A row for each kind of nodes, the one that takes longest first.

    Args:
        nodes: kind and seconds of each.
    """
    kinds = defaultdict(list)
    for kind, seconds in nodes:
        kinds[kind].append(seconds)
    whole = sum(map(sum, kinds.values()))
    small = [kind for kind, found in kinds.items() if sum(found) < _SHARE * whole]
    others = [seconds for kind in small for seconds in kinds.pop(kind)]
    largest = sorted(kinds.items(), key=lambda item: -sum(item[1]))
    if others:
        largest.append(("others", others))
    return {
        kind: Row.one(
            1e3 * sum(found),
            "ms",
            f"{len(found)} nodes, {sum(found) / whole:.0%} of {1e3 * whole:.4g} ms",
        )
        for kind, found in largest
    }
