"""What a file says of the code, the data and the time that it was made with."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alite_jax
from alite_jax import provenance
from alite_jax.data.digest import data_digest
from alite_jax.data.sources import Data, Split
from alite_jax.data.specs import DATASETS
from alite_jax.runs import timings as timings_module
from alite_jax.runs.timings import Timings

PACKAGE = Path(alite_jax.__file__).parent


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/home/me/launch.py", "--workdir=a b"], "python launch.py '--workdir=a b'"),
        (["/env/bin/alite", "train"], "alite train"),
        ([str(PACKAGE / "__main__.py"), "train"], "alite train"),
        (["/env/lib/mine/__main__.py", "train"], None),
        (["launch.py"], "python launch.py"),
        (["alite", "report", os.fsdecode(b"n\xe9")], r"alite report 'n\udce9'"),
        (["/env/lib/ipykernel_launcher.py", "-f", "x"], None),
        (["-c"], None),
        ([""], None),
        ([], None),
    ],
)
def test_the_command_is_one_that_can_be_typed(
    argv: list[str], command: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    assert provenance.provenance()["command"] == command


def test_versions_and_date_are_there() -> None:
    found = provenance.provenance()
    assert found["version"] == alite_jax.__version__
    assert found["jax"] == jax.__version__ and found["numpy"] == np.__version__
    assert found["python"] == sys.version.split()[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])


def test_a_checkout_has_a_commit_and_may_be_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "alite_jax" / "__init__.py"
    package.parent.mkdir()
    package.touch()
    monkeypatch.setattr(alite_jax, "__file__", str(package))

    def seen() -> tuple[str | None, bool | None]:
        provenance._checkout.cache_clear()
        return provenance._checkout()

    def git(*arguments: str) -> None:
        who = ["-c", "user.name=A", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True)

    assert seen() == (None, None)  # As where pip has put it.
    git("init", "-q")
    assert seen() == (None, None)  # Without a commit.
    git("add", ".")
    git("commit", "-q", "-m", "all")
    commit, changed = seen()
    assert commit is not None and len(commit) == 12 and changed is False
    (tmp_path / "runs").write_text("")  # What is not tracked is no change.
    assert seen() == (commit, False)
    package.write_text("# other\n")
    assert seen() == (commit, True)
    # Another repository, be it around this one or named by a hook, says nothing of it.
    other = tmp_path / "other"
    (other / ".git").mkdir(parents=True)
    monkeypatch.setattr(alite_jax, "__file__", str(other / "alite_jax" / "__init__.py"))
    assert seen() == (None, None)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert seen() == (None, None)
    provenance._checkout.cache_clear()


def test_environments_are_put_into_words_also_those_of_older_files() -> None:
    known = {"version": "0.1.0", "commit": "abc", "changed": True, "command": "alite"}
    assert provenance.written_by(known | {"date": "2026-11-27"}) == (
        "alite_jax 0.1.0 (commit abc, changed) on 2026-11-27 by `alite`"
    )
    assert provenance.written_by({"jax": "0.10.2"}) == "alite_jax"
    assert provenance.written_by({"version": "0.1.0", "commit": None}) == (
        "alite_jax 0.1.0"
    )


def data(images: np.ndarray, labels: np.ndarray) -> Data:
    split = Split(images, labels)
    return Data(DATASETS["digits"], split, split)


def test_the_digest_tells_images_labels_shapes_and_numbers_apart() -> None:
    images = np.arange(3000 * 4, dtype=np.uint32).astype(np.uint8)
    images = images.reshape(3000, 2, 2, 1)
    labels = np.arange(3000, dtype=np.int32) % 10
    found = {data_digest(data(images, labels))}
    assert data_digest(data(images.copy(), labels.astype(np.int64))) in found
    found.add(data_digest(data(images, labels[::-1])))
    found.add(data_digest(data(images + 1, labels)))
    found.add(data_digest(data(images.reshape(3000, 4, 1, 1), labels)))
    found.add(data_digest(data(images[:-1], labels[:-1])))
    assert len(found) == 5


def test_time_is_counted_once_and_compiling_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(timings_module.time, "monotonic", lambda: now[0])
    timings = Timings()

    def passes(seconds: float) -> None:
        now[0] += seconds

    def items() -> list[int]:
        for item in range(2):
            passes(3)
            yield item
        passes(0.5)

    passes(1)
    with timings.spent("training"):
        passes(10)
        timings._listen("/jax/core/compile/backend_compile_duration", 4)
        timings._listen("/jax/core/compile/jaxpr_trace_duration", 4)
        with pytest.raises(KeyError), timings.spent("evaluating"):
            passes(2)
            raise KeyError
        for _ in timings.each("reading", items()):
            passes(20)
    assert timings.seconds() == {
        **{"reading": 6.5, "compiling": 4, "training": 46, "evaluating": 2},
        **{"writing": 0, "other": 1},
    }


def test_what_jax_compiles_is_noticed_until_the_end() -> None:
    with Timings() as timings:
        jax.jit(lambda x: x * 3 + 1)(jnp.ones(7)).block_until_ready()
        compiled = timings.seconds()["compiling"]
        assert compiled > 0
    jax.jit(lambda x: x * 5 + 1)(jnp.ones(9)).block_until_ready()
    assert timings.seconds()["compiling"] == compiled
