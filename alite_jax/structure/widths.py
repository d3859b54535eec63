"""Inner widths of blocks that bring a network to a given number of MACs.

The cost of a choice is that of the network itself, traced with these widths. All
blocks get about the same fraction of their channels; single steps of single widths
then bring the sum closer to the target than equal fractions can.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from alite_jax.counting.layers import parameter_shapes, total_macs
from alite_jax.errors import ConfigError
from alite_jax.models.blocks import BlockWidths
from alite_jax.models.resnet import ResNet
from alite_jax.structure.units import find_blocks, unit_groups

TOLERANCE = 0.02  # of the target
_CLOSE = 0.002  # No need to look for better.
_HALVINGS = 12  # More than any width has steps.

# Units of each set of all the groups that are pruned, in their order.
_Counts = tuple[int, ...]


@dataclass(frozen=True)
class ChosenWidths:
    """Widths and what they cost.

    Attributes:
        counts: units of each set of a pruned group, by the group's name.
        widths: of each block in their order, which these make.
        macs: of the network with these widths.
        dense_macs: of the network with its own.
    """

    counts: Mapping[str, int]
    widths: tuple[BlockWidths, ...]
    macs: int
    dense_macs: int


def choose_widths(
    model: ResNet,
    image_shape: tuple[int, int, int],
    structure: str,
    fraction: float,
    multiple: int = 1,
) -> ChosenWidths:
    """Chooses the widths.

    Args:
        model: the network, as wide as it may be.
        image_shape: (height, width, channels).
        structure: `"channels"` or `"heads"`, what may be fewer.
        fraction: of the network's MACs that shall be left, in (0, 1].
        multiple: of all widths that are reduced, except where a layer is not so wide;
            the number of heads may be any.

    Raises:
        ConfigError: no widths come within 2 % of it; says what is possible.
    """
    shapes = parameter_shapes(model, image_shape)
    blocks, groups = find_blocks(shapes), unit_groups(shapes, structure)
    full = tuple(group.shape[1] for group in groups)
    steps = [group.kind.step(multiple) for group in groups]

    def named(counts: _Counts) -> dict[str, int]:
        return {group.name: n for group, n in zip(groups, counts, strict=True)}

    def widths(counts: _Counts) -> tuple[BlockWidths, ...]:
        return tuple(blocks[name].widths(named(counts)) for name in model.block_names)

    @cache
    def macs(counts: _Counts) -> int:
        return total_macs(model.clone(widths=widths(counts)), image_shape)

    dense = macs(full)
    target = fraction * dense

    def error(counts: _Counts) -> float:
        return abs(macs(counts) - target)

    def at(share: float) -> _Counts:
        """About this share of each number, at least one step."""
        return tuple(
            min(most, max(1, round(share * most / step)) * step)
            for most, step in zip(full, steps, strict=True)
        )

    def neighbours(counts: _Counts) -> Iterator[_Counts]:
        """All that differ by one step of one number."""
        for i, (n, most, step) in enumerate(zip(counts, full, steps, strict=True)):
            fewer = (n - 1) // step * step
            more = min(most, n // step * step + step)
            for other in (fewer, more):
                if other not in (0, n):
                    yield (*counts[:i], other, *counts[i + 1 :])

    best, low, high = full, 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if macs(at(middle)) < target else (low, middle)
        best = min(best, at(middle), key=error)
    while error(best) > _CLOSE * target:
        nearer = min(neighbours(best), key=error, default=best)
        if error(nearer) >= error(best):
            break
        best = nearer
    if error(best) > TOLERANCE * target:
        raise ConfigError(
            f"pruning.macs is {fraction:g}, but widths that are multiples of {multiple}"
            f" come no closer than {macs(best) / dense:.3f} of the student's MACs, and"
            f" not below {macs(at(0)) / dense:.3f}; set another fraction or a smaller"
            " pruning.multiple"
        )
    return ChosenWidths(named(best), widths(best), macs(best), dense)
