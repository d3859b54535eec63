"""What teacher and student cost: those of a configuration, and the paper's matrix.

All ratios are teacher over student. Papers differ in what they call a parameter, so the
non-zero ones are compared in three readings: everything that is trained; the same with
a classifier that is not pruned; and weights only, without BatchNorm, biases and
embeddings on both sides.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from alite_jax.counting.cost import Cost, layer_costs, nominal_counts, total
from alite_jax.counting.layer import Layer
from alite_jax.counting.layers import trace_layers
from alite_jax.data.sources import describe
from alite_jax.data.specs import DATASETS, DatasetSpec
from alite_jax.models.configured import (
    configured_model,
    image_shape,
    network_name,
)
from alite_jax.models.given import configured_teacher
from alite_jax.models.resnet import PAPER_DEPTHS, create_model
from alite_jax.sparsity.masks import RULES, Rules, pruning_rules

PAPER_DATASETS = ("cifar10", "cifar100", "tiny_imagenet")
PAPER_FAMILIES = ("attention", "attention_conv1", "attention_conv12")
PAPER_KERNEL_SIZES = (3, 5, 7)
PAPER_DENSITIES = (1.0, 0.1, 0.05, 0.03)
PAPER_TEACHER = "resnet50"


class NetworkCosts(NamedTuple):
    """The costs of one network at a density.

    Attributes:
        name: of the model.
        density: kept fraction of its prunable weights.
        layers: costs by path, in the order of the layers.
    """

    name: str
    density: float
    layers: dict[str, Cost]

    @property
    def total(self) -> Cost:
        """The sum over the layers."""
        return total(self.layers.values())

    @property
    def absent_from_classifier(self) -> int:
        """The weights that pruning took from the classifier: the last with weights."""
        weighted = [cost for cost in self.layers.values() if cost.weights]
        classifier = weighted[-1] if weighted else Cost()
        return classifier.parameters - classifier.nonzero_parameters


def configured_costs(
    config: ConfigDict,
    dataset: DatasetSpec | None = None,
    student: Any = None,
    teacher: Any = None,
) -> tuple[NetworkCosts | None, NetworkCosts]:
    """Counts teacher and student of a configuration; needs no run.

    The student's masks are taken as density and distribution say: rewiring may move
    weights between layers.

    Args:
        config: the whole configuration.
        dataset: what is known about its data set, as by its run; otherwise looked up.
        student: what a program has given to the run; see `foreign_model`.
        teacher: the same; see `given_network`.

    Returns:
        Both; no teacher where there are only its logits.

    Raises:
        ConfigError: a network cannot be built as configured.
        DataError: the data set is looked up, and is not there or damaged.
    """
    dataset = dataset or describe(config.data)
    shape, pruning = image_shape(config, dataset), config.pruning
    model = configured_model(config, "student", dataset, source=student)
    ours = _costs(
        network_name(config, "student"),
        trace_layers(model, shape),
        config.student.density,
        pruning.distribution,
        pruning_rules(pruning.dense),
    )
    if config.teacher.logits:
        return None, ours
    if (given := configured_teacher(config, dataset, teacher)) is not None:
        frozen, variables = given
        return _costs(frozen.name, trace_layers(frozen, shape, variables), 1.0), ours
    layers = trace_layers(configured_model(config, "teacher", dataset), shape)
    return _costs(network_name(config, "teacher"), layers, 1.0), ours


def readings(
    teacher: NetworkCosts, student: NetworkCosts
) -> dict[str, tuple[int, int]]:
    """What can be compared, as pairs of the teacher's and the student's number.

    `parameters` and `macs` are those of the dense networks. The three readings of the
    non-zero parameters are `nonzero_parameters`, `classifier_dense` (as if it were not
    pruned) and `weights` (nothing else).
    """

    def of(network: NetworkCosts) -> dict[str, int]:
        cost = network.total
        return {
            "parameters": cost.parameters,
            "nonzero_parameters": cost.nonzero_parameters,
            "classifier_dense": (
                cost.nonzero_parameters + network.absent_from_classifier
            ),
            "weights": cost.nonzero_weights,
            "macs": cost.macs,
            "nonzero_macs": cost.nonzero_macs,
            "activations": cost.activations,
            "dense_bytes": cost.dense_bytes,
            "packed_bytes": cost.packed_bytes,
        }

    theirs, ours = of(teacher), of(student)
    return {name: (theirs[name], ours[name]) for name in theirs}


def ratios(teacher: NetworkCosts, student: NetworkCosts) -> dict[str, float]:
    """Teacher over student, for each of `readings`."""
    pairs = readings(teacher, student).items()
    return {name: theirs / ours for name, (theirs, ours) in pairs}


class MatrixRow(NamedTuple):
    """One network of the paper's matrix.

    Attributes:
        dataset: its name.
        kernel_size: of the student's windows; None for the teacher.
        network: its costs.
        ratios: teacher over this network.
    """

    dataset: str
    kernel_size: int | None
    network: NetworkCosts
    ratios: dict[str, float]


def paper_matrix() -> Iterator[MatrixRow]:
    """Counts every student of the matrix and, before those of a data set, the teacher.

    Data sets, depths, families, kernel sizes and densities are the constants above;
    networks have the full width and uniform densities.
    """
    for dataset in PAPER_DATASETS:
        spec = DATASETS[dataset]
        teacher = _costs(PAPER_TEACHER, _paper_layers(PAPER_TEACHER, spec), 1.0)
        yield MatrixRow(dataset, None, teacher, ratios(teacher, teacher))
        for depth, family, kernel_size in product(
            PAPER_DEPTHS, PAPER_FAMILIES, PAPER_KERNEL_SIZES
        ):
            name = f"resnet{depth}_{family}"
            layers = _paper_layers(name, spec, kernel_size=kernel_size)
            for density in PAPER_DENSITIES:
                student = _costs(name, layers, density)
                yield MatrixRow(dataset, kernel_size, student, ratios(teacher, student))


def _paper_layers(name: str, dataset: DatasetSpec, **options: Any) -> list[Layer]:
    model = create_model(name, num_classes=dataset.num_classes, **options)
    return trace_layers(model, dataset.image_shape)


def _costs(
    name: str,
    layers: list[Layer],
    density: float,
    distribution: str = "uniform",
    rules: Rules = RULES,
) -> NetworkCosts:
    kept = nominal_counts(layers, density, distribution, rules)
    return NetworkCosts(name, density, layer_costs(layers, kept))
