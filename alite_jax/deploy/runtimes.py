"""What runs an exported network: JAX, ONNX Runtime or LiteRT, each loaded on demand.

Not even NumPy is imported above, so that using one of them needs no other, and the
command line, which knows their names, answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from alite_jax.errors import ArtefactError

if TYPE_CHECKING:
    import numpy as np

GRAPH, WEIGHTS = "graph.stablehlo", "weights.alite"
ONNX, ONNX_INT8, TFLITE = "model.onnx", "model_int8.onnx", "model.tflite"

# How many a program of any number is given: its arrays then stay in the cache.
IMAGES_AT_ONCE = 8

Call = Callable[["np.ndarray"], "np.ndarray"]


class Program(NamedTuple):
    """A network as a runtime has loaded it.

    Attributes:
        call: from uint8 images `[n, height, width, channels]`, of which there are any
            number but none, to logits float32 `[n, classes]`.
        image_shape: (height, width, channels).
        classes: how many logits there are.
    """

    call: Call
    image_shape: tuple[int, ...]
    classes: int


class Runtime(NamedTuple):
    """A way to run an exported network.

    Attributes:
        files: of the export, that it reads.
        read: makes a program of their contents.
        modules: that it imports.
        install: what brings them, as pip calls it.
        flag: what has `--job=export` write the files, "" where it always does.
    """

    files: tuple[str, ...]
    read: Callable[..., Program]
    modules: tuple[str, ...]
    install: str
    flag: str = ""


def read_jax(graph: bytes, weights: bytes) -> Program:
    """Loads into JAX what `export_program` and `pack` wrote.

    Raises:
        PackedFileError: `weights` are damaged.
    """
    import jax
    import numpy as np

    from alite_jax.deploy.pack import unpack

    variables = unpack(weights).variables
    kinds = ("params", "batch_stats")
    exported = jax.export.deserialize(bytearray(graph))
    call = _of_images(exported, {kind: variables.get(kind, {}) for kind in kinds})

    def logits(images: np.ndarray) -> np.ndarray:
        # Moved on purpose, which a transfer guard lets pass.
        return np.asarray(jax.device_get(call(jax.device_put(images))))

    image_shape, classes = exported.in_avals[-1].shape[1:], exported.out_avals[0].shape
    return Program(logits, tuple(image_shape), classes[1])


def compiled(program: bytes, weights: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Makes of what `export_program` wrote a function of the images alone.

    It takes uint8 images and gives logits, compiled once for each number of images. The
    weights, `params` and `batch_stats`, become constants of it: handing over an array
    for each layer with each call takes a quarter of the time of a small network and one
    image.
    """
    import jax

    return _of_images(jax.export.deserialize(bytearray(program)), weights)


def _of_images(exported: Any, weights: Mapping[str, Any]) -> Callable[[Any], Any]:
    import jax

    return jax.jit(partial(exported.call, jax.device_put(weights)))


def read_onnx(content: bytes) -> Program:
    """Loads a program into ONNX Runtime, on one thread of the CPU."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # What is wrong is raised; the rest is no news.
    session = onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"]
    )
    (taken,), (given,) = session.get_inputs(), session.get_outputs()

    def call(images: np.ndarray) -> np.ndarray:
        (logits,) = session.run([given.name], {taken.name: images})
        return np.asarray(logits)

    return _program(call, taken.type == "tensor(uint8)", taken.shape, given.shape)


def read_tflite(content: bytes) -> Program:
    """Loads a program into LiteRT, on one thread."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    (taken,) = interpreter.get_input_details()
    (given,) = interpreter.get_output_details()

    def call(images: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(taken["index"], images)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(given["index"]))

    shapes = taken["shape"].tolist(), given["shape"].tolist()
    return _program(call, taken["dtype"] == np.uint8, *shapes)


def _program(call: Call, of_bytes: bool, images: Any, logits: Any) -> Program:
    """A program, of shapes as its runtime gives them: a free batch is no integer."""
    batch, *image_shape = images
    if not of_bytes or len(image_shape) != 3 or len(logits) != 2:
        raise ArtefactError("it is no program from uint8 images to logits")
    fixed = isinstance(batch, int)
    call = in_batches_of(batch if fixed else IMAGES_AT_ONCE, call, fixed)
    return Program(call, tuple(image_shape), logits[1])


def in_batches_of(size: int, call: Call, fixed: bool = True) -> Call:
    """Makes of a function of `size` images one of any number.

    The last ones are filled up where the size is `fixed`.
    """
    import numpy as np

    def run(images: np.ndarray) -> np.ndarray:
        logits = []
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            missing = size - len(batch) if fixed else 0
            if missing:
                rest = np.zeros((missing, *images.shape[1:]), images.dtype)
                batch = np.concatenate([batch, rest])
            logits.append(call(batch)[: len(batch) - missing])
        return np.concatenate(logits)

    return run


RUNTIMES: dict[str, Runtime] = {
    "jax": Runtime(
        (GRAPH, WEIGHTS), read_jax, ("jax", "flatbuffers"), "jax flatbuffers"
    ),
    "onnx": Runtime(
        (ONNX,), read_onnx, ("onnxruntime",), "onnxruntime", "--formats=onnx"
    ),
    "onnx_int8": Runtime(
        (ONNX_INT8,),
        read_onnx,
        ("onnxruntime",),
        "onnxruntime",
        "--formats=onnx_int8",
    ),
    "tflite": Runtime(
        (TFLITE,),
        read_tflite,
        ("ai_edge_litert",),
        "ai-edge-litert",
        "--formats=tflite",
    ),
}


def missing_modules(modules: tuple[str, ...]) -> list[str]:
    """Those that are not installed."""
    return [name for name in modules if find_spec(name) is None]
