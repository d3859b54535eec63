"""Programs for ONNX Runtime whose convolutions and products compute in int8.

ONNX Runtime's own quantiser measures on training images how large activations become,
and writes what it finds between the operations (QDQ). Weights have a scale for each
output channel. What is softmax, logits, or a product of two activations stays float32:
they take little memory, and errors of attention are errors of where it looks.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alite_jax.data.sources import Array
from alite_jax.deploy.runtimes import IMAGES_AT_ONCE
from alite_jax.errors import ArtefactError, first_line

# Of a program's accuracy on the whole evaluation split; more, and it is not kept.
MOST_LOST = 0.005

_CALIBRATED_ON = 512  # images


def int8_program(content: bytes, images: Array) -> bytes:
    """Writes the int8 form of a program.

    Args:
        content: from `onnx_program`, of 1x1 convolutions written as convolutions: the
            quantiser has no scale for each channel of a product with a bias.
        images: to train on, uint8 `[n, height, width, channels]`.

    Returns:
        An ONNX model that takes and gives what the other does.

    Raises:
        ArtefactError: the quantiser cannot take it.
    """
    import onnx
    import onnxruntime
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory() as folder:
        simplified, quantized = Path(folder, "simplified"), Path(folder, "quantized")
        # Biases become part of the convolutions before they, or their lack, count.
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = (
            onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        )
        options.optimized_model_filepath = str(simplified)
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(content, options)
        (taken,) = session.get_inputs()
        batch = taken.shape[0] if isinstance(taken.shape[0], int) else IMAGES_AT_ONCE
        samples = np.asarray(images[:_CALIBRATED_ON])
        whole = len(samples) // batch * batch
        products = _products(onnx.load(str(simplified)))
        if not products:  # An empty list would stand for all there are.
            return content

        class Samples(quantization.CalibrationDataReader):
            def __init__(self) -> None:
                self.batches: Iterator[Mapping[str, np.ndarray]] = iter(
                    {taken.name: samples[start : start + batch]}
                    for start in range(0, whole, batch)
                )

            def get_next(self) -> Mapping[str, np.ndarray] | None:
                return next(self.batches, None)

        try:
            quantization.quantize_static(
                str(simplified),
                str(quantized),
                Samples(),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                # Sums of two products of 8 bits do not fit where AVX2 adds them up.
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                nodes_to_quantize=products,
            )
        except Exception as error:  # What it raises is not documented.
            raise ArtefactError(
                "onnxruntime's quantiser cannot take this network"
                f" ({first_line(error)}); export it without onnx_int8 among --formats"
            ) from error
        return quantized.read_bytes()


def _products(program: Any) -> list[str]:
    """Names of the convolutions and products whose second factor is weights.

    The tables of attention are constants, too, but of rank 3 or of zeros and ones; the
    last product gives the logits.
    """
    from onnx import numpy_helper

    constants = {a.name: numpy_helper.to_array(a) for a in program.graph.initializer}

    def has_weights(node: Any) -> bool:
        factor = constants.get(node.input[1])
        return factor is not None and (
            node.op_type == "Conv"
            or (factor.ndim == 2 and not np.isin(factor, (0, 1)).all())
        )

    return [
        node.name
        for node in program.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul")
        and has_weights(node)
        and program.graph.output[0].name not in node.output
    ]
