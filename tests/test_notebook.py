"""The notebook runs from top to bottom."""

import ast
import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
from typing import Any

import matplotlib.pyplot as plt
import pytest
from executed_notebook import NOTEBOOK, executed
from tiny import SETTINGS

import alite_jax
from alite_jax.config.validation import registries

PICTURES = 4


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

    def tiny(name: str, changes: Any) -> Any:
        settings = SETTINGS | {"student.kernel_size": 7}
        if name.startswith("folder"):  # Of other splits, and of few images.
            settings |= {"data.train_split": "", "data.eval_split": ""}
            settings |= {"data.batch_size": 4, "data.eval_batch_size": 4}
        return original(name, [changes, settings])

    monkeypatch.setattr(alite_jax, "get_config", tiny)
    for registry in registries().values():
        monkeypatch.setattr(registry, "_registered", {})
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", lambda: None)
    names: dict[str, Any] = {}
    for cell in cells("code"):
        exec(compile(cell, str(NOTEBOOK), "exec"), names)
    assert len(plt.get_fignums()) == PICTURES
    plt.close("all")
    assert "<iframe" in names["frame"] and names["size"] > 0
    assert len(names["guesses"]) == 1 and names["guesses"][0]
    assert set(names["of_images"]["student"]["class_accuracy"]) == {"a 3", "a 7"}
    assert len(names["table"]) == 2
    assert names["maps"].shape[-2:] == (7, 7)
    assert list(names["own"]) == ["student", "teacher", "weights", "optimizer", "loss"]
    assert names["own"]["teacher"]["teacher"]["name"] == "linear"
    assert names["pruner"].density(names["state"]) == pytest.approx(0.1, abs=0.001)


def test_its_pictures_are_small_and_show_no_place_of_a_machine() -> None:
    """They are those of `python tests/executed_notebook.py`, cell by cell."""
    content = json.loads(NOTEBOOK.read_text())
    outputs = [out for cell in content["cells"] for out in cell.get("outputs", ())]
    assert sum("image/png" in out.get("data", {}) for out in outputs) == PICTURES
    assert NOTEBOOK.stat().st_size < 500_000
    text = NOTEBOOK.read_text()
    assert not re.search(r"/(tmp|home|root|work|Users)/", text)


def test_what_it_installs_is_what_the_package_needs() -> None:
    """Its range of JAX, within which the runtime's own build is kept."""
    install = cells("code")[0]
    lines = (NOTEBOOK.parent.parent / "requirements.txt").read_text().splitlines()
    low, high = re.findall(r"\((\d+, \d+(?:, \d+)?)\)", install)
    asked = f"jax>={low.replace(', ', '.')},<{high.replace(', ', '.')}"
    assert asked in lines


@pytest.mark.parametrize(
    ("jax", "modules", "command", "asked"),
    [
        ("0.11.2", (), "nvidia-smi", "alite-jax @ git+https://host/repository"),
        ("0.7.2", (), "nvidia-smi", "alite-jax[cuda] @ git+https://host/repository"),
        ("0.7.2", ("libtpu",), None, "alite-jax[tpu] @ git+https://host/repository"),
        ("0.7.2", (), None, "alite-jax @ git+https://host/repository"),
        (None, (), "nvidia-smi", "alite-jax[cuda] @ git+https://host/repository"),
    ],
)
def test_its_install_keeps_jax_and_its_plugin_together(
    jax: str | None,
    modules: tuple[str, ...],
    command: str | None,
    asked: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[list[str]] = []
    found = lambda name: name if name in modules else None  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", found)

    def version(name: str) -> str:
        if jax is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return jax

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(shutil, "which", lambda name: command)
    monkeypatch.setattr(subprocess, "run", lambda call, check: calls.append(call))
    install = cells("code")[0]
    with pytest.raises(SystemExit, match="SOURCE"):
        exec(install, {})
    source = 'SOURCE = "git+https://host/repository"'
    exec(install.replace('SOURCE = ""', source), {})
    assert calls[0][-1] == asked


@pytest.mark.slow
def test_it_runs_in_jupyter() -> None:
    """As on Colab, networks and epochs as they are; some minutes on two cores."""
    outputs = [out for cell in executed().cells for out in cell.get("outputs", ())]
    assert sum("image/png" in out.get("data", {}) for out in outputs) == PICTURES
