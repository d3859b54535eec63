"""Compacted networks: the same logits from smaller arrays."""

import functools
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import assert_same

from alite_jax.models.blocks import BasicBlock, BlockWidths, Bottleneck
from alite_jax.models.layers import Conv3x3, HeadDims, LocalSelfAttention
from alite_jax.models.resnet import NORM_EPSILON, ResNet
from alite_jax.sparsity.masks import is_prunable
from alite_jax.structure.compact import Compacted, compact, cut_tree
from alite_jax.trees import named_leaves, nested

IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 2)).astype(np.float32)


@functools.cache
def build(*operators: str, kernel_size: int = 3, border: str = "zero") -> ResNet:
    """A stage of each operator; all blocks but the second one have a shortcut.

    The operator `"basic"` is a convolution in basic blocks.
    """
    attention = partial(LocalSelfAttention, kernel_size=kernel_size, border=border)
    spatial = tuple(attention if name == "attention" else Conv3x3 for name in operators)
    return ResNet(
        (2, 1)[: len(spatial)],
        spatial,
        num_classes=5,
        width=16,
        block=BasicBlock if "basic" in operators else Bottleneck,
        epsilon=1e-2,  # Not the one that networks have by themselves.
    )


def drawn(
    model: ResNet, seed: int, image_shape: tuple[int, int, int] = IMAGES.shape[1:]
) -> dict[str, Any]:
    """Variables with statistics and shifts as after some training."""
    random = np.random.default_rng(seed)

    def draw(path: str, leaf: Any) -> np.ndarray:
        values = random.normal(size=leaf.shape).astype(np.float32)
        if path.endswith("kernel"):
            return values * np.float32(np.sqrt(2 / leaf.size * leaf.shape[-1]))
        return {"var": 0.2 + values**2, "scale": 1 + values / 4}.get(
            path.rpartition("/")[2], values / 2
        )

    return {
        kind: nested({path: draw(path, leaf) for path, leaf in named_leaves(tree)})
        for kind, tree in shapes_of(model, image_shape).items()
    }


@functools.cache
def shapes_of(model: ResNet, image_shape: tuple[int, int, int]) -> Any:
    init = partial(model.init, train=False)
    images = np.zeros((1, *image_shape), np.float32)
    return jax.eval_shape(init, jax.random.key(0), images)


def masked(
    variables: dict[str, Any], seed: int, density: float, share: float
) -> dict[str, Any]:
    """Prunes weights at random, and whole rows and columns of kernels."""
    random = np.random.default_rng(seed)

    def draw(path: str, leaf: np.ndarray) -> np.ndarray:
        if not is_prunable(path, leaf):
            return np.array(True)
        mask = random.random(leaf.shape) < density
        for axis in (-2, -1) if path.startswith("stage") else ():
            gone = random.random(mask.shape[axis]) < share
            np.moveaxis(mask, axis, 0)[gone] = False
        return mask

    params = variables["params"]
    masks = nested({path: draw(path, leaf) for path, leaf in named_leaves(params)})
    params = jax.tree.map(lambda mask, leaf: mask * leaf, masks, params)
    return {**variables, "params": params, "masks": masks}


def logits(model: ResNet, variables: Any) -> tuple[Any, Any]:
    """In evaluation mode and in training."""

    def run(variables: Any, images: Any) -> Any:
        training = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return model.apply(variables, images, train=False), training[0]

    weights = {name: variables[name] for name in ("params", "batch_stats")}
    return jax.device_get(jax.jit(run)(weights, IMAGES))


@pytest.mark.parametrize(
    ("operators", "kernel_size", "border", "multiple"),
    [
        pytest.param("conv conv", 3, "zero", 1, marks=pytest.mark.slow),
        pytest.param("attention attention", 3, "zero", 1, marks=pytest.mark.slow),
        pytest.param("attention attention", 7, "mask", 1, marks=pytest.mark.slow),
        pytest.param("attention attention", 3, "mask", 4, marks=pytest.mark.slow),
        ("conv attention", 7, "zero", 1),
        ("basic basic", 3, "zero", 1),
        pytest.param("conv attention", 3, "mask", 8, marks=pytest.mark.slow),
    ],
)
def test_logits_are_those_of_the_masked_network(
    operators: str, kernel_size: int, border: str, multiple: int
) -> None:
    model = build(*operators.split(), kernel_size=kernel_size, border=border)
    pruned = masked(drawn(model, seed=1), 0, density=0.5, share=0.4)
    found = compact(model, pruned, multiple)
    before = sum(leaf.size for leaf in jax.tree.leaves(pruned["params"]))
    after = sum(leaf.size for leaf in jax.tree.leaves(found.variables["params"]))
    assert after < (0.85 if multiple == 1 else 0.95) * before
    for wanted, ours in zip(
        logits(model, pruned), logits(found.model, found.variables), strict=True
    ):
        np.testing.assert_allclose(ours, wanted, atol=2e-5 * np.abs(wanted).max())


def test_what_stays_is_what_has_an_effect() -> None:
    """By hand: one block, 16 channels, 2 heads of 8."""
    model = ResNet((1,), build("attention").spatial, num_classes=5, width=16)
    variables = drawn(model, seed=2)
    block = variables["params"]["stage1_block1"]
    spatial = block["spatial"]
    # Three channels that nothing consumes, one that is zero whatever the image ...
    for name in ("query", "key", "value"):
        spatial[name]["kernel"][[1, 2, 5]] = 0
    block["reduce"]["kernel"][:, 7] = 0
    block["reduce_norm"]["bias"][7] = -9
    # ... and one that is a constant, which stays.
    block["reduce"]["kernel"][:, 8] = 0
    block["reduce_norm"]["bias"][8] = 9
    # Of the first head's values two give nothing, of the second's one is not consumed.
    spatial["value"]["kernel"][:, [0, 3]] = 0
    block["expand"]["kernel"][12] = 0
    # A channel of the queries is gone in both heads; another in one of them only.
    spatial["query"]["kernel"][:, [4, 12, 6]] = 0
    # One of the keys is gone, but has a position embedding.
    spatial["key"]["kernel"][:, [5, 13]] = 0
    masks = jax.tree.map(lambda leaf: np.asarray(True), variables["params"])
    found = compact(model, {**variables, "masks": masks})
    assert kept_of(found, "reduce/kernel", 1) == set(range(16)) - {1, 2, 5, 7}
    # Both heads keep 7: the first one a channel without effect.
    assert found.model.widths == (BlockWidths(12, 14, HeadDims(2, 8, 7)),)
    assert kept_of(found, "expand/kernel", 0) == set(range(16)) - {3, 12}
    # The other half of the channels has all four in use, so nothing goes.
    assert kept_of(found, "spatial/query/kernel", 1) == set(range(16))
    spatial["query"]["kernel"][:, [1, 9]] = 0
    found = compact(model, {**variables, "masks": masks})
    assert found.model.widths == (BlockWidths(12, 14, HeadDims(2, 6, 7)),)
    assert kept_of(found, "spatial/row_embeddings", 1) == {0, 2, 3}
    assert kept_of(found, "spatial/column_embeddings", 1) == {1, 2, 3}
    # A head without values goes as a whole.
    spatial["value"]["kernel"][:, 8:] = 0
    found = compact(model, {**variables, "masks": masks})
    assert found.model.widths[0].dims == HeadDims(1, 6, 6)
    assert max(kept_of(found, "expand/kernel", 0)) < 8
    wanted, _ = logits(model, variables)
    ours, _ = logits(found.model, found.variables)
    np.testing.assert_allclose(ours, wanted, atol=2e-5 * np.abs(wanted).max())


def kept_of(found: Compacted, array: str, axis: int) -> set[int]:
    return set(found.kept[f"stage1_block1/{array}", axis].tolist())


def test_a_network_that_is_dense_stays_as_it_is() -> None:
    model = build("conv", "attention")
    variables = drawn(model, seed=3)
    masks = jax.tree.map(lambda leaf: np.asarray(True), variables["params"])
    found = compact(model, {**variables, "masks": masks})
    assert_same(found.variables, {**variables, "masks": masks})


@given(st.integers(0, 99), st.floats(0.05, 1), st.floats(0, 1), st.integers(1, 16))
@settings(max_examples=10, deadline=None)
def test_compaction_is_done_once(
    seed: int, density: float, share: float, multiple: int
) -> None:
    """Shapes fit the model, at least one channel stays, and nothing more can go."""
    model = build("conv", "attention")
    pruned = masked(drawn(model, seed), seed, density, share)
    found = compact(model, pruned, multiple)
    shapes = shapes_of(found.model, IMAGES.shape[1:])
    for kind in ("params", "batch_stats"):
        assert jax.tree.map(lambda a: a.shape, shapes[kind]) == jax.tree.map(
            np.shape, found.variables[kind]
        )
    kept = jax.tree.map(
        lambda mask, leaf: mask.shape in ((), leaf.shape),
        found.variables["masks"],
        found.variables["params"],
    )
    assert all(jax.tree.leaves(kept))
    again = compact(found.model, found.variables, multiple)
    assert again.model.widths == found.model.widths
    # Whatever goes with the parameters is cut in the same way.
    momentum = cut_tree(found.kept, pruned["params"])
    assert_same(momentum, found.variables["params"])


# One block of the name below, of which `compact` needs no more than the weights.
ONE_BLOCK = ResNet(blocks=(1,), spatial=(Conv3x3,), num_classes=1)
INPUTS = np.random.default_rng(1).normal(size=(2, 3, 3, 4))
KERNELS = ("reduce", "kernel", "query", "key", "value", "embeddings", "expand")


def sparse_block(
    dims: HeadDims | None, width: int, densities: dict[str, float], seed: int
) -> dict[str, Any]:
    """Variables of one block whose kernels have weights with these probabilities.

    Embeddings are drawn as whole channels. Without heads it is a convolution.
    """
    random = np.random.default_rng(seed)

    def draw(name: str, *shape: int) -> np.ndarray:
        there = random.random(shape) < densities[name]
        return np.float32(random.normal(size=shape) * there)

    def embeddings(half: int) -> np.ndarray:
        return draw("embeddings", 1, half) * np.float32(random.normal(size=(3, half)))

    def norm(channels: int) -> tuple[dict[str, Any], dict[str, Any]]:
        scale, bias, mean, var = random.normal(size=(4, channels)).astype(np.float32)
        return {"scale": 1 + scale / 4, "bias": bias - 1}, {"mean": mean, "var": var**2}

    if dims is None:
        features = width
        spatial: Any = {"kernel": draw("kernel", 3, 3, width, features)}
    else:
        features, qk = dims.heads * dims.value, dims.heads * dims.qk
        spatial = {
            "query": {"kernel": draw("query", width, qk)},
            "key": {"kernel": draw("key", width, qk)},
            "value": {"kernel": draw("value", width, features)},
            "row_embeddings": embeddings(dims.qk // 2),
            "column_embeddings": embeddings(dims.qk // 2),
        }
    norms = {
        "reduce_norm": norm(width),
        "spatial_norm": norm(features),
        "expand_norm": norm(6),
    }
    params = {
        "reduce": {"kernel": draw("reduce", INPUTS.shape[-1], width)},
        "spatial": spatial,
        "expand": {"kernel": draw("expand", features, 6)},
        **{name: parts[0] for name, parts in norms.items()},
    }
    statistics = {name: parts[1] for name, parts in norms.items()}
    return {
        "params": {"stage1_block1": params},
        "batch_stats": {"stage1_block1": statistics},
    }


def branch(variables: dict[str, Any], heads: int, train: bool) -> np.ndarray:
    """What one block adds to its shortcut, in NumPy and float64."""
    params, statistics = (
        variables[kind]["stage1_block1"] for kind in ("params", "batch_stats")
    )

    def norm(maps: np.ndarray, name: str) -> np.ndarray:
        mean, var = statistics[name]["mean"], statistics[name]["var"]
        if train:
            mean, var = maps.mean(axis=(0, 1, 2)), maps.var(axis=(0, 1, 2))
        maps = (maps - mean) / np.sqrt(var + NORM_EPSILON)
        return maps * params[name]["scale"] + params[name]["bias"]

    def by_head(maps: np.ndarray) -> np.ndarray:
        return maps.reshape(*maps.shape[:-1], heads, -1)

    spatial = params["spatial"]
    maps = norm(INPUTS @ params["reduce"]["kernel"], "reduce_norm").clip(0)
    padded = np.pad(maps, [(0, 0), (1, 1), (1, 1), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    if heads == 0:
        maps = np.einsum("bijcuv,uvcd->bijd", windows, spatial["kernel"])
    else:
        windows = np.moveaxis(windows.reshape(*maps.shape, 9), -1, -2)
        rows, columns = (spatial[f"{name}_embeddings"] for name in ("row", "column"))
        offsets = np.concatenate(
            [np.repeat(rows, 3, axis=0), np.tile(columns, (3, 1))], axis=1
        )
        keys = by_head(windows @ spatial["key"]["kernel"]) + offsets[:, None]
        queries = by_head(maps @ spatial["query"]["kernel"])
        products = np.einsum("bijhd,bijwhd->bijwh", queries, keys)
        weights = np.exp(products - products.max(axis=3, keepdims=True))
        weights /= weights.sum(axis=3, keepdims=True)
        values = by_head(windows @ spatial["value"]["kernel"])
        output = np.einsum("bijwh,bijwhd->bijhd", weights, values)
        maps = output.reshape(*maps.shape[:3], -1)
    maps = norm(maps, "spatial_norm").clip(0) @ params["expand"]["kernel"]
    return norm(maps, "expand_norm")


@contextmanager
def seconds_of_cpu(most: float) -> Iterator[None]:
    """Ends what would never end by itself."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"not done after {most} s of CPU time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, most)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def compacted(variables: dict[str, Any], multiple: int) -> tuple[Compacted, Any]:
    """Compacts one block and returns its widths, too."""
    with seconds_of_cpu(5):
        found = compact(ONE_BLOCK, variables, multiple)
    assert found.model.widths is not None
    return found, found.model.widths[0]


def assert_same_branch(
    variables: dict[str, Any], dims: HeadDims | None, found: Compacted
) -> None:
    assert found.model.widths is not None
    left = found.model.widths[0].dims
    for train in (False, True):
        wanted = branch(variables, dims.heads if dims else 0, train)
        ours = branch(found.variables, left.heads if left else 0, train)
        np.testing.assert_allclose(ours, wanted, atol=1e-5 * np.abs(wanted).max())


def test_channels_that_fill_up_keep_no_others() -> None:
    """A head that only stays because one has to; its query has a weight."""
    dims = HeadDims(2, 16, 16)
    variables = sparse_block(dims, 32, dict.fromkeys(KERNELS, 1.0), seed=0)
    block = variables["params"]["stage1_block1"]
    block["reduce"]["kernel"][:, 0] = 0
    block["reduce_norm"]["bias"][0] = 0
    variables["batch_stats"]["stage1_block1"]["reduce_norm"]["mean"][0] = 0
    for name in ("query", "key", "value"):
        block["spatial"][name]["kernel"][:] = 0
    block["spatial"]["query"]["kernel"][0, 1] = 1
    block["spatial"]["key"]["kernel"][1:4, 1] = 1
    found, widths = compacted(variables, 1)
    assert widths == BlockWidths(1, 1, HeadDims(1, 2, 1))
    assert_same_branch(variables, dims, found)


@given(
    dims=st.sampled_from(
        [None, HeadDims(1, 8, 8), HeadDims(2, 16, 3), HeadDims(4, 2, 8)]
    ),
    width=st.sampled_from([3, 32]),
    densities=st.fixed_dictionaries(
        dict.fromkeys(KERNELS, st.sampled_from([0.001, 0.01, 0.05, 0.2, 1.0]))
    ),
    multiple=st.sampled_from([1, 2, 4, 8]),
    seed=st.integers(0, 9999),
)
@example(
    dims=HeadDims(1, 8, 8),
    width=32,
    densities=dict(
        zip(KERNELS, [0.001, 0.001, 0.01, 0.2, 0.05, 1.0, 0.2], strict=True)
    ),
    multiple=2,
    seed=46,
)
@settings(max_examples=100, deadline=None)
def test_sparse_blocks(
    dims: HeadDims | None,
    width: int,
    densities: dict[str, float],
    multiple: int,
    seed: int,
) -> None:
    """Compaction ends, changes no result and keeps no more than multiples demand."""
    variables = sparse_block(dims, width, densities, seed)
    found, widths = compacted(variables, multiple)
    assert_same_branch(variables, dims, found)
    again, _ = compacted(found.variables, multiple)
    assert_same(again.variables, found.variables)

    def rounded(left: int, unit: int, most: int) -> int:
        return min(math.ceil(left / unit) * unit, most)

    _, least = compacted(variables, 1)
    assert widths.reduce == rounded(least.reduce, multiple, width)
    if dims is None:
        assert widths.features == rounded(least.features, multiple, width)
    else:
        heads, qk, value = least.dims
        both_halves = 2 * max(1, multiple // 2)
        qk = rounded(qk, both_halves, dims.qk)
        assert widths.dims == (heads, qk, rounded(value, multiple, dims.value))
        assert widths.features == heads * widths.dims.value
