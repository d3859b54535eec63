"""What teacher and student cost: those of a configuration, and the paper's matrix.

All ratios are teacher over student. Papers differ in what they call a parameter, so the
non-zero ones are compared in three readings: everything that is trained; the same with
a classifier that is not pruned; and weights only, without BatchNorm, biases and
embeddings on both sides.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from alite_jax.analysis.cost import Cost, layer_costs, nominal_counts, total
from alite_jax.analysis.layers import Layer, trace_layers
from alite_jax.data.specs import DatasetSpec, dataset_spec
from alite_jax.models.resnet import BLOCKS, STUDENT_OPTIONS, create_model

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
        """The weights that pruning took from the classifier."""
        classifier = self.layers["classifier"]
        return classifier.parameters - classifier.nonzero_parameters


def configured_costs(config: Any) -> tuple[NetworkCosts, NetworkCosts]:
    """Counts teacher and student of a configuration; needs no data and no run.

    Args:
        config: from `alite_jax.get_config`. The student's masks are taken as the
            density and the distribution say, rewiring may move weights between layers.

    Returns:
        The costs of the teacher and of the student.

    Raises:
        ConfigError: a network cannot be built as configured.
    """
    options = {name: config.student[name] for name in STUDENT_OPTIONS}
    teacher, student = (
        _trace(
            network.model,
            dataset_spec(config.data.name),
            side=config.data.image_size,
            width=network.width,
            **extra,
        )
        for network, extra in ((config.teacher, {}), (config.student, options))
    )
    distribution = config.pruning.distribution
    return (
        _costs(config.teacher.model, teacher, 1.0),
        _costs(config.student.model, student, config.student.density, distribution),
    )


def readings(
    teacher: NetworkCosts, student: NetworkCosts
) -> dict[str, tuple[int, int]]:
    """What can be compared, as pairs of the teacher's and the student's number.

    Returns:
        `parameters`, as if dense; of the non-zero ones `nonzero_parameters`,
        `classifier_dense` (as if it were not pruned) and `weights` (nothing else);
        `macs`, as if dense, and `nonzero_macs`; `activations`, `dense_bytes` and
        `packed_bytes`.
    """
    theirs, ours = teacher.total, student.total
    nonzero = theirs.nonzero_parameters, ours.nonzero_parameters
    absent = teacher.absent_from_classifier, student.absent_from_classifier
    return {
        "parameters": (theirs.parameters, ours.parameters),
        "nonzero_parameters": nonzero,
        "classifier_dense": (nonzero[0] + absent[0], nonzero[1] + absent[1]),
        "weights": (theirs.nonzero_weights, ours.nonzero_weights),
        "macs": (theirs.macs, ours.macs),
        "nonzero_macs": (theirs.nonzero_macs, ours.nonzero_macs),
        "activations": (theirs.activations, ours.activations),
        "dense_bytes": (theirs.dense_bytes, ours.dense_bytes),
        "packed_bytes": (theirs.packed_bytes, ours.packed_bytes),
    }


def ratios(teacher: NetworkCosts, student: NetworkCosts) -> dict[str, float]:
    """Teacher over student, for each of `readings`."""
    return {
        name: theirs / ours
        for name, (theirs, ours) in readings(teacher, student).items()
    }


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
        spec = dataset_spec(dataset)
        teacher = _costs(PAPER_TEACHER, _trace(PAPER_TEACHER, spec), 1.0)
        yield MatrixRow(dataset, None, teacher, ratios(teacher, teacher))
        for depth, family, kernel_size in product(
            BLOCKS, PAPER_FAMILIES, PAPER_KERNEL_SIZES
        ):
            name = f"resnet{depth}_{family}"
            layers = _trace(name, spec, kernel_size=kernel_size)
            for density in PAPER_DENSITIES:
                student = _costs(name, layers, density)
                yield MatrixRow(dataset, kernel_size, student, ratios(teacher, student))


def _trace(name: str, spec: DatasetSpec, side: int = 0, **options: Any) -> list[Layer]:
    """The layers of a network on a data set; `side` 0 is the native size in pixels."""
    height, width, channels = spec.image_shape
    shape = (side or height, side or width, channels)
    model = create_model(name, num_classes=spec.num_classes, **options)
    return trace_layers(model, shape)


def _costs(
    name: str, layers: list[Layer], density: float, distribution: str = "uniform"
) -> NetworkCosts:
    kept = nominal_counts(layers, density, distribution)
    return NetworkCosts(name, density, layer_costs(layers, kept))
