"""Checkpoints: exact round trips, and every kind of damage that a run may meet."""

import dataclasses
import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from chex import assert_trees_all_equal
from hypothesis import example, given, settings
from hypothesis import strategies as st
from orbax.checkpoint._src.serialization import ocdbt_utils

from alite_jax.errors import CheckpointError
from alite_jax.runs import orbax_store
from alite_jax.runs.checkpoints import Checkpoints
from alite_jax.runs.orbax_store import _own_failures_only

IDENTITY = {
    "model": "resnet26_attention",
    "width": 16,
    "stages": (1, 2),
    "num_classes": 10,
}


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    masks: Any
    name: str = flax.struct.field(pytree_node=False, default="static")


def make_state(seed: int = 0, dtype: Any = np.float32) -> State:
    rng = np.random.default_rng(seed)
    params = {
        "stem": {"kernel": rng.normal(size=(3, 3, 3, 8)).astype(dtype)},
        "head": {
            "kernel": rng.normal(size=(8, 10)).astype(jnp.bfloat16),
            "bias": np.zeros(10, np.float32),
        },
    }
    decayed = {"stem": {"kernel": True}, "head": {"kernel": True, "bias": False}}
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.add_decayed_weights(1e-4, mask=decayed),
        optax.trace(0.9, nesterov=True),
        optax.scale_by_schedule(optax.cosine_decay_schedule(0.1, 100)),
    )
    opt_state = jax.device_get(optimizer.init(params))
    opt_state = jax.tree.map(lambda a: (a + seed).astype(a.dtype), opt_state)
    masks = {
        "stem": {"kernel": rng.random((3, 3, 3, 8)) < 0.5},
        "head": {"kernel": True, "bias": np.True_},
    }
    stats = {"norm": {"mean": rng.normal(size=8).astype(np.float32)}}
    return State(np.int32(seed), params, stats, opt_state, masks)


def model_of(state: State) -> dict[str, Any]:
    """What evaluation and a teacher need."""
    return {name: getattr(state, name) for name in ("params", "batch_stats", "masks")}


def assert_same(found: Any, wanted: Any) -> None:
    """To the last bit, and each leaf of the same kind: `True` is not `np.True_`."""
    assert jax.tree.map(type, found) == jax.tree.map(type, wanted)
    assert_trees_all_equal(found, wanted, strict=True)


def open_checkpoints(directory: Path, **changes: Any) -> Checkpoints:
    return Checkpoints(directory, keep=2, identity=IDENTITY | changes)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with the checkpoints 1 and 2."""
    checkpoints = open_checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, make_state(step), extra={"epoch": step})
    checkpoints.close()
    return tmp_path / "checkpoints"


def data_files(folder: Path) -> list[Path]:
    files = [
        file for file in folder.rglob("*") if file.is_file() and file.stat().st_size
    ]
    assert files
    return sorted(files)


def flip(file: Path, offset: int) -> None:
    content = bytearray(file.read_bytes())
    content[offset] ^= 0xFF
    file.write_bytes(content)


def test_round_trip_returns_structure_values_and_dtypes(saved: Path) -> None:
    checkpoints = open_checkpoints(saved)
    assert checkpoints.latest_step() == 2
    state, extra = checkpoints.restore(make_state(0))
    assert_same(state, make_state(2))
    assert extra == {"epoch": 2}
    assert_same(checkpoints.restore(make_state(0), step=1)[0], make_state(1))
    checkpoints.close()


def test_restore_takes_an_abstract_template(saved: Path) -> None:
    template = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, make_state(0)))
    state, _ = open_checkpoints(saved).restore(template)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(state))
    assert_trees_all_equal(state, make_state(2))


def test_restore_model_does_not_need_the_train_item(saved: Path) -> None:
    shutil.rmtree(saved / "2" / "train")
    model = open_checkpoints(saved).restore_model(model_of(make_state(0)))
    assert_same(model, model_of(make_state(2)))


def test_an_identity_of_before_the_stem_was_in_it_is_of_the_3x3_stem(
    saved: Path,
) -> None:
    state, _ = open_checkpoints(saved, stem="conv").restore(make_state(0))
    assert_same(state, make_state(2))
    with pytest.raises(CheckpointError, match="stem = 'conv' where .* has 'imagenet'"):
        open_checkpoints(saved, stem="imagenet").restore(make_state(0))


def test_an_orbax_without_the_private_function_works_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orbax 0.12.4 has none of that name, by which our reads wait for all in flight."""
    monkeypatch.setattr(orbax_store, "asyncio_utils", object())
    checkpoints = open_checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, make_state(1), extra={})
    assert_same(checkpoints.restore(make_state())[0], make_state(1))
    checkpoints.close()


def test_reading_writes_nothing(saved: Path, tmp_path: Path) -> None:
    (saved / "3.orbax-checkpoint-tmp").mkdir()
    before = {f: f.stat().st_mtime_ns for f in saved.rglob("*")}
    open_checkpoints(saved).restore(make_state(0))
    assert {f: f.stat().st_mtime_ns for f in saved.rglob("*")} == before
    assert open_checkpoints(tmp_path / "none").latest_step() is None
    assert not (tmp_path / "none").exists()


def test_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = open_checkpoints(tmp_path)
    for step in (0, 5, 7, 9):
        checkpoints.save(step, make_state(step), extra={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["7", "9"]


def test_saving_an_earlier_step_ends_the_later_course(saved: Path) -> None:
    checkpoints = open_checkpoints(saved)
    checkpoints.restore(make_state(0), step=1)
    checkpoints.save(1, make_state(1), extra={"epoch": 9})  # The very same: kept.
    assert checkpoints.latest_step() == 2
    checkpoints.save(1, make_state(7), extra={"epoch": 7})
    state, extra = checkpoints.restore(make_state(0))
    assert_same(state, make_state(7))
    assert (extra, checkpoints.latest_step()) == ({"epoch": 7}, 1)


def test_flipped_or_missing_bytes_fall_back_to_the_one_before(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = saved.with_name("whole")
    shutil.copytree(saved, whole)
    fell_back = 0
    for file in data_files(saved / "2"):
        for cut in (False, True):
            size = file.stat().st_size
            if cut:
                os.truncate(file, size // 2)
            else:
                flip(file, size // 2)
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                state, extra = open_checkpoints(saved).restore(make_state(0))
            # Some files are Orbax's own notes, which a restore does not need.
            if extra["epoch"] == 1:
                fell_back += 1
                assert f"{saved}/2 is damaged" in caplog.text
            # One line for one finding: Orbax's own tracebacks stay out.
            assert not [r for r in caplog.records if "orbax" in r.pathname]
            assert_same(state, make_state(extra["epoch"]))
            shutil.copy(whole / file.relative_to(saved), file)
    assert fell_back > 10


NAMES = st.text("aB[]*?!\\~#%{}$ :\n-.,=é漢😀", min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)


@pytest.mark.processes
@given(st.lists(NAMES, min_size=1, max_size=3))
@example(["b[1]"])
@example(["a[!b]", "back\\slash"])
@example(["gs:"])
@settings(max_examples=6, deadline=None)
def test_any_path_will_do(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("paths").joinpath(*parts)
    checkpoints = open_checkpoints(folder)
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(step), extra={"epoch": step})
    checkpoints.close()
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]
    reader = open_checkpoints(folder)
    state, extra = reader.restore(make_state(0))
    assert_same(state, make_state(3))
    assert extra == {"epoch": 3}
    # Nothing is left where paths are told to Orbax in other words.
    reader.close()
    assert not [p for p in Path("/tmp").glob("alite_jax-*") if linked(p, folder)]


def linked(place: Path, folder: Path) -> bool:
    return (place / "checkpoints").resolve() == folder.resolve()


def test_a_save_that_cannot_be_read_is_none(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where Orbax found none of its parts and left out to merge them."""

    async def merge_nothing(*args: Any, **kwargs: Any) -> None:
        pass

    checkpoints = open_checkpoints(saved)
    with monkeypatch.context() as patch:
        patch.setattr(ocdbt_utils, "merge_ocdbt_per_process_files", merge_nothing)
        with pytest.raises(CheckpointError, match=f"cannot write checkpoint {saved}/3"):
            checkpoints.save(3, make_state(3), extra={})
    assert sorted(path.name for path in saved.iterdir()) == ["1", "2", "3"]
    assert_same(open_checkpoints(saved).restore(make_state(0))[0], make_state(2))
    checkpoints.save(3, make_state(3), extra={})
    assert sorted(path.name for path in saved.iterdir()) == ["2", "3"]


def test_a_warning_of_orbax_is_seen(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), _own_failures_only():
        warning, error = (
            logging.LogRecord("absl", level, ocp.__file__, 1, "said", (), None)
            for level in (logging.WARNING, logging.ERROR)
        )
        logging.getLogger("absl").handle(warning)
        logging.getLogger("absl").handle(error)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_silently_changed_leaf_is_noticed(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What Orbax would hand over without a word: a readable item with other values."""
    shutil.rmtree(saved / "2" / "model")
    shutil.copytree(saved / "1" / "model", saved / "2" / "model")
    _, extra = open_checkpoints(saved).restore(make_state(0))
    assert extra == {"epoch": 1}
    assert "differs from its digest" in caplog.text


def test_a_run_goes_on_past_a_damaged_checkpoint(saved: Path) -> None:
    shutil.rmtree(saved / "2" / "model")
    checkpoints = open_checkpoints(saved)
    checkpoints.restore(make_state(0))
    checkpoints.save(3, make_state(3), extra={"epoch": 3})
    assert sorted(path.name for path in saved.iterdir()) == ["1", "3"]
    assert_same(checkpoints.restore(make_state(0))[0], make_state(3))


def test_no_whole_checkpoint_is_one_sentence(saved: Path) -> None:
    for step in ("1", "2"):
        shutil.rmtree(saved / step / "train")
    with pytest.raises(
        CheckpointError, match=f"no checkpoint in {saved} can be read.*copy"
    ):
        open_checkpoints(saved).restore(make_state(0))
    with pytest.raises(CheckpointError, match="checkpoints/2 is damaged"):
        open_checkpoints(saved).restore(make_state(0), step=2)


def test_missing_checkpoints_say_what_is_there(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"of step 7 in .* \(it has 2, 1\)"):
        open_checkpoints(saved).restore(make_state(0), step=7)
    with pytest.raises(
        CheckpointError, match="it has none.*train the model there first"
    ):
        open_checkpoints(tmp_path / "none").restore(make_state(0))


def test_checkpoint_of_another_model_is_refused(saved: Path) -> None:
    template = model_of(make_state(0))
    message = (
        f"the checkpoints in {saved} are of another model, with width = 16 where this "
        "run has 64: use another --workdir or the same model"
    )
    with pytest.raises(CheckpointError) as caught:
        open_checkpoints(saved, width=64).restore(make_state(0))
    assert str(caught.value) == message
    with pytest.raises(CheckpointError, match="width = 16 where this run has 64"):
        open_checkpoints(saved, width=64).restore_model(template)
    with pytest.raises(CheckpointError, match="heads = None where this run has 8"):
        open_checkpoints(saved, heads=8).restore_model(template)


def test_another_structure_shape_or_dtype_is_refused(saved: Path) -> None:
    checkpoints = open_checkpoints(saved)
    with pytest.raises(
        CheckpointError,
        match=r"params/stem/kernel is float32 \(3, 3, 3, 8\) there and float16 \(3,",
    ):
        checkpoints.restore(make_state(0, np.float16))
    state = make_state(0)
    other = state.params | {"extra": np.zeros(2)}
    with pytest.raises(
        CheckpointError, match=r"params/extra is absent there and float64"
    ):
        checkpoints.restore(dataclasses.replace(state, params=other))
    with pytest.raises(
        CheckpointError, match=r"opt_state/2/trace/\S+ is .* absent here"
    ):
        checkpoints.restore(dataclasses.replace(state, opt_state=()))


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), ValueError()]
)
def test_failed_save_keeps_the_older_and_can_be_repeated(
    saved: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    checkpoints = open_checkpoints(saved)
    with monkeypatch.context() as patch:

        def fail(*args: Any, **kwargs: Any) -> None:
            raise error

        patch.setattr(ocp.JsonCheckpointHandler, "save", fail)
        patch.setattr(ocp.JsonCheckpointHandler, "async_save", fail)
        with pytest.raises(CheckpointError) as caught:
            checkpoints.save(3, make_state(3), extra={})
    assert f"cannot write checkpoint {saved}/3 (" in str(caught.value)
    assert "another --workdir" in str(caught.value)
    assert_same(checkpoints.restore(make_state(0))[0], make_state(2))
    checkpoints.save(3, make_state(3), extra={})
    assert_same(checkpoints.restore(make_state(0))[0], make_state(3))


def test_folder_below_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    checkpoints = open_checkpoints(tmp_path / "file" / "checkpoints")
    assert checkpoints.latest_step() is None
    with pytest.raises(
        CheckpointError, match="Not a directory.*make the folder writable"
    ):
        checkpoints.save(1, make_state(1), extra={})


def test_keep_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="checkpoint.keep is 0: set it to 1 or more"
    ):
        Checkpoints(tmp_path, keep=0, identity={})


KILLED_SAVE = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_checkpoints import make_state, open_checkpoints

def kill(event, arguments):
    # The last act of a save: the finished step gets its name.
    if event == "os.rename" and str(arguments[0]).endswith("/3.orbax-checkpoint-tmp"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
open_checkpoints({folder!r}).save(3, make_state(3), extra={{"epoch": 3}})
"""


@pytest.mark.processes
def test_kill_in_the_middle_of_a_save(saved: Path) -> None:
    script = KILLED_SAVE.format(tests=str(Path(__file__).parent), folder=str(saved))
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    child = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert (saved / "3.orbax-checkpoint-tmp").exists()
    checkpoints = open_checkpoints(saved)
    assert checkpoints.latest_step() == 2
    assert_same(checkpoints.restore(make_state(0))[0], make_state(2))
    checkpoints.save(3, make_state(3), extra={"epoch": 3})
    assert_same(checkpoints.restore(make_state(0))[0], make_state(3))
    assert sorted(path.name for path in saved.iterdir()) == ["2", "3"]
