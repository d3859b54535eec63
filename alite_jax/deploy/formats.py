"""The files that an export can have besides its own: an entry for each `--formats`.

Nothing here loads JAX or a converter before it is asked for, since the command line
takes its help from here, and a mistake in it must show at once.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from alite_jax.deploy.runtimes import (
    ONNX,
    ONNX_INT8,
    TFLITE,
    Call,
    missing_modules,
    read_onnx,
    read_tflite,
)
from alite_jax.errors import ArtefactError, ConfigError, check_is_list, nearest


class Exportable(NamedTuple):
    """A network on its way into files.

    Attributes:
        model: of the type `Model`.
        variables: `params`, `batch_stats` and `masks`.
        identity: what `pack` is given: JSON values, enough to build the module.
        spec: `DatasetSpec` of its images.
        image_shape: (height, width, channels).
        samples: training images, uint8, of which the first are read if need be.
    """

    model: Any
    variables: dict[str, Any]
    identity: dict[str, Any]
    spec: Any
    image_shape: tuple[int, int, int]
    samples: Any = None

    @property
    def weights(self) -> dict[str, Any]:
        """What the program is called with."""
        kinds = ("params", "batch_stats")
        return {kind: self.variables.get(kind, {}) for kind in kinds}


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        file: its name.
        write: its content, of a network and the number of images that a program takes
            at a time, None for any number.
        read: the function from images to logits that is read back from it.
        batch: the number of images if nobody says it.
        program: whether it is one, and not weights alone.
        modules: that must be installed.
        install: how they are installed.
        timed: whether what reads it is what people run it by.
        exact: whether its logits must be those of the network; otherwise its accuracy
            on the whole evaluation split may be half a point lower.
    """

    file: str
    write: Callable[[Exportable, int | None], bytes]
    read: Callable[[bytes, Exportable], Call]
    batch: int | None = 1
    program: bool = True
    modules: tuple[str, ...] = ()
    install: str = ""
    timed: bool = False
    exact: bool = True


def _write_onnx(network: Exportable, batch: int | None) -> bytes:
    from alite_jax.deploy.onnx_program import onnx_program

    return onnx_program(network, batch)


def _write_onnx_int8(network: Exportable, batch: int | None) -> bytes:
    from alite_jax.deploy.onnx_int8 import int8_program
    from alite_jax.deploy.onnx_program import onnx_program

    return int8_program(onnx_program(network, batch, ("convolution",)), network.samples)


def _write_tflite(network: Exportable, batch: int | None) -> bytes:
    from alite_jax.deploy.program import forward_of
    from alite_jax.deploy.tflite import tflite_program, with_all_pairs

    forward = forward_of(with_all_pairs(network.model), network.spec)
    return tflite_program(forward, network.weights, network.image_shape, batch or 1)


def _write_mlir(network: Exportable, batch: int | None) -> bytes:
    from alite_jax.deploy.mlir_program import mlir_program

    return mlir_program(network, batch or 1)


def _read_mlir(content: bytes, network: Exportable) -> Call:
    from alite_jax.deploy.mlir_program import read_mlir

    return read_mlir(content)


def _write_safetensors(network: Exportable, batch: int | None) -> bytes:
    from alite_jax.deploy.open_weights import write_safetensors

    return write_safetensors(network)


def _read_safetensors(content: bytes, network: Exportable) -> Call:
    from alite_jax.deploy.open_weights import read_safetensors

    return read_safetensors(content, network)


_ONNX_MODULES = ("jax2onnx", "onnx", "onnxruntime")
# The versions are those of the requirements files, which an installation lacks.
# jax2onnx asks for an orbax-checkpoint older than the project's, and never imports it.
_INSTALL_ONNX = (
    "pip install onnx==1.23.2 onnx-ir==1.1.0 onnxruntime==1.32.0"
    " && pip install --no-deps jax2onnx==0.17.1"
)

FORMATS: dict[str, Format] = {
    "onnx": Format(
        ONNX,
        _write_onnx,
        lambda content, _: read_onnx(content).call,
        batch=None,
        modules=_ONNX_MODULES,
        install=_INSTALL_ONNX,
        timed=True,
    ),
    "onnx_int8": Format(
        ONNX_INT8,
        _write_onnx_int8,
        lambda content, _: read_onnx(content).call,
        batch=None,
        modules=_ONNX_MODULES,
        install=_INSTALL_ONNX,
        timed=True,
        exact=False,
    ),
    "tflite": Format(
        TFLITE,
        _write_tflite,
        lambda content, _: read_tflite(content).call,
        modules=("litert_converter", "ai_edge_litert"),
        install="pip install ai-edge-litert==2.3.0 litert-converter==0.5.0",
        timed=True,
    ),
    "mlir": Format(
        "graph.mlir",
        _write_mlir,
        _read_mlir,
    ),
    "safetensors": Format(
        "weights.safetensors",
        _write_safetensors,
        _read_safetensors,
        batch=None,
        program=False,
    ),
}


def parse_formats(texts: Sequence[str]) -> dict[str, int | None]:
    """The batch of each format of `--formats`.

    Args:
        texts: names, or `NAME:BATCH` for a program of a fixed number of images.

    Raises:
        ConfigError: there is no such format, or it is named twice or has no batch.
        ArtefactError: what it needs is not installed.
    """
    check_is_list("formats", texts)
    found: dict[str, int | None] = {}
    for text in texts:
        name, colon, batch = text.strip().partition(":")
        if name not in FORMATS:
            raise ConfigError(f"unknown format {name!r}; {nearest(name, FORMATS)}")
        known = FORMATS[name]
        if name in found or (colon and not (known.program and _is_batch(batch))):
            raise ConfigError(
                f"--formats has {text!r}, but must name each format once, as in {name},"
                " and a program of 8 images as in tflite:8"
            )
        if missing := missing_modules(known.modules):
            raise ArtefactError(
                f"the format {name} needs {', '.join(missing)}, not installed here; run"
                f" {known.install}"
            )
        found[name] = int(batch) if colon else known.batch
    return found


def _is_batch(text: str) -> bool:
    return text.isascii() and text.isdecimal() and int(text) > 0
