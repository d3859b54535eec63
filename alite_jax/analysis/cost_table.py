"""What networks cost, as aligned text, Markdown or JSON."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from alite_jax.analysis.cost import Cost
from alite_jax.analysis.networks import MatrixRow, NetworkCosts, ratios, readings
from alite_jax.analysis.table import aligned, markdown

_COLUMNS: dict[str, Callable[[Cost], int]] = {
    "parameters": lambda cost: cost.parameters,
    "non-zero": lambda cost: cost.nonzero_parameters,
    "weight MACs": lambda cost: cost.weight_macs,
    "core MACs": lambda cost: cost.core_macs,
    "non-zero MACs": lambda cost: cost.nonzero_macs,
    "activations": lambda cost: cost.activations,
    "bytes": lambda cost: cost.dense_bytes,
    "packed": lambda cost: cost.packed_bytes,
}

_READINGS = {
    "parameters": "parameters",
    "nonzero_parameters": "non-zero parameters",
    "classifier_dense": "  if the classifier stays dense",
    "weights": "  weights only",
    "macs": "MACs",
    "nonzero_macs": "non-zero MACs",
    "activations": "activations",
    "dense_bytes": "bytes",
    "packed_bytes": "packed bytes",
}


def networks_table(teacher: NetworkCosts, student: NetworkCosts, format: str) -> str:
    """Layers of both networks, their totals, and how these compare.

    Args:
        teacher: its costs.
        student: its costs.
        format: one of `FORMATS`.

    Returns:
        Text without a trailing line break. JSON has for each network `name`, `density`,
        `layers` and `total` with the fields of `Cost`, and `ratios`.
    """
    networks = {"teacher": teacher, "student": student}
    if format == "json":
        described = {role: _described(network) for role, network in networks.items()}
        return json.dumps(described | {"ratios": ratios(teacher, student)}, indent=2)
    lines = []
    for role, network in networks.items():
        head = ["layer", *_COLUMNS]
        rows = [[path, *_cells(cost)] for path, cost in network.layers.items()]
        total = ["total", *_cells(network.total)]
        lines += [_title(role, network), "", *_laid_out([head, *rows, total], format)]
        lines.append("")
    lines += _laid_out(_comparison(teacher, student), format)
    return "\n".join(lines)


def matrix_table(rows: Iterable[MatrixRow], format: str) -> str:
    """The paper's matrix, one network a row.

    Args:
        rows: of `paper_matrix`.
        format: one of `FORMATS`.

    Returns:
        Text without a trailing line break. JSON is a list of objects with `dataset`,
        `kernel_size` (null for the teacher), `name`, `density`, `total` with the
        fields of `Cost`, and `ratios`.
    """
    if format == "json":
        described = [
            {
                "dataset": row.dataset,
                "kernel_size": row.kernel_size,
                "name": row.network.name,
                "density": row.network.density,
                "total": asdict(row.network.total),
                "ratios": row.ratios,
            }
            for row in rows
        ]
        return json.dumps(described, indent=2)
    head = [
        *("data set", "network", "kernel", "density"),
        *("params M", "non-zero M", "x", "x fc dense", "x weights"),
        *("GMACs", "core", "x", "non-zero GMACs", "x"),
    ]
    return "\n".join(_laid_out([head, *map(_matrix_cells, rows)], format, left=2))


def _matrix_cells(row: MatrixRow) -> list[str]:
    cost, times = row.network.total, row.ratios
    return [
        row.dataset,
        row.network.name,
        "" if row.kernel_size is None else str(row.kernel_size),
        f"{100 * row.network.density:g} %",
        f"{cost.parameters / 1e6:.3f}",
        f"{cost.nonzero_parameters / 1e6:.3f}",
        _digits(times["nonzero_parameters"]),
        _digits(times["classifier_dense"]),
        _digits(times["weights"]),
        f"{cost.macs / 1e9:.3f}",
        f"{100 * cost.core_macs / cost.macs:.0f} %",
        _digits(times["macs"]),
        f"{cost.nonzero_macs / 1e9:.3f}",
        _digits(times["nonzero_macs"]),
    ]


def _title(role: str, network: NetworkCosts) -> str:
    return f"{role}: {network.name} at density {100 * network.density:g} %, one image"


def _described(network: NetworkCosts) -> dict[str, Any]:
    return {
        "name": network.name,
        "density": network.density,
        "layers": {path: asdict(cost) for path, cost in network.layers.items()},
        "total": asdict(network.total),
    }


def _cells(cost: Cost) -> list[str]:
    return [f"{column(cost):,}" for column in _COLUMNS.values()]


def _comparison(teacher: NetworkCosts, student: NetworkCosts) -> list[list[str]]:
    head = ["", "teacher", "student", "teacher / student"]
    return [head] + [
        [_READINGS[name], f"{theirs:,}", f"{ours:,}", f"{_digits(theirs / ours)}x"]
        for name, (theirs, ours) in readings(teacher, student).items()
    ]


def _digits(ratio: float) -> str:
    """Three digits, which is what these ratios are worth."""
    return f"{ratio:.{2 if ratio < 10 else 1}f}"


def _laid_out(rows: Sequence[Sequence[str]], format: str, left: int = 1) -> list[str]:
    return (markdown if format == "markdown" else aligned)(rows, left)
