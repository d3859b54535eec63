"""Counting what a network costs, layer by layer: size, compute, memory of one image.

Absent weights are counted from real masks (`network_cost`) or from a nominal density
(`nominal_counts`), always as whole weights. What a MAC is says `layers`.
"""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass

import jax
import jax.numpy as jnp

from alite_jax.counting.layer import Layer, Shape
from alite_jax.counting.layers import trace_layers
from alite_jax.models.model import Model, Variables
from alite_jax.sparsity.distributions import layer_counts
from alite_jax.sparsity.masks import RULES, Rules, is_prunable, kept_entries
from alite_jax.trees import named_leaves

_FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Cost:
    """What a layer or a network costs for one image; costs can be added.

    Attributes:
        parameters: trained numbers, BatchNorm's scale and bias included.
        nonzero_parameters: those that are kept, plus all that is never pruned.
        weights: the prunable parameters, which are the kernels.
        nonzero_weights: those that are kept.
        weight_macs: MACs of the dense kernels.
        core_macs: MACs of the attention cores.
        nonzero_macs: MACs of the kept weights, and of the attention cores in full.
        activations: elements of the outputs of convolutions, projections, attention,
            BatchNorm and the classifier, each by itself; after a layer's own pooling.
            Of a network that is not this project's, only those of products.
        dense_bytes: parameters as float32.
        packed_bytes: non-zero parameters as float32, plus one bit for each entry of
            every array from which something is absent, in whole bytes.
    """

    parameters: int = 0
    nonzero_parameters: int = 0
    weights: int = 0
    nonzero_weights: int = 0
    weight_macs: int = 0
    core_macs: int = 0
    nonzero_macs: int = 0
    activations: int = 0
    dense_bytes: int = 0
    packed_bytes: int = 0

    @property
    def macs(self) -> int:
        """MACs of the dense network, attention cores included."""
        return self.weight_macs + self.core_macs

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*map(operator.add, astuple(self), astuple(other)))


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of some costs."""
    return sum(costs, Cost())


def nominal_counts(
    layers: Sequence[Layer],
    density: float,
    distribution: str = "uniform",
    rules: Rules = RULES,
) -> dict[str, int]:
    """How many entries new masks of a density keep, without drawing them.

    Args:
        layers: of the whole network.
        density: kept fraction of the prunable weights, in (0, 1].
        distribution: see `layer_counts`; `"uniform"` keeps `round(density * size)` of
            each array, and at least one.
        rules: which parameters may be pruned; see `is_prunable`.

    Returns:
        Kept entries by path of the parameter; of what is never pruned, all.

    Raises:
        ConfigError: for a density outside (0, 1] or an unknown distribution.
    """
    shapes = {
        path: shape for layer in layers for path, shape in layer.parameters.items()
    }
    # The order of a pytree's leaves, in which "erk" rounds.
    prunable = sorted(_prunable(shapes, rules), key=lambda path: path.split("/"))
    counts = layer_counts([shapes[path] for path in prunable], density, distribution)
    dense = {path: math.prod(shape) for path, shape in shapes.items()}
    return dense | dict(zip(prunable, counts, strict=True))


def layer_costs(layers: Iterable[Layer], kept: Mapping[str, int]) -> dict[str, Cost]:
    """The cost of each layer by its path, in the order of `layers`.

    Args:
        layers: from `trace_layers`.
        kept: entries that each parameter keeps, by path.
    """
    return {layer.path: _layer_cost(layer, kept) for layer in layers}


def _layer_cost(layer: Layer, kept: Mapping[str, int]) -> Cost:
    counts = layer.sizes
    parameters = sum(counts.values())
    nonzero = sum(kept[path] for path in counts)
    weights = _prunable(layer.parameters)
    size, left = (sum(c[path] for path in weights) for c in (counts, kept))
    products = {layer.parameter(name): macs for name, macs in layer.products.items()}
    left_macs = sum(macs * kept[p] // counts[p] for p, macs in products.items())
    mask_bytes = sum(-(-size // 8) for p, size in counts.items() if kept[p] < size)
    return Cost(
        parameters=parameters,
        nonzero_parameters=nonzero,
        weights=size,
        nonzero_weights=left,
        weight_macs=layer.weight,
        core_macs=layer.core,
        nonzero_macs=layer.core + left_macs,
        activations=layer.outputs,
        dense_bytes=_FLOAT32_BYTES * parameters,
        packed_bytes=_FLOAT32_BYTES * nonzero + mask_bytes,
    )


def _prunable(shapes: Mapping[str, Shape], rules: Rules = RULES) -> list[str]:
    """The paths of what may be pruned."""
    leaves = {p: jax.ShapeDtypeStruct(s, jnp.float32) for p, s in shapes.items()}
    return [path for path, leaf in leaves.items() if is_prunable(path, leaf, rules)]


def network_cost(
    model: Model, image_shape: tuple[int, int, int], variables: Variables
) -> dict[str, int]:
    """Size and compute of a network with its masks, for one image.

    Args:
        model: see `trace_layers`.
        image_shape: (height, width, channels).
        variables: its `params` and `batch_stats`, or their shapes, and its `masks`.

    Returns:
        `parameters`, `nonzero_parameters`, `macs` and `nonzero_macs`, as in `Cost`.
    """
    kept = dict(named_leaves(kept_entries(variables["masks"], variables["params"])))
    layers = trace_layers(model, image_shape, variables)
    cost = total(layer_costs(layers, kept).values())
    names = ("parameters", "nonzero_parameters", "macs", "nonzero_macs")
    return {name: getattr(cost, name) for name in names}
