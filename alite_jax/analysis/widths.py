"""Inner widths of blocks that bring a network to a given number of MACs.

The cost of a choice is that of the network itself, traced with these widths. All
blocks get about the same fraction of their channels; single steps of single widths
then bring the sum closer to the target than equal fractions can.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from alite_jax.analysis.layers import total_macs
from alite_jax.errors import ConfigError
from alite_jax.models.layers import HeadDims, LocalSelfAttention
from alite_jax.models.resnet import BlockWidths, ResNet

TOLERANCE = 0.02  # of the target
_CLOSE = 0.002  # No need to look for better.
_HALVINGS = 12  # More than any width has steps.

Widths = tuple[BlockWidths, ...]


@dataclass(frozen=True)
class Plan:
    """Widths and what they cost.

    Attributes:
        widths: of each block in their order.
        macs: of the network with these widths.
        dense_macs: of the network with its own.
    """

    widths: Widths
    macs: int
    dense_macs: int


def plan_widths(
    model: ResNet,
    image_shape: tuple[int, int, int],
    structure: str,
    fraction: float,
    multiple: int = 1,
) -> Plan:
    """Chooses the widths.

    Args:
        model: the network, whose widths are those of its stages.
        image_shape: (height, width, channels).
        structure: `"channels"` or `"heads"`, what may be fewer.
        fraction: of the network's MACs that shall be left, in (0, 1].
        multiple: of all widths that are reduced, except where a layer is not so wide;
            the number of heads may be any.

    Raises:
        ConfigError: no widths come within 2 % of it; says what is possible.
    """
    full = full_widths(model)

    @cache
    def macs(widths: Widths) -> int:
        return total_macs(model.clone(widths=widths), image_shape)

    dense = macs(full)
    target = fraction * dense

    def error(widths: Widths) -> float:
        return abs(macs(widths) - target)

    steps = [_steps(width, structure, multiple) for width in full]

    def at(share: float) -> Widths:
        """About this share of each width."""
        return tuple(
            _changed(width, {step.field: step.nearest(share) for step in of_block})
            for width, of_block in zip(full, steps, strict=True)
        )

    best, low, high = full, 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if macs(at(middle)) < target else (low, middle)
        best = min(best, at(middle), key=error)
    while error(best) > _CLOSE * target:
        nearer = min(_neighbours(best, steps), key=error, default=best)
        if error(nearer) >= error(best):
            break
        best = nearer
    plan = Plan(best, macs(best), dense)
    if error(best) > TOLERANCE * target:
        raise ConfigError(
            f"pruning.macs is {fraction:g}, but widths that are multiples of {multiple}"
            f" come no closer than {plan.macs / dense:.3f} of the student's MACs, and"
            f" not below {macs(at(0)) / dense:.3f}; set another fraction or a smaller"
            " pruning.multiple"
        )
    return plan


def full_widths(model: ResNet) -> Widths:
    """The widths of each block, also where the model leaves them to its stages."""
    if model.widths is not None:
        return model.widths
    widths: list[BlockWidths] = []
    stages = zip(model.blocks, model.spatial, strict=True)
    for stage, (blocks, spatial) in enumerate(stages):
        features = model.width * 2**stage
        operator = spatial(features=features)
        attends = isinstance(operator, LocalSelfAttention)
        dims = operator.head_dims() if attends else None
        widths += [BlockWidths(features, features, dims)] * blocks
    return tuple(widths)


def units_of(widths: Widths, names: Sequence[str], structure: str) -> dict[str, int]:
    """How many units each set of a group has; see `alite_jax.sparsity.channels`.

    Args:
        widths: of each block in their order.
        names: of the blocks.
        structure: see `plan_widths`.

    Returns:
        Counts by the group's name, such as `"stage1_block1/value"`.
    """
    counts = {}
    for name, width in zip(names, widths, strict=True):
        counts[f"{name}/reduce"] = width.reduce
        if width.dims is None:
            counts[f"{name}/value"] = width.features
        elif structure == "heads":
            counts[f"{name}/head"] = width.dims.heads
        else:
            counts[f"{name}/value"] = width.dims.value
            counts[f"{name}/qk"] = width.dims.qk // 2
    return counts


class _Step(NamedTuple):
    """A width that may be smaller.

    Attributes:
        field: of `BlockWidths` or of `HeadDims`.
        full: the largest.
        size: the difference between two that are possible.
    """

    field: str
    full: int
    size: int

    def nearest(self, share: float) -> int:
        """About this share of the largest, at least one step."""
        return min(self.full, max(1, round(share * self.full / self.size)) * self.size)

    def neighbours(self, value: int) -> list[int]:
        """The next smaller and the next larger one, if they are possible."""
        smaller = (value - 1) // self.size * self.size
        larger = min(self.full, value // self.size * self.size + self.size)
        return [v for v in (smaller, larger) if v > 0 and v != value]


def _steps(widths: BlockWidths, structure: str, multiple: int) -> list[_Step]:
    dims = widths.dims
    reduce = _Step("reduce", widths.reduce, multiple)
    if dims is None:
        return [reduce, _Step("features", widths.features, multiple)]
    if structure == "heads":
        return [reduce, _Step("heads", dims.heads, 1)]
    both_halves = 2 * max(1, multiple // 2)
    return [
        reduce,
        _Step("value", dims.value, multiple),
        _Step("qk", dims.qk, both_halves),
    ]


def _changed(widths: BlockWidths, changes: dict[str, int]) -> BlockWidths:
    reduce = changes.get("reduce", widths.reduce)
    if widths.dims is None:
        return BlockWidths(reduce, changes.get("features", widths.features))
    of_heads = {name: changes[name] for name in changes if name in HeadDims._fields}
    dims = widths.dims._replace(**of_heads)
    return BlockWidths(reduce, dims.heads * dims.value, dims)


def _neighbours(widths: Widths, steps: Sequence[Sequence[_Step]]) -> Iterator[Widths]:
    """All that differ by one step of one width."""
    for i, of_block in enumerate(steps):
        for step in of_block:
            own = widths[i].dims if hasattr(widths[i].dims, step.field) else widths[i]
            for value in step.neighbours(getattr(own, step.field)):
                other = _changed(widths[i], {step.field: value})
                yield (*widths[:i], other, *widths[i + 1 :])
