"""Files that others read: safetensors, StableHLO bytecode, and the packed format."""

import json
import random
import re
import tracemalloc
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from test_pack import network as drawn_variables
from test_runtimes import damaged
from tiny import assert_same

from alite_jax.data.specs import DATASETS
from alite_jax.deploy.formats import FORMATS, Exportable
from alite_jax.deploy.networks import read_network
from alite_jax.deploy.open_weights import unpack_safetensors
from alite_jax.deploy.pack import VALUES, pack, unpack
from alite_jax.deploy.program import forward_of
from alite_jax.errors import ArtefactError, PackedFileError
from alite_jax.models.resnet import create_model
from alite_jax.structure.compact import compact, widths_as_json

pytestmark = pytest.mark.usefixtures("models")
DOCS = Path(__file__).resolve().parent.parent / "docs"
SPEC = DATASETS["digits"]
IDENTITY = {"model": "tiny_attention", "dataset": "digits", "image_shape": [8, 8, 1]}
IDENTITY |= {"num_classes": 10, "width": 8, "kernel_size": 3, "heads": 8}
IDENTITY |= {"border": "zero", "stem": "conv"}


@pytest.fixture(scope="module")
def network(models: None) -> Exportable:
    """A compacted student with drawn weights, every third of which is kept."""
    model = create_model("tiny_attention", num_classes=10, width=8, kernel_size=3)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)
    )
    draw = np.random.default_rng(0)
    drawn = jax.tree.map(
        lambda leaf: draw.uniform(0.1, 0.5, leaf.shape).astype(np.float32), dict(shapes)
    )
    masks = jax.tree.map(
        lambda leaf: draw.random(leaf.shape) < 0.3 if leaf.ndim > 1 else np.True_,
        drawn["params"],
    )
    drawn["params"] = jax.tree.map(np.multiply, drawn["params"], masks)
    smaller = compact(model, drawn | {"masks": masks})
    identity = IDENTITY | {"widths": widths_as_json(smaller.model)}
    variables = jax.tree.map(np.asarray, dict(smaller.variables))
    return Exportable(smaller.model, variables, identity, SPEC, (8, 8, 1))


def logits_of(network: Exportable, images: np.ndarray) -> np.ndarray:
    forward = jax.jit(forward_of(network.model, SPEC))
    return np.asarray(forward(network.weights, images))


def some_images(count: int) -> np.ndarray:
    draw = np.random.default_rng(1)
    return draw.integers(0, 256, (count, 8, 8, 1), np.uint8)


def test_the_bytecode_is_the_network_and_nothing_is_handed_over(
    network: Exportable,
) -> None:
    content = FORMATS["mlir"].write(network, 2)
    with ir.Context() as context:
        module = stablehlo.deserialize_portable_artifact(context, content)
        text = str(module)
    assert re.search(r"func public @main\(%arg0: tensor<2x8x8x1xui8>", text)
    assert "-> (tensor<2x10xf32>" in text and "%arg1: tensor" not in text.split("\n")[1]
    images = some_images(5)
    found = FORMATS["mlir"].read(content, network)(images)
    np.testing.assert_allclose(found, logits_of(network, images), atol=1e-5)


def test_safetensors_has_the_names_and_what_the_network_is(network: Exportable) -> None:
    content = FORMATS["safetensors"].write(network, None)
    arrays = load_arrays(content)
    kernel = network.variables["params"]["classifier"]["kernel"]
    np.testing.assert_array_equal(arrays["params/classifier/kernel"], kernel)
    assert (arrays["params/classifier/kernel"] == 0).mean() > 0.5
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    assert json.loads(metadata["model"]) == network.identity
    assert metadata["dataset"] == "digits" and metadata["resize"] == "area"
    assert json.loads(metadata["mean"]) == list(SPEC.mean)
    model, variables = unpack_safetensors(content)
    assert model == network.identity
    assert_same(variables, network.variables)
    images = some_images(3)
    found = FORMATS["safetensors"].read(content, network)(images)
    np.testing.assert_array_equal(found, logits_of(network, images))


@pytest.mark.parametrize("name", ["weights.alite", "weights.safetensors"])
def test_a_network_is_built_from_its_weights(
    name: str, network: Exportable, tmp_path: Path
) -> None:
    content = pack(network.identity, network.variables, "float32")
    if name == "weights.safetensors":
        content = FORMATS["safetensors"].write(network, None)
    (tmp_path / name).write_bytes(content)
    model, variables = read_network(tmp_path / name)
    assert_same(variables, network.variables)
    again = network._replace(model=model, variables=variables)
    images = some_images(3)
    np.testing.assert_allclose(
        logits_of(again, images), logits_of(network, images), atol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": "ViT"},
            "has the weights of 'ViT', which is no network of this pack",
        ),
        ({"model": ["tiny"]}, "which is no network of this package"),
        ({"width": 16}, "describes a tiny_attention that its weights do not fit"),
        ({"num_classes": 10**12}, "its weights do not fit"),
        ({"kernel_size": "x"}, "its weights do not fit"),
        ({"widths": [[1]]}, "its weights do not fit"),
        ({"image_shape": None}, "its weights do not fit"),
    ],
)
def test_weights_of_another_network(
    change: dict[str, Any], message: str, network: Exportable, tmp_path: Path
) -> None:
    path = tmp_path / "weights.alite"
    path.write_bytes(pack(network.identity | change, network.variables))
    with pytest.raises(ArtefactError, match=message) as caught:
        read_network(path)
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"cannot be read \(No such file"):
        read_network(tmp_path / "weights.alite")
    for name in ("weights.alite", "weights.safetensors"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(ArtefactError, match=f"{name} cannot be used: it "):
            read_network(tmp_path / name)


def test_a_thousand_damaged_safetensors_are_refused(network: Exportable) -> None:
    content = FORMATS["safetensors"].write(network, None)
    draw = random.Random(0)
    tracemalloc.start()
    unpack_safetensors(content)
    honest, let_in = tracemalloc.get_traced_memory()[1], 0
    length = int.from_bytes(content[:8], "little")
    for number in range(1000):
        # Half of it in the header, where there is more to believe.
        head, rest = content[: 8 + length], content[8 + length :]
        case = damaged(head, draw) + rest if number % 2 else damaged(content, draw)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            _, variables = unpack_safetensors(case)
        except PackedFileError as error:
            assert str(error).startswith("it is damaged") and "\n" not in str(error)
        else:
            # A bit of a number or of a name may be another one.
            let_in += 1
            kept = variables["params"], variables["batch_stats"]
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept))
        assert tracemalloc.get_traced_memory()[1] - before <= 2 * honest
    tracemalloc.stop()
    assert let_in < 500


@pytest.mark.parametrize(
    "arrays",
    [
        {"params/a": np.zeros(2, np.float16)},
        {"params/a": np.float32([1, np.nan])},
        {"masks/a": np.zeros(2, np.float32)},
        {"other/a": np.zeros(2, np.float32)},
        {"params/a": np.zeros(2, np.float32), "params/a/b": np.zeros(2, np.float32)},
    ],
)
def test_safetensors_of_something_else(arrays: dict[str, Any]) -> None:
    known = {"model": "{}", "pruned": "[]"}
    assert unpack_safetensors(save_arrays({"params/a": np.ones(2, np.float32)}, known))
    with pytest.raises(PackedFileError, match="no safetensors file of this package"):
        unpack_safetensors(save_arrays(arrays, known))
    for metadata in ({}, {"model": "[]", "pruned": "[]"}, {"model": "{}"}):
        with pytest.raises(
            PackedFileError, match="no safetensors file of this package"
        ):
            unpack_safetensors(save_arrays({}, metadata))


@pytest.mark.parametrize("values", VALUES)
def test_the_reader_of_the_docs_reads_what_unpack_reads(
    values: str, tmp_path: Path
) -> None:
    page = (DOCS / "export.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    [reader] = [block for block in blocks if "def read(path)" in block]
    assert len(reader.splitlines()) <= 60
    tops = set(re.findall(r"^(?:import|from) (\w+)", reader, re.MULTILINE))
    assert tops == {"hashlib", "json", "math", "zlib", "numpy"}
    namespace: dict[str, Any] = {}
    exec(reader, namespace)
    variables = drawn_variables()
    variables["params"]["block"]["kernel"] *= 1e5  # Beyond the range of float16.
    content = pack({"model": "m"}, variables, values)
    (tmp_path / "weights.alite").write_bytes(content)
    model, arrays = namespace["read"](tmp_path / "weights.alite")
    assert model == {"model": "m"}
    wanted = unpack(content).variables
    found: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name, array in arrays.items():
        kind, module, leaf = name.split("/")
        found[kind].setdefault(module, {})[leaf] = array
    assert_same(found, {kind: wanted[kind] for kind in found})
    (tmp_path / "weights.alite").write_bytes(content[:-1] + b"?")
    with pytest.raises(AssertionError, match="damaged"):
        namespace["read"](tmp_path / "weights.alite")
