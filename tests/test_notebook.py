"""The notebook runs from top to bottom."""

import ast
import importlib
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from tiny import SETTINGS

import alite_jax
from alite_jax.config.validation import registries

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "alite_jax.ipynb"


def cells(kind: str) -> list[str]:
    content = json.loads(NOTEBOOK.read_text())
    found = content["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def test_what_it_takes_from_the_package_is_there() -> None:
    """`test_every_cell_runs_with_tiny_networks`, which is slow, shows the rest."""
    for cell in cells("code"):
        for node in ast.walk(ast.parse(cell)):
            if isinstance(node, ast.ImportFrom) and "alite_jax" in str(node.module):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, name.name) for name in node.names)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = node.value.id
                assert name != "alite_jax" or hasattr(alite_jax, node.attr)


@pytest.mark.processes
def test_every_cell_runs_with_tiny_networks(
    models: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = alite_jax.get_config
    monkeypatch.setattr(
        alite_jax,
        "get_config",
        lambda name, changes: original(
            name, [changes, SETTINGS, "student.kernel_size=7"]
        ),
    )
    for registry in registries().values():
        monkeypatch.setattr(registry, "_registered", {})
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", lambda: None)
    names: dict[str, Any] = {}
    for cell in cells("code"):
        exec(compile(cell, str(NOTEBOOK), "exec"), names)
    assert len(plt.get_fignums()) == 4
    plt.close("all")
    assert len(names["table"]) == 2
    assert names["maps"].shape[-2:] == (7, 7)
    assert list(names["own"]) == ["student", "teacher", "weights", "optimizer", "loss"]
    assert names["own"]["teacher"]["teacher"]["name"] == "linear"
    assert names["pruner"].density(names["state"]) == pytest.approx(0.1, abs=0.001)


def test_it_has_a_badge_and_no_results_of_its_own() -> None:
    assert "colab-badge.svg" in cells("markdown")[0]
    content = json.loads(NOTEBOOK.read_text())
    assert not any(cell.get("outputs") for cell in content["cells"])


@pytest.mark.slow
def test_it_runs_in_jupyter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Colab, networks and epochs as they are; some minutes on two cores."""
    import nbclient
    import nbformat

    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parent.parent))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    assert sum("image/png" in out.get("data", {}) for out in outputs) == 4
