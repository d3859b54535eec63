"""The table of coupled channels: all that is cut with a channel or a head.

A unit is a channel or a head inside a block. It stays or goes at once in all the arrays
that it runs through, which Torch-Pruning calls a dependency group (arXiv 2301.12900):

- its producers, the slices of kernels that compute it;
- its consumers, the slices of kernels that use it;
- its followers, whatever else has an entry for it: the BatchNorm between the two, or
  the position embeddings of queries and keys.

Masks (`channels`), the search for widths (`widths`) and compaction (`compact`) read it
from here. A new kind of block is one entry of `BLOCKS`, and one of `compact.ANALYSES`
if more of its units may go than those that nothing consumes.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import numpy as np

from alite_jax.models.blocks import BlockWidths
from alite_jax.models.layers import HeadDims
from alite_jax.trees import named_leaves

STRUCTURES = ("none", "channels", "heads")  # What `pruning.structure` may be.


class UnitKind(NamedTuple):
    """A kind of units in a kind of blocks.

    Attributes:
        name: of the factor of an axis that numbers the units of a set.
        width: the field of the block's widths that counts them.
        structures: those of `STRUCTURES` that prune them.
        sets: the factor that numbers sets of equally many units; `""` for a single set.
        channels: that `width` counts for a unit; None if it counts the units, whose
            number need not be a multiple.
    """

    name: str
    width: str
    structures: tuple[str, ...]
    sets: str = ""
    channels: int | None = 1

    def step(self, multiple: int) -> int:
        """How many units of a set make a multiple of channels, at least one."""
        return max(1, multiple // self.channels) if self.channels else 1


class Axis(NamedTuple):
    """An axis of an array that is made of units; names are separated by spaces.

    Attributes:
        path: of the array in its block, or of a module with this axis in all arrays.
        axis: its number.
        factors: what it is a product of, outermost first, kinds of units among them.
        produces: the kinds of units that it computes.
        consumes: the kinds of units that it uses.
        only_set: the one set of units that lies along it; all of them if None.
    """

    path: str
    axis: int
    factors: str
    produces: str = ""
    consumes: str = ""
    only_set: int | None = None


class BlockKind(NamedTuple):
    """A kind of blocks.

    Attributes:
        name: for `compact.ANALYSES`.
        units: that it may have fewer of.
        axes: of its arrays, in an order in which each has at most one new factor.
        widths: makes its widths from the fields that count the units.
    """

    name: str
    units: tuple[UnitKind, ...]
    axes: tuple[Axis, ...]
    widths: Callable[..., BlockWidths]


def _attention_widths(reduce: int, heads: int, value: int, qk: int) -> BlockWidths:
    return BlockWidths(reduce, heads * value, HeadDims(heads, qk, value))


_HALVES = {"half": 2}  # Of a head's queries and keys one sees the row, one the column.

BLOCKS = (
    BlockKind(
        "convolution",
        units=(
            UnitKind("reduce", width="reduce", structures=("channels", "heads")),
            UnitKind("value", width="features", structures=("channels", "heads")),
        ),
        axes=(
            Axis("reduce/kernel", 1, "reduce", produces="reduce"),
            Axis("reduce_norm", 0, "reduce"),
            Axis("spatial/kernel", 2, "reduce", consumes="reduce"),
            Axis("spatial/kernel", 3, "value", produces="value"),
            Axis("spatial_norm", 0, "value"),
            Axis("expand/kernel", 0, "value", consumes="value"),
        ),
        widths=BlockWidths,
    ),
    BlockKind(
        "attention",
        units=(
            UnitKind("reduce", width="reduce", structures=("channels", "heads")),
            UnitKind("head", width="heads", structures=("heads",), channels=None),
            UnitKind("value", width="value", structures=("channels",), sets="head"),
            UnitKind(
                "qk", width="qk", structures=("channels",), sets="half", channels=2
            ),
        ),
        axes=(
            Axis("reduce/kernel", 1, "reduce", produces="reduce"),
            Axis("reduce_norm", 0, "reduce"),
            Axis("spatial/query/kernel", 0, "reduce", consumes="reduce"),
            Axis("spatial/key/kernel", 0, "reduce", consumes="reduce"),
            Axis("spatial/value/kernel", 0, "reduce", consumes="reduce"),
            # All heads have the same embeddings, and so the same of these channels.
            Axis("spatial/row_embeddings", 1, "qk", only_set=0),
            Axis("spatial/column_embeddings", 1, "qk", only_set=1),
            Axis(
                "spatial/query/kernel",
                1,
                "head half qk",
                produces="head",
                consumes="qk",
            ),
            Axis("spatial/key/kernel", 1, "head half qk", produces="head qk"),
            Axis("spatial/value/kernel", 1, "head value", produces="head value"),
            Axis("spatial_norm", 0, "head value"),
            Axis("expand/kernel", 0, "head value", consumes="head value"),
        ),
        widths=_attention_widths,
    ),
    BlockKind(
        "basic",
        units=(
            UnitKind("between", width="features", structures=("channels", "heads")),
        ),
        axes=(
            Axis("spatial1/kernel", 3, "between", produces="between"),
            Axis("spatial1_norm", 0, "between"),
            Axis("spatial2/kernel", 2, "between", consumes="between"),
        ),
        widths=lambda features: BlockWidths(features, features),
    ),
)


class Slices(NamedTuple):
    """What units of one kind have along an `Axis` of a network, in which role.

    `view` are the sizes of its factors, `units` the same, but 1 where a unit has the
    whole of a factor; `role` is `"producer"`, `"consumer"` or `"follower"`.
    """

    path: str
    axis: int
    role: str
    view: tuple[int, ...]
    units: tuple[int, ...]
    only_set: int | None

    def along(self, units: Any) -> Any:
        """Spreads bools of units, `[sets, size]`, over the axis, `[length]`."""
        units = units if self.only_set is None else units[self.only_set]
        return (units.reshape(self.units) & np.ones(self.view, bool)).ravel()


class Group(NamedTuple):
    """The units of one kind in one block.

    Attributes:
        name: such as `"stage1_block1/value"`.
        kind: of the units.
        shape: (sets, size); each set keeps the same number of its units.
        slices: all that goes with them.
    """

    name: str
    kind: UnitKind
    shape: tuple[int, int]
    slices: tuple[Slices, ...]

    def consumed(self, leaves: Mapping[str, Any]) -> Any:
        """Sums over the consumers of each unit, `[sets, size]`; `leaves` by path."""
        total: Any = 0.0
        for part in self.slices:
            if part.role == "consumer":
                leaf = leaves[part.path]
                others = tuple(i for i in range(leaf.ndim) if i != part.axis)
                whole = tuple(i for i, n in enumerate(part.units) if n != part.view[i])
                along = leaf.sum(others).reshape(part.view)
                total = total + along.sum(whole).reshape(self.shape)
        return total


class Block(NamedTuple):
    """A block of a network, and its units in the order of the table."""

    name: str
    kind: BlockKind
    groups: tuple[Group, ...]

    def widths(self, counts: Mapping[str, int]) -> BlockWidths:
        """The widths if a group keeps so many units of a set, by its name, or all."""
        fields = {}
        for group in self.groups:
            count = counts.get(group.name, group.shape[1])
            fields[group.kind.width] = count * (group.kind.channels or 1)
        return self.kind.widths(**fields)


def find_blocks(params: Mapping[str, chex.ArrayTree]) -> dict[str, Block]:
    """The blocks of a network by name, sorted, from its parameters or their shapes."""
    blocks = {}
    for name in sorted(params):
        shapes = {path: leaf.shape for path, leaf in named_leaves(params[name])}
        for kind in BLOCKS:
            kernels = [a.path for a in kind.axes if a.produces or a.consumes]
            if all(path in shapes for path in kernels):
                blocks[name] = _block(name, kind, shapes)
    return blocks


def unit_groups(
    params: Mapping[str, chex.ArrayTree], structure: str
) -> tuple[Group, ...]:
    """The units of a network that one of `STRUCTURES` prunes, sorted by block."""
    return tuple(
        group
        for block in find_blocks(params).values()
        for group in block.groups
        if structure in group.kind.structures
    )


def _block(name: str, kind: BlockKind, shapes: Mapping[str, tuple[int, ...]]) -> Block:
    sizes = dict(_HALVES)
    for axis in kind.axes:
        factors = axis.factors.split()
        known = math.prod(sizes.get(factor, 1) for factor in factors)
        for factor in set(factors) - set(sizes):
            sizes[factor] = shapes[axis.path][axis.axis] // known
    groups = []
    for unit in kind.units:
        shape = sizes.get(unit.sets, 1), sizes[unit.name]
        slices = tuple(
            _slices(name, axis, unit, sizes)
            for axis in kind.axes
            if unit.name in axis.factors.split()
        )
        groups.append(Group(f"{name}/{unit.name}", unit, shape, slices))
    return Block(name, kind, tuple(groups))


def _slices(block: str, axis: Axis, unit: UnitKind, sizes: Mapping[str, int]) -> Slices:
    role = "follower"
    if unit.name in axis.produces.split():
        role = "producer"
    elif unit.name in axis.consumes.split():
        role = "consumer"
    factors = axis.factors.split()
    return Slices(
        f"{block}/{axis.path}",
        axis.axis,
        role,
        view=tuple(sizes[f] for f in factors),
        units=tuple(sizes[f] if f in (unit.sets, unit.name) else 1 for f in factors),
        only_set=axis.only_set,
    )
