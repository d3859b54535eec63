"""The programs in `examples/` run, at a size that takes seconds."""

import json
import sys
from pathlib import Path

import pytest
from tiny import SETTINGS

from alite_jax.config.files import load_config_file

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("models")]
FOLDER = Path(__file__).resolve().parent.parent / "examples"


def test_a_vision_transformer_learns_from_a_function(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    vit = load_config_file(FOLDER / "vit.py")
    of_student = {k: v for k, v in SETTINGS.items() if k != "student.density"}
    monkeypatch.setattr(vit, "RECIPES", {"digits": ("digits", of_student)})
    command = ["vit.py", "digits", "--epochs=2", "--rows=joint"]
    monkeypatch.setattr(sys, "argv", [*command, f"--workdir={tmp_path}"])
    vit.main()
    assert "| joint | " in capsys.readouterr().out
    summary = json.loads((tmp_path / "digits/joint/summary.json").read_text())
    assert summary["student"]["name"] == "ViT"
    assert summary["student"]["density"] == pytest.approx(0.1, abs=0.01)
    assert summary["config"]["student"]["epochs"] == 2
