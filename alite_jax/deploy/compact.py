"""From masks to a smaller dense network that computes the same.

What a block does inside goes through channels that can be cut out whole:

- a channel between `reduce` and the spatial operator, with its BatchNorm and the rows
  of the operator's kernels that take it;
- a channel of the values, or of a convolution's output, with its BatchNorm and the row
  of `expand`;
- a channel of the queries and keys, the same in all heads, whose embeddings are shared,
  with its column of the embeddings;
- a head, with all its values, queries and keys.

One goes if nothing takes it, or if it is zero whatever the image. A channel of the
values that does not depend on the image is a constant after BatchNorm and ReLU; what
`expand` makes of it moves into the running mean of the BatchNorm that follows. All
heads of a layer keep equal widths, and widths can be rounded up to a multiple, in which
case some channels stay that could go; these keep no others.

In training, BatchNorm takes the statistics of the batch, of which a constant changes
nothing but the mean: a compacted network gives what the masked one gives there, too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from alite_jax.deploy.precision import logits_change
from alite_jax.errors import ArtefactError
from alite_jax.models.layers import HeadDims
from alite_jax.models.resnet import NORM_EPSILON, BlockWidths, ResNet

# Of the largest logit.
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Cut:
    """Which channels of a block stay, by their old numbers, in ascending order.

    Attributes:
        reduce: of those that the spatial operator takes.
        values: of those that it gives, over all heads.
        queries: of the queries and keys, over all heads; empty for a convolution.
        halves: of each half of a head's queries and keys, for the embeddings of the
            row and of the column; empty for a convolution.
        widths: the widths that this leaves.
    """

    reduce: np.ndarray
    values: np.ndarray
    queries: np.ndarray
    halves: tuple[np.ndarray, ...]
    widths: BlockWidths


@dataclass(frozen=True)
class Compacted:
    """A compacted network.

    Attributes:
        model: the smaller network.
        variables: its `params`, `batch_stats` and `masks`.
        cuts: by name of the block, in their order.
    """

    model: ResNet
    variables: dict[str, Any]
    cuts: dict[str, Cut]


def compact(model: ResNet, variables: Any, multiple: int = 1) -> Compacted:
    """Cuts out of a network what its masks and zeros leave without effect.

    Args:
        model: the network; one that was compacted before will do.
        variables: its `params`, `batch_stats` and `masks`, numpy arrays.
        multiple: widths are rounded up to multiples of it where the block is wide
            enough; what a unit of the hardware takes at once.

    Returns:
        A network with the same logits in evaluation mode, but for rounding.
    """
    params = variables["params"]
    statistics = dict(variables["batch_stats"])
    cuts: dict[str, Cut] = {}
    for name in model.block_names:
        block = params[name]
        cuts[name] = _cut(block, statistics[name], multiple)
        statistics[name] = _fold(block, statistics[name], cuts[name])
    widths = tuple(cut.widths for cut in cuts.values())
    folded = {**variables, "batch_stats": statistics}
    smaller = {kind: cut_tree(cuts, tree) for kind, tree in folded.items()}
    return Compacted(model.clone(widths=widths), smaller, cuts)


def cut_tree(cuts: Mapping[str, Cut], tree: Any) -> Any:
    """Cuts a tree like `params`, or `batch_stats`, such as masks or a momentum.

    Args:
        cuts: of a `Compacted`.
        tree: nested dicts, of which those named as blocks are cut.
    """
    result = dict(tree)
    for name, cut in cuts.items():
        result[name] = {
            part: _cut_leaf(part, leaf, cut) for part, leaf in tree[name].items()
        }
    return result


def check_compaction(
    model: ResNet, variables: Any, compacted: Compacted, images: Any
) -> float:
    """Compares the logits of a network and of what was made of it, as `logits_change`.

    Args:
        model: the network.
        variables: of the network.
        compacted: made of both.
        images: normalised, float32 `[batch, height, width, channels]`.

    Returns:
        The largest difference, as a fraction of the largest logit.

    Raises:
        ArtefactError: it is above 1e-5.
    """
    smaller = (compacted.model, compacted.variables)
    error = logits_change((model, variables), smaller, images)
    if not error <= _TOLERANCE:
        raise ArtefactError(
            f"the compacted network's logits differ from the masked one's by"
            f" {error:.1g} of the largest, more than {_TOLERANCE:g}; nothing was"
            " written, please report this"
        )
    return error


def widths_as_json(model: ResNet) -> list[list[int]]:
    """The widths of each block: reduce, features, and heads, qk and value if any."""
    return [
        [width.reduce, width.features, *(width.dims or ())]
        for width in model.widths or ()
    ]


def widths_from_json(widths: list[list[int]]) -> tuple[BlockWidths, ...]:
    """The opposite of `widths_as_json`."""
    return tuple(
        BlockWidths(reduce, features, HeadDims(*dims) if dims else None)
        for reduce, features, *dims in widths
    )


def _cut(block: Any, statistics: Any, multiple: int) -> Cut:
    """Chooses the channels of a block that stay, in a single pass.

    Which of the operator's outputs are alive follows from which of its inputs are made,
    and which inputs are alive from that. There is nothing to repeat: an input goes if
    it is always zero, or if no output that is alive takes it, so that none of these
    loses anything by it.
    """
    # Zero in evaluation and, where the mean of zeros is zero, in training.
    norm = block["reduce_norm"]
    constant = (_shift(norm, statistics["reduce_norm"]) > 0) | (norm["bias"] > 0)
    made = np.any(block["reduce"]["kernel"], axis=0) | constant
    given = np.any(block["expand"]["kernel"], axis=1)
    if "query" in block["spatial"]:
        return _cut_heads(block["spatial"], made, given, multiple)
    # Of booleans, the products here and below say whether any term is true.
    kernel = np.any(block["spatial"]["kernel"], axis=(0, 1))
    alive = (made @ kernel) & given
    reduce = _fill(made & (kernel @ alive), multiple)
    values = _fill(alive, multiple)
    widths = BlockWidths(len(reduce), len(values))
    return Cut(reduce, values, np.zeros(0, int), (), widths)


def _cut_heads(spatial: Any, made: np.ndarray, given: np.ndarray, multiple: int) -> Cut:
    query, key, value = (
        spatial[name]["kernel"] != 0 for name in ("query", "key", "value")
    )
    half = spatial["row_embeddings"].shape[1]
    heads = query.shape[1] // (2 * half)
    alive = (made @ value) & given
    by_head = alive.reshape(heads, -1)
    alive_heads = by_head.any(axis=1)
    embedded = np.any(
        np.hstack([spatial["row_embeddings"], spatial["column_embeddings"]]), axis=0
    )
    # q . k + q . r: without the query both are zero, with it either may count.
    used = (made @ query) & ((made @ key) | np.tile(embedded, heads))
    used &= np.repeat(alive_heads, 2 * half)
    taken = (value @ alive) | ((query | key) @ used)
    # What is alive is known; channels that only fill up come last and keep no others.
    reduce = _fill(made & taken, multiple)
    kept_heads = _fill(alive_heads, 1)
    width = _round_up(by_head.sum(axis=1).max(), multiple, by_head.shape[1])
    values = np.concatenate(
        [head * by_head.shape[1] + _first(by_head[head], width) for head in kept_heads]
    )
    shared = used.reshape(heads, 2, half).any(axis=0)
    qk = _round_up(shared.sum(axis=1).max(), max(1, multiple // 2), half)
    halves = tuple(_first(of_half, qk) for of_half in shared)
    of_head = np.concatenate([halves[0], half + halves[1]])
    columns = np.concatenate([head * 2 * half + of_head for head in kept_heads])
    dims = HeadDims(len(kept_heads), 2 * qk, width)
    widths = BlockWidths(len(reduce), len(values), dims)
    return Cut(reduce, values, columns, halves, widths)


def _fold(block: Any, statistics: Any, cut: Cut) -> Any:
    """Moves the constants of channels that go into the mean of what follows."""
    constant = np.maximum(_shift(block["spatial_norm"], statistics["spatial_norm"]), 0)
    constant[cut.values] = 0
    moved = constant @ block["expand"]["kernel"].astype(np.float64)
    after = dict(statistics["expand_norm"])
    after["mean"] = (after["mean"] - moved).astype(np.float32)
    return {**statistics, "expand_norm": after}


def _shift(norm: Any, statistics: Any) -> np.ndarray:
    """What BatchNorm gives where its input is zero, float64."""
    deviation = np.sqrt(statistics["var"].astype(np.float64) + NORM_EPSILON)
    shift: np.ndarray = norm["bias"] - statistics["mean"] * norm["scale"] / deviation
    return shift


def _cut_leaf(part: str, leaf: Any, cut: Cut) -> Any:
    """Cuts what a block has under one name, an array or a dict of them."""
    if part == "reduce":
        return {"kernel": _take(leaf["kernel"], cut.reduce, -1)}
    if part in ("reduce_norm", "spatial_norm"):
        kept = cut.reduce if part == "reduce_norm" else cut.values
        return {name: _take(array, kept, 0) for name, array in leaf.items()}
    if part == "expand":
        return {"kernel": _take(leaf["kernel"], cut.values, 0)}
    if part != "spatial":
        return leaf
    if "kernel" in leaf:
        kernel = _take(leaf["kernel"], cut.reduce, 2)
        return {"kernel": _take(kernel, cut.values, 3)}
    found = {}
    for name, columns in (
        ("query", cut.queries),
        ("key", cut.queries),
        ("value", cut.values),
    ):
        kernel = _take(leaf[name]["kernel"], cut.reduce, 0)
        found[name] = {"kernel": _take(kernel, columns, 1)}
    for name, kept in zip(
        ("row_embeddings", "column_embeddings"), cut.halves, strict=True
    ):
        found[name] = _take(leaf[name], kept, 1)
    return {name: found[name] for name in leaf}


def _take(array: Any, kept: np.ndarray, axis: int) -> Any:
    """Cuts an array; a mask of what is never pruned is a scalar and stays."""
    return array if np.ndim(array) == 0 else np.take(array, kept, axis)


def _fill(alive: np.ndarray, multiple: int) -> np.ndarray:
    """The channels to keep: those alive, at least one, and others up to a multiple."""
    return _first(alive, _round_up(alive.sum(), multiple, len(alive)))


def _first(alive: np.ndarray, width: int) -> np.ndarray:
    """`width` channels, those alive before others, in ascending order."""
    return np.sort(np.argsort(~alive, kind="stable")[:width])


def _round_up(width: int, multiple: int, most: int) -> int:
    return min(math.ceil(max(1, width) / multiple) * multiple, most)
