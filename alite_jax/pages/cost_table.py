"""What networks cost, as aligned text, Markdown or JSON."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from alite_jax.counting.comparison import MatrixRow, NetworkCosts, ratios, readings
from alite_jax.pages.table import aligned, compared, markdown

_COLUMNS = {
    "parameters": "parameters",
    "non-zero": "nonzero_parameters",
    "weight MACs": "weight_macs",
    "core MACs": "core_macs",
    "non-zero MACs": "nonzero_macs",
    "activations": "activations",
    "bytes": "dense_bytes",
    "packed": "packed_bytes",
}

_MATRIX = [
    *("data set", "network", "kernel", "density"),
    *("params M", "non-zero M", "x", "x fc dense", "x weights"),
    *("GMACs", "core", "x", "non-zero GMACs", "x"),
]

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


def networks_table(
    teacher: NetworkCosts | None, student: NetworkCosts, format: str
) -> str:
    """Layers of both networks, their totals, and how these compare.

    Args:
        teacher: its costs, or None, of which nothing is said then.
        student: its costs.
        format: one of `alite_jax.pages.table.FORMATS`. JSON has for each network
            `name`, `density`, `layers` and `total` with the fields of `Cost`, and
            `ratios`.

    Returns:
        Text without a trailing line break.
    """
    networks = {"student": student}
    if teacher is not None:
        networks = {"teacher": teacher, "student": student}
    if format == "json":
        described: dict[str, Any] = {
            role: _described(network)
            | {"layers": {path: asdict(cost) for path, cost in network.layers.items()}}
            for role, network in networks.items()
        }
        if teacher is not None:
            described["ratios"] = ratios(teacher, student)
        return json.dumps(described, indent=2)
    lines = []
    for role, network in networks.items():
        rows = [["layer", *_COLUMNS]]
        for path, cost in {**network.layers, "total": network.total}.items():
            numbers = asdict(cost)
            rows.append([path, *(f"{numbers[name]:,}" for name in _COLUMNS.values())])
        density = f"{100 * network.density:g} %"
        lines.append(f"{role}: {network.name} at density {density}, one image")
        lines += ["", *_laid_out(rows, format), ""]
    if teacher is None:
        return "\n".join(lines).rstrip()
    rows = [["", "teacher", "student", "teacher / student"]]
    for name, pair in readings(teacher, student).items():
        rows.append(compared(_READINGS[name], *pair, change=lambda r: f"{_digits(r)}x"))
    return "\n".join([*lines, *_laid_out(rows, format)])


def matrix_table(rows: Iterable[MatrixRow], format: str) -> str:
    """The paper's matrix, one network a row.

    Args:
        rows: of `paper_matrix`.
        format: one of `alite_jax.pages.table.FORMATS`. JSON is a list of objects with
            `dataset`, `kernel_size` (null for the teacher), `name`, `density`, `total`
            with the fields of `Cost`, and `ratios`.

    Returns:
        Text without a trailing line break.
    """
    if format == "json":
        described = [
            {
                "dataset": row.dataset,
                "kernel_size": row.kernel_size,
                **_described(row.network),
                "ratios": row.ratios,
            }
            for row in rows
        ]
        return json.dumps(described, indent=2)
    return "\n".join(_laid_out([_MATRIX, *map(_matrix_cells, rows)], format, left=2))


def _matrix_cells(row: MatrixRow) -> list[str]:
    cost, x = row.network.total, {name: _digits(r) for name, r in row.ratios.items()}
    kernel = "" if row.kernel_size is None else str(row.kernel_size)
    core = f"{100 * cost.core_macs / cost.macs:.0f} %"
    return [
        *(row.dataset, row.network.name, kernel, f"{100 * row.network.density:g} %"),
        *(f"{cost.parameters / 1e6:.3f}", f"{cost.nonzero_parameters / 1e6:.3f}"),
        *(x["nonzero_parameters"], x["classifier_dense"], x["weights"]),
        *(f"{cost.macs / 1e9:.3f}", core, x["macs"]),
        *(f"{cost.nonzero_macs / 1e9:.3f}", x["nonzero_macs"]),
    ]


def _described(network: NetworkCosts) -> dict[str, Any]:
    return {
        "name": network.name,
        "density": network.density,
        "total": asdict(network.total),
    }


def _digits(ratio: float) -> str:
    """Three digits, which is what these ratios are worth."""
    return f"{ratio:.{2 if ratio < 10 else 1}f}"


def _laid_out(rows: Sequence[Sequence[str]], format: str, left: int = 1) -> list[str]:
    return (markdown if format == "markdown" else aligned)(rows, left)
