"""From masks to a smaller dense network that computes the same.

A unit of the table of `units` is cut out if nothing consumes it, or if it is zero
whatever the image. A channel of the values that does not depend on the image is a
constant after BatchNorm and ReLU; what `expand` makes of it moves into the running mean
of the BatchNorm that follows. All sets of a kind of units keep equally many, and widths
can be rounded up to a multiple, in which case some units stay that could go; these keep
no others.

In training, BatchNorm takes the statistics of the batch, of which a constant changes
nothing but the mean: a compacted network gives what the masked one gives there, too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from alite_jax.errors import ArtefactError
from alite_jax.models.blocks import BlockWidths
from alite_jax.models.layers import HeadDims
from alite_jax.models.precision import logits_change
from alite_jax.models.resnet import ResNet
from alite_jax.structure.units import Block, find_blocks
from alite_jax.trees import named_leaves, nested

# Of the largest logit.
_TOLERANCE = 1e-5

# Which indices stay along an axis of an array, or of all arrays of a module: by its
# path and the number of the axis, ascending.
Kept = Mapping[tuple[str, int], np.ndarray]
# The units of a block that may not go, by their kind, each bool `[sets, size]`.
Alive = dict[str, np.ndarray]
# What each BatchNorm of a block gives where its input is zero, by its name, float64.
Shifts = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Compacted:
    """A compacted network.

    Attributes:
        model: the smaller network.
        variables: its `params`, `batch_stats` and `masks`.
        kept: what was kept of the larger one.
    """

    model: ResNet
    variables: dict[str, Any]
    kept: Kept


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
    params, statistics = variables["params"], dict(variables["batch_stats"])
    blocks = find_blocks(params)
    kept: dict[tuple[str, int], np.ndarray] = {}
    widths = []
    for name in model.block_names:
        block = blocks[name]
        shifts = _shifts(params[name], statistics[name], model.epsilon)
        analyse = ANALYSES.get(block.kind.name, _consumed)
        alive = analyse(block, params[name], shifts)
        units = {
            group.name: _fill(alive[group.kind.name], group.kind.step(multiple))
            for group in block.groups
        }
        widths.append(block.widths({g: int(u[0].sum()) for g, u in units.items()}))
        kept |= kept_indices(block, units)
        if analyse is not _consumed:  # What nothing consumes has no constant to move.
            values = kept[f"{name}/spatial_norm", 0]
            statistics[name] = _fold(params[name], statistics[name], shifts, values)
    folded = {**variables, "batch_stats": statistics}
    smaller = {kind: cut_tree(kept, tree) for kind, tree in folded.items()}
    return Compacted(model.clone(widths=tuple(widths)), smaller, kept)


def kept_indices(block: Block, units: Mapping[str, np.ndarray]) -> Kept:
    """Which indices stay: those all of whose units do.

    Args:
        block: of a network.
        units: those that stay, bool `[sets, size]` by the name of their group.
    """
    stays: dict[tuple[str, int], Any] = {}
    for group in block.groups:
        for part in group.slices:
            place = part.path, part.axis
            stays[place] = stays.get(place, True) & part.along(units[group.name])
    return {place: np.flatnonzero(along) for place, along in stays.items()}


def cut_tree(kept: Kept, tree: Any) -> dict[str, Any]:
    """Cuts a tree like `params`, or `batch_stats`, such as masks or a momentum.

    Scalars, which are masks of what is never pruned, stay.
    """

    def cut(path: str, leaf: np.ndarray) -> np.ndarray:
        for (place, axis), indices in kept.items():
            if np.ndim(leaf) > 0 and f"{path}/".startswith(f"{place}/"):
                leaf = np.take(leaf, indices, axis)
        return leaf

    return nested({path: cut(path, leaf) for path, leaf in named_leaves(tree)})


def check_compaction(
    model: ResNet, variables: Any, compacted: Compacted, images: jax.Array
) -> float:
    """Compares the logits of a network and of what was made of it; see `logits_change`.

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


def _consumed(block: Block, params: Any, shifts: Shifts) -> Alive:
    """The units that something consumes: right for any block, but more may go."""
    used = {f"{block.name}/{path}": leaf != 0 for path, leaf in named_leaves(params)}
    return {group.kind.name: group.consumed(used) > 0 for group in block.groups}


def _alive_channels(block: Block, params: Any, shifts: Shifts) -> Alive:
    """The units of a convolution that have an effect, in a single pass.

    Which of the operator's outputs are alive follows from which of its inputs are made,
    and which inputs are alive from that. There is nothing to repeat: an input goes if
    it is always zero, or if no output that is alive consumes it, so that none of these
    loses anything by it.
    """
    made, consumed = _made(params, shifts), np.any(params["expand"]["kernel"], 1)
    # Of booleans, the products here and below say whether any term is true.
    kernel = np.any(params["spatial"]["kernel"], axis=(0, 1))
    values = (made @ kernel) & consumed
    return {"reduce": (made & (kernel @ values))[None], "value": values[None]}


def _alive_heads(block: Block, params: Any, shifts: Shifts) -> Alive:
    """The units of attention that have an effect; see `_alive_channels`."""
    made, consumed = _made(params, shifts), np.any(params["expand"]["kernel"], 1)
    spatial = params["spatial"]
    query, key, value = (
        spatial[name]["kernel"] != 0 for name in ("query", "key", "value")
    )
    embedded = np.any(
        np.hstack([spatial["row_embeddings"], spatial["column_embeddings"]]), axis=0
    )
    heads = query.shape[1] // len(embedded)
    values = (made @ value) & consumed
    by_head = values.reshape(heads, -1)
    alive_heads = by_head.any(axis=1)
    # q . k + q . r: without the query both are zero, with it either may count.
    used = (made @ query) & ((made @ key) | np.tile(embedded, heads))
    used &= np.repeat(alive_heads, len(embedded))
    reduce = made & ((value @ values) | ((query | key) @ used))
    return {
        "reduce": reduce[None],
        "head": alive_heads[None],
        "value": by_head,
        "qk": used.reshape(heads, 2, -1).any(axis=0),  # The same in all heads.
    }


# Not of basic blocks: at the border of a map, after padding, a constant is none.
ANALYSES = {"convolution": _alive_channels, "attention": _alive_heads}


def _made(params: Any, shifts: Shifts) -> np.ndarray:
    """Which inputs of the operator are not zero whatever the image, bool `[reduce]`."""
    # Zero in evaluation and, where the mean of zeros is zero, in training.
    constant = (shifts["reduce_norm"] > 0) | (params["reduce_norm"]["bias"] > 0)
    made: np.ndarray = np.any(params["reduce"]["kernel"], axis=0) | constant
    return made


def _shifts(params: Any, statistics: Any, epsilon: float) -> Shifts:
    shifts = {}
    for name, of_norm in statistics.items():
        norm = params[name]
        deviation = np.sqrt(of_norm["var"].astype(np.float64) + epsilon)
        shifts[name] = norm["bias"] - of_norm["mean"] * norm["scale"] / deviation
    return shifts


def _fill(alive: np.ndarray, step: int) -> np.ndarray:
    """Adds units to those alive, so that each set keeps as many, a multiple of `step`.

    At least one stays, and at most all. Both arrays are bool `[sets, size]`.
    """
    most = max(1, alive.sum(axis=1).max())
    count = math.ceil(most / step) * step
    first = np.argsort(~alive, axis=1, kind="stable")[:, :count]
    kept = np.zeros_like(alive)
    np.put_along_axis(kept, first, True, axis=1)
    return kept


def _fold(
    params: Any, statistics: Any, shifts: Shifts, values: np.ndarray
) -> dict[str, Any]:
    """Moves the constants of values that do not stay into the mean of what follows."""
    constant = np.maximum(shifts["spatial_norm"], 0)
    constant[values] = 0
    moved = constant @ params["expand"]["kernel"].astype(np.float64)
    after = dict(statistics["expand_norm"])
    after["mean"] = (after["mean"] - moved).astype(np.float32)
    return {**statistics, "expand_norm": after}
