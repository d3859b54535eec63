"""Finding other people's code by a text."""

from pathlib import Path

import pytest

from alite_jax.errors import ConfigError
from alite_jax.imports import find_object


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_here.py").write_text("class Net:\n    size = 3\n")
    (tmp_path / "broken_here.py").write_text("x = 1\nraise RuntimeError('no\\nway')\n")
    (tmp_path / "needs.py").write_text("import not_installed_at_all\n")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("text", ["mine_here:Net", "mine_here.py:Net", "PATH:Net"])
def test_a_module_is_found_in_this_folder_and_as_a_file(
    text: str, tmp_path: Path
) -> None:
    text = text.replace("PATH", str(tmp_path / "mine_here.py"))
    assert find_object(text, "student.module").size == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Net", "student.module is 'Net', but must be 'package.module:function'"),
        (":Net", "must be 'package.module:function'"),
        ("mine_here:", "must be 'package.module:function'"),
        ("mine_here:Nett", "mine_here has no 'Nett'; did you mean 'Net'"),
        ("mine_here.py:Nett", "mine_here.py has no 'Nett'; did you mean 'Net'"),
        (
            "nowhere_at.all:Net",
            "there is no module 'nowhere_at.*'; install the package",
        ),
        ("nowhere.py:Net", "there is no file nowhere.py"),
        ("needs.py:Net", "there is no module 'not_installed_at_all'; install"),
        ("broken_here:Net", "loading broken_here fails: RuntimeError: no way"),
        ("broken_here.py:Net", "loading broken_here.py fails: RuntimeError: no way"),
        ("python:Net", "a program gave it to this run, and must give it again, as stu"),
    ],
)
def test_what_is_not_there_is_one_sentence(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        find_object(text, "student.module")
    assert "\n" not in str(caught.value)
