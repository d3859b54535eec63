"""Programs for ONNX Runtime: `model.onnx`, weights inside.

jax2onnx converts, in a process of its own: it patches JAX while it works, and functions
that were traced meanwhile are of no use to anybody else. A network of this project is
written in several forms (`alite_jax.deploy.folded`), of which the one is kept that ONNX
Runtime is fastest with.
"""

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np

from alite_jax.data.specs import DatasetSpec
from alite_jax.deploy.folded import POINTWISE, folded
from alite_jax.deploy.formats import Exportable
from alite_jax.deploy.program import forward_of, milliseconds
from alite_jax.deploy.runtimes import IMAGES_AT_ONCE, read_onnx
from alite_jax.errors import ArtefactError, first_line
from alite_jax.models.model import Model
from alite_jax.models.resnet import ResNet

# Of the operators. ONNX Runtime has known it since 1.14, of February 2023.
OPSET = 18

# For a free batch a network is converted twice: what differs is the number of images.
_TWO_BATCHES = (2, 3)
# Where operations name it, and what stands for any.
_FREE = {"Reshape": (1, -1), "Slice": (2, np.iinfo(np.int64).max)}


def onnx_program(
    network: Exportable, batch: int | None, pointwise: Sequence[str] = POINTWISE
) -> bytes:
    """Writes a program from uint8 images to float32 logits.

    Args:
        network: any that cloudpickle takes.
        batch: how many images the program takes; None for any number.
        pointwise: in which ways a network of this project may be written.

    Returns:
        An ONNX model of opset `OPSET`, of standard operators only. It takes `images`,
        uint8 `[batch, height, width, channels]`, normalises them itself, and gives
        `logits`, `[batch, classes]`. Its metadata say how images are resized, what the
        classes are called, and which form was kept.

    Raises:
        ArtefactError: jax2onnx cannot take the network.
    """
    model, spec = network.model, network.spec
    weights = jax.tree.map(np.asarray, jax.device_get(network.weights))
    arguments = model, weights, spec, network.image_shape, batch, pointwise
    with tempfile.TemporaryDirectory() as folder:
        task, result = Path(folder, "task"), Path(folder, "result")
        try:
            task.write_bytes(cloudpickle.dumps(arguments))
        except Exception as error:  # Anything may refuse to be pickled, in any way.
            raise ArtefactError(
                f"{type(model).__name__} cannot be sent to the process that converts"
                f" it ({error}); export it without onnx among --formats"
            ) from error
        paths = [str(Path(__file__).parents[2]), *filter(None, sys.path)]
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(paths),
        }
        done = subprocess.run(
            [sys.executable, "-m", __name__, task, result],
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            return result.read_bytes()
    reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    instead = "" if batch else "for a fixed number of images, as in onnx:8, or "
    raise ArtefactError(
        f"jax2onnx cannot take this network ({reason}); export it {instead}without onnx"
        " among --formats"
    )


def _convert(
    model: Model,
    weights: Mapping[str, Any],
    spec: DatasetSpec,
    image_shape: tuple[int, int, int],
    batch: int | None,
    pointwise: Sequence[str],
) -> bytes:
    """`onnx_program`, in the process that converts."""
    forwards: dict[str, Callable[[jax.Array], jax.Array]]
    if isinstance(model, ResNet):
        forwards = {
            f"1x1 as {way}": folded(model, weights, spec, way) for way in pointwise
        }
    else:
        forwards = {"the network's own": partial(forward_of(model, spec), weights)}
    programs = {}
    for form, forward in forwards.items():
        program = _program(forward, image_shape, batch)
        about = {
            "dataset": spec.name,
            "classes": json.dumps(list(spec.class_names)),
            "image_shape": json.dumps(list(image_shape)),
            "resize": spec.resize,
            "normalization": "in the program, which takes 0 to 255",
            "form": form,
        }
        for key, value in about.items():
            program.metadata_props.add(key=key, value=value)
        programs[form] = program.SerializeToString()
    return programs[_fastest(programs, image_shape, batch)]


def _program(
    forward: Callable[[jax.Array], jax.Array],
    image_shape: tuple[int, int, int],
    batch: int | None,
) -> Any:
    """Converts a function, with names for what goes in and out."""
    if batch is None:
        first, second = (_converted(forward, n, image_shape) for n in _TWO_BATCHES)
        # Otherwise shapes are computed where the program runs, in nodes of their own.
        program = _freed(first, second) or _converted(forward, "batch", image_shape)
    else:
        program = _converted(forward, batch, image_shape)
    names = {program.graph.input[0].name: "images"}
    names[program.graph.output[0].name] = "logits"
    for value in (*program.graph.input, *program.graph.output):
        value.name = names[value.name]
    for node in program.graph.node:
        for places in (node.input, node.output):
            places[:] = [names.get(name, name) for name in places]
    return program


def _converted(
    forward: Callable[[jax.Array], jax.Array],
    batch: int | str,
    image_shape: tuple[int, int, int],
) -> Any:
    import jax2onnx

    size: Any = batch
    if isinstance(batch, str):
        (size,) = jax.export.symbolic_shape(batch)
    images = jax.ShapeDtypeStruct((size, *image_shape), jnp.uint8)
    return jax2onnx.to_onnx(forward, [images], model_name="alite_jax", opset=OPSET)


def _freed(program: Any, other: Any) -> Any:
    """Makes a program of 2 images one of any number, by comparing it with that of 3.

    They may differ in the shapes that arrays are given, in one number, which becomes
    what is left of the array, and in where slices end, which becomes the end. If they
    differ in anything else, there is None.
    """
    from onnx import numpy_helper

    ours, theirs = (
        {array.name: array for array in each.graph.initializer}
        for each in (program, other)
    )
    nodes = [[n.SerializeToString() for n in p.graph.node] for p in (program, other)]
    if nodes[0] != nodes[1] or ours.keys() != theirs.keys():
        return None
    instead = {}
    for node in program.graph.node:
        if node.op_type in _FREE:
            place, number = _FREE[node.op_type]
            instead[node.input[place]] = number
    used = {name for node in program.graph.node for name in node.input}
    for name in ours.keys() & used:
        if ours[name] == theirs[name]:
            continue
        first, second = (numpy_helper.to_array(each[name]) for each in (ours, theirs))
        differs = first.shape != second.shape or np.sum(first != second) != 1
        if differs or name not in instead:
            return None
        shape = np.where(first == second, first, instead[name])
        ours[name].CopyFrom(numpy_helper.from_array(shape, name))
    # Shapes in between were those of 2 images; runtimes find them by themselves.
    del program.graph.value_info[:]
    for value in (*program.graph.input, *program.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return program


def _fastest(
    programs: Mapping[str, bytes], image_shape: tuple[int, ...], batch: int | None
) -> str:
    """The program that takes the least time here, over few images and over many."""
    calls = {name: read_onnx(content).call for name, content in programs.items()}
    if len(calls) == 1:
        return next(iter(calls))
    total = dict.fromkeys(calls, 0.0)
    for count in (1, IMAGES_AT_ONCE) if batch is None else (batch,):
        images = np.zeros((count, *image_shape), np.uint8)
        times = milliseconds(calls, images, at_least=0.5)
        for name, time in times.items():
            total[name] += time / min(times.values())
    return min(total, key=total.__getitem__)


if __name__ == "__main__":
    try:
        Path(sys.argv[2]).write_bytes(
            _convert(*pickle.loads(Path(sys.argv[1]).read_bytes()))
        )
    except Exception as error:  # What a converter raises is not documented.
        sys.exit(f"{type(error).__name__}: {first_line(error)}")
