"""Programs for ONNX Runtime: converting, a free batch, int8."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from exports import SHAPE, onnx_model
from onnx import TensorProto, helper, load_from_string, numpy_helper

from alite_jax.data.specs import DATASETS
from alite_jax.deploy import onnx_int8 as quantizing
from alite_jax.deploy import onnx_program as converting
from alite_jax.deploy.formats import Exportable
from alite_jax.deploy.onnx_int8 import int8_program
from alite_jax.deploy.onnx_program import _freed, onnx_program
from alite_jax.deploy.runtimes import read_onnx
from alite_jax.errors import ArtefactError
from alite_jax.jobs.export import _check_accuracy
from alite_jax.models.layers import Pointwise


def program_of(batch: int, fault: str = "") -> Any:
    """Flattens images to rows of 4 in a form that knows how many there are."""
    constants = {
        "shape": np.array([batch * 2, 4]),
        "start": np.array([0, 0]),
        "end": np.array([batch * 2, 3]),
        "unused": np.array([batch, batch]),
    }
    if fault == "two numbers":
        constants["shape"] = np.array([batch, batch])
    if fault == "a constant":
        constants["more"] = np.full((1, 1), batch, np.float32)
    if fault == "a longer constant":
        constants["more"] = np.zeros((batch * 2, 1), np.float32)
    nodes = [helper.make_node("Reshape", ["images", "shape"], ["rows"])]
    nodes.append(helper.make_node("Slice", ["rows", "start", "end"], ["cut"]))
    if "more" in constants:
        nodes.append(helper.make_node("Add", ["cut", "more"], ["logits"]))
    else:
        nodes.append(helper.make_node("Identity", ["cut"], ["logits"]))
    taken, given = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("images", [batch, 8]), ("logits", [batch * 2, 3]))
    )
    initializers = [numpy_helper.from_array(v, k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "rows", [taken], [given], initializers)
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)


def test_what_differs_between_two_batches_is_the_batch() -> None:
    import onnxruntime

    program = _freed(program_of(2), program_of(3))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(program.SerializeToString(), options)
    for batch in (1, 2, 5):
        images = np.arange(batch * 8, dtype=np.float32).reshape(batch, 8)
        (found,) = session.run(None, {"images": images})
        np.testing.assert_array_equal(found, images.reshape(-1, 4)[:, :3])


@pytest.mark.parametrize("fault", ["two numbers", "a constant", "a longer constant"])
def test_a_program_that_depends_on_the_batch_is_not_freed(fault: str) -> None:
    assert _freed(program_of(2, fault), program_of(3, fault)) is None


def test_what_cannot_be_converted_is_said_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = Exportable(Pointwise(3), {}, {}, DATASETS["digits"], SHAPE)
    with pytest.raises(ArtefactError, match="generator cannot be sent to the process"):
        onnx_program(plain._replace(model=(n for n in ())), None)
    failed = SimpleNamespace(returncode=1, stderr="a trace\nValueError: no such step\n")
    monkeypatch.setattr(converting.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ArtefactError, match=r"\(ValueError: no such step\); .* onnx:8"):
        onnx_program(plain, None)


@pytest.mark.filterwarnings("ignore")
def test_products_with_weights_compute_in_int8() -> None:
    draw = np.random.default_rng(0)
    samples = draw.integers(0, 256, (16, *SHAPE), np.uint8)
    content = onnx_model(None)
    # The only product gives the logits, and stays as it is.
    assert int8_program(content, samples) == content
    # With one more behind it, it is in int8.
    longer = load_from_string(content)
    longer.graph.node[-1].output[0] = "hidden"
    last = numpy_helper.from_array(np.eye(3, dtype=np.float32) * 2, "last")
    longer.graph.initializer.append(last)
    longer.graph.node.append(helper.make_node("MatMul", ["hidden", "last"], ["logits"]))
    for node, name in zip(longer.graph.node, "abcd", strict=True):
        node.name = name
    small = int8_program(longer.SerializeToString(), samples)
    kinds = {a.data_type for a in load_from_string(small).graph.initializer}
    assert TensorProto.INT8 in kinds
    images = draw.integers(0, 256, (5, *SHAPE), np.uint8)
    wanted = 2 * read_onnx(content).call(images)
    found = read_onnx(small).call(images)
    assert 0 < np.abs(found - wanted).max() < 0.03 * np.abs(wanted).max()


def test_what_the_quantiser_cannot_take_is_said_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from onnxruntime import quantization

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("no such scale\nand more")

    monkeypatch.setattr(quantization, "quantize_static", fail)
    monkeypatch.setattr(quantizing, "_products", lambda _: ["some"])
    with pytest.raises(ArtefactError, match=r"take this network \(no such scale\); e"):
        int8_program(onnx_model(None), np.zeros((8, *SHAPE), np.uint8))


def test_a_program_that_loses_half_a_point_is_not_kept() -> None:
    _check_accuracy("onnx_int8", 0.8951, 0.9)
    with pytest.raises(ArtefactError, match=r"onnx_int8 program has .* 89.40%, the ne"):
        _check_accuracy("onnx_int8", 0.894, 0.9)
