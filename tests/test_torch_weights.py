"""Weights under torchvision's names: logits as in PyTorch, files that are wrong."""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from tiny import assert_same

from alite_jax.errors import CheckpointError, ConfigError
from alite_jax.models.blocks import BasicBlock, BlockWidths, Bottleneck
from alite_jax.models.resnet import ResNet, create_model
from alite_jax.models.torch_weights import read_weights, to_safetensors
from alite_jax.models.weight_files import read_arrays

DATA = Path(__file__).parent / "data"
# By `python -m benchmarks.torch_weights tests/data`, with logits in the header.
FILES = {
    "basic": DATA / "torchvision_basicblock.safetensors",
    "bottleneck": DATA / "torchvision_bottleneck.safetensors",
}
Arrays = dict[str, Any]


def example_images(side: int) -> np.ndarray:
    """As `benchmarks.torch_weights` makes them."""
    numbers = np.arange(2 * side * side * 3, dtype=np.float64)
    return np.sin(numbers**1.3).reshape(2, side, side, 3).astype(np.float32)


SIDES = {"basic": 9, "bottleneck": 20}


def logits(model: ResNet, variables: Any, kind: str) -> np.ndarray:
    apply = jax.jit(lambda images: model.apply(variables, images, train=False))
    return np.asarray(apply(example_images(SIDES[kind])))


@cache
def stored(kind: str) -> Arrays:
    return read_arrays(FILES[kind])[0]


def write(path: Path, arrays: Arrays) -> Path:
    path.write_bytes(safetensors.numpy.save(arrays))
    return path


@pytest.mark.parametrize("kind", FILES)
def test_logits_are_those_of_pytorch(kind: str) -> None:
    model, variables, metadata = read_weights(FILES[kind])
    wanted = np.array(json.loads(metadata["logits"]))
    assert np.ptp(wanted, axis=0).min() > 0.01  # They depend on the image.
    np.testing.assert_allclose(logits(model, variables, kind), wanted, atol=1e-5)


def test_the_network_is_inferred() -> None:
    basic, bottleneck = (read_weights(file).model for file in FILES.values())
    assert basic.block is BasicBlock and bottleneck.block is Bottleneck
    assert basic.blocks == (2, 1, 1, 1) and bottleneck.blocks == (1, 2, 1, 1)
    assert (basic.width, basic.num_classes, basic.pool_stem) == (2, 3, False)
    assert (bottleneck.width, bottleneck.num_classes, bottleneck.pool_stem) == (
        *(2, 3, True),
    )


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_networks_of_the_table_have_the_names_of_torchvision(
    name: str, tmp_path: Path
) -> None:
    """By what is written, whose names and shapes are enough to build it again."""
    model = create_model(name, num_classes=5, width=2, stem="imagenet")
    shapes = jax.eval_shape(
        lambda key: model.init(key, jnp.zeros((1, 1, 1, 1)), train=False),
        jax.random.key(0),
    )
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(to_safetensors(model, variables, {"classes": "a,b"}))
    found = read_weights(path)
    assert found.model == model.clone(epsilon=1e-5)
    assert found.metadata == {"format": "pt", "classes": "a,b"}
    names = set(safetensors.numpy.load(path.read_bytes()))
    blocks = {".".join(name.split(".")[:2]) for name in names if "layer" in name}
    assert len(blocks) == sum(model.blocks)
    # Of a block: two arrays more than its statistics for each norm, and kernels.
    norms = 3 if model.block is Bottleneck else 2
    shortcuts = {name for name in names if name.endswith("downsample.0.weight")}
    assert len(shortcuts) == (4 if model.block is Bottleneck else 3)
    assert len(names) == 5 + 2 + 5 * (norms * len(blocks) + len(shortcuts))


@pytest.mark.parametrize("kind", FILES)
def test_what_is_written_has_the_epsilon_of_pytorch(kind: str, tmp_path: Path) -> None:
    model, variables, _ = read_weights(FILES[kind])
    other = model.clone(epsilon=0.5)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(to_safetensors(other, variables, {}))
    again = read_weights(path)
    before = logits(other, variables, kind)
    assert np.abs(before - logits(model, variables, kind)).max() > 0.01
    np.testing.assert_allclose(logits(*again[:2], kind), before, atol=1e-5)
    # With its own epsilon, a network is written as it was read.
    path.write_bytes(to_safetensors(model, variables, {}))
    assert_same(read_arrays(path)[0], stored(kind))


def test_axes_by_hand() -> None:
    params: Any = read_weights(FILES["bottleneck"]).variables["params"]
    arrays = stored("bottleneck")
    block = params["stage2_block2"]
    theirs = arrays["layer2.1.conv2.weight"]  # [out, in, height, width]
    assert block["spatial"]["kernel"][0, 2, 3, 1] == theirs[1, 3, 0, 2]
    theirs = arrays["layer2.1.conv3.weight"]
    assert block["expand"]["kernel"][3, 7] == theirs[7, 3, 0, 0]
    theirs = arrays["fc.weight"]
    assert params["classifier"]["kernel"][20, 2] == theirs[2, 20]
    theirs = arrays["layer2.0.downsample.1.bias"]
    assert_same(params["stage2_block1"]["shortcut_norm"]["bias"], theirs)


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "model.encoder."])
def test_a_prefix_of_all_names_is_taken_off(prefix: str, tmp_path: Path) -> None:
    arrays = {f"{prefix}{name}": array for name, array in stored("basic").items()}
    found = read_weights(write(tmp_path / "weights.safetensors", arrays))
    assert_same(found.variables, read_weights(FILES["basic"]).variables)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floats_become_float32(dtype: str, tmp_path: Path) -> None:
    arrays = {name: array.astype(dtype) for name, array in stored("basic").items()}
    found = read_weights(write(tmp_path / "weights.safetensors", arrays)).variables
    wanted = arrays["conv1.weight"].astype(np.float32)
    kernel: Any = found["params"]
    assert_same(kernel["stem"]["kernel"], wanted.transpose(2, 3, 1, 0))


def test_a_file_of_numpy(tmp_path: Path) -> None:
    counters = {"bn1.num_batches_tracked": np.array(7)}
    np.savez(tmp_path / "weights.npz", **stored("basic"), **counters)
    found = read_weights(tmp_path / "weights.npz")
    assert found.metadata == {}
    assert_same(found.variables, read_weights(FILES["basic"]).variables)


def without(*names: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {k: v for k, v in arrays.items() if k not in names}


def replaced(**changes: Any) -> Callable[[Arrays], Arrays]:
    names = {name.replace("__", "."): array for name, array in changes.items()}
    return lambda arrays: arrays | names


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


BAD = {
    "two missing": (
        without("bn1.bias", "fc.weight"),
        r"2 \+ 1 \+ 1 \+ 1 basic blocks is nearest: it lacks bn1.bias, fc.weight$",
    ),
    "no stem": (without("conv1.weight"), "nearest: it lacks conv1.weight$"),
    "left over": (
        replaced(layer1__0__se__fc1__weight=zeros(1), head__bias=zeros(1)),
        "nearest: it has besides head.bias, layer1.0.se.fc1.weight$",
    ),
    "another shape": (
        replaced(fc__bias=zeros(4), layer1__0__bn1__weight=zeros(2, 1)),
        r"of another shape are fc.bias \(\[4\], not \[3\]\), layer1.0.bn1.weight"
        r" \(\[2, 1\], not \[2\]\)$",
    ),
    "not finite": (
        replaced(
            fc__bias=np.float32([0, np.nan, 0]), bn1__bias=np.float32([0, np.inf])
        ),
        "not finite are values of bn1.bias, fc.bias$",
    ),
    "beyond float32": (
        replaced(fc__bias=np.array([1e300, 0, 0])),
        "not finite are values of fc.bias$",
    ),
    "integers": (
        replaced(fc__bias=np.zeros(3, np.int8), bn1__bias=np.zeros(2, np.int64)),
        "bn1.bias, fc.bias must hold floating-point numbers",
    ),
    "ResNeXt": (
        replaced(layer1__0__conv2__weight=zeros(2, 1, 3, 3)),
        r"layer1.0.conv2.weight, of shape \[2, 1, 3, 3\], shows grouped convolutions",
    ),
    "ResNet-D": (
        replaced(conv1__0__weight=zeros(2, 3, 3, 3)),
        "conv1.0.weight, of shape .*, shows a stem of several convolutions",
    ),
    "another stem": (
        replaced(conv1__weight=zeros(2, 3, 5, 5)),
        r"conv1.weight, of shape \[2, 3, 5, 5\], shows a stem of neither 7x7 nor 3x3",
    ),
    "no kernel": (
        replaced(conv1__weight=zeros(2)),
        r"of another shape are conv1.weight \(\[2\], not \[64, 3, 7, 7\]\)$",
    ),
    "another network": (
        lambda arrays: {"cls_token": zeros(1), "head.weight": zeros(2, 2)},
        "it lacks .*layer1.0.conv1.weight.*; it has besides cls_token, head.weight$",
    ),
    "nothing": (lambda arrays: {}, "it lacks .*conv1.weight"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_arrays_are_named_in_one_sentence(name: str, tmp_path: Path) -> None:
    change, message = BAD[name]
    path = write(tmp_path / "weights.safetensors", change(stored("basic")))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_weights(path)
    assert str(caught.value).startswith(f"{path}") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "weights.pth",
            b"PK",
            r"is no .safetensors or .npz .*torch.load\('weights.pth'",
        ),
        (
            "weights.safetensors",
            b"PK\x03\x04 a zip",
            "damaged or no .safetensors .*load",
        ),
        ("weights.safetensors", b"", "damaged or no .safetensors file"),
        ("weights.npz", b"\x80\x02 a pickle", r"damaged or no .npz file .*torch\.load"),
        ("weights.npz", b"", "damaged or no .npz file"),
        ("weights.npz", None, "cannot be read: No such file"),
        ("weights.safetensors", None, "cannot be read: No such file"),
    ],
)
def test_files_that_are_none(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{re.escape(str(path))}.*{message}"):
        read_weights(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_file_that_was_cut_off_or_changed(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".npz":
        np.savez(path, **stored("basic"))
    else:
        write(path, stored("basic"))
    whole = path.read_bytes()
    for length in (1, 9, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            read_weights(path)


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "weights.npz", a=np.array([Path("x")], object))
    with pytest.raises(CheckpointError, match="damaged or no .npz .*pickle"):
        read_weights(tmp_path / "weights.npz")


def test_what_torchvision_has_no_counterpart_of() -> None:
    for name, options in (
        ("resnet26_attention_conv12", {}),
        ("resnet26", {"stem": "attention"}),
    ):
        model = create_model(name, num_classes=5, **options)
        with pytest.raises(ConfigError, match="with attention has no counterpart"):
            to_safetensors(model, {}, {})
    model = create_model("resnet26", num_classes=5, widths=(BlockWidths(1, 1),) * 8)
    with pytest.raises(ConfigError, match="compacted network has no counterpart"):
        to_safetensors(model, {}, {})
