"""Tables of a teacher's logits: written, checked, and listened to view by view."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from fitting import Stop, failing, records
from safetensors.numpy import save_file
from tiny import TwoLayers, assert_same, random_split, run_command, tiny_config

import alite_jax
from alite_jax.config.run_config import read_config
from alite_jax.data import pipeline
from alite_jax.data.augment import create_augmentation
from alite_jax.data.logits import read_table
from alite_jax.data.sources import Data, Split, load_split
from alite_jax.data.specs import DATASETS
from alite_jax.data.views import make_view_step, views_digest
from alite_jax.errors import AliteError, DataError
from alite_jax.jobs.sweep import sweep_table
from alite_jax.runs import fit as fit_module
from alite_jax.runs import parallel
from alite_jax.runs.teachers import open_table

pytestmark = pytest.mark.usefixtures("models")

VIEWS, COUNT = 3, 64
WEIGHTS = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
SPEC = DATASETS["digits"]


def student() -> nn.Module:
    """What `student.module` names."""
    return TwoLayers(axis_name=None)


def config_of(**fields: Any) -> Any:
    """Fields with `__` for a dot."""
    named = {name.replace("__", "."): value for name, value in fields.items()}
    changes = {"student.module": f"{__file__}:student", "student.epochs": 2}
    return tiny_config(changes | named)


def asked(views: Path) -> tuple[np.ndarray, str]:
    """What another program does: logits of the views, and their digest."""
    images = np.load(views / "images.npy", mmap_mode="r")
    described = json.loads((views / "views.json").read_text())
    mean, std = np.float32(described["mean"]), np.float32(described["std"])
    flat = ((images / np.float32(255) - mean) / std).reshape(*images.shape[:2], -1)
    return flat.astype(np.float32) @ WEIGHTS, described["digest"]


def linear(variables: Any, images: jax.Array) -> jax.Array:
    """The same teacher as a function."""
    return images.reshape(len(images), -1) @ variables


@pytest.fixture(scope="module")
def views(models: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return alite_jax.write_views(
        config_of(seed=7), tmp_path_factory.mktemp("views"), VIEWS
    )


@pytest.fixture(scope="module")
def table(views: Path) -> Path:
    logits, digest = asked(views)
    file = views / "table.safetensors"
    save_file({"logits": logits.astype(np.float16)}, file, {"digest": digest})
    return file


@pytest.fixture(scope="module")
def run(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A whole run with the table, and the batches that its student's steps got."""
    folder, spread = tmp_path_factory.mktemp("taught by a table"), parallel.spread
    seen: list[Any] = []

    def recorded(step: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        program = spread(step, **options)
        if step.__name__ != "train_step":
            return program

        def call(state: Any, variables: Any, batch: Any) -> Any:
            seen.append(jax.device_get(batch))
            return program(state, variables, batch)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "spread", recorded)
        alite_jax.train(config_of(teacher__logits=str(table)), folder)
    return folder, seen


def test_the_student_sees_what_the_job_wrote_to_the_last_byte(
    run: tuple[Path, Any], views: Path
) -> None:
    written = np.load(views / "images.npy")
    labels = np.load(views / "labels.npy")
    logits = asked(views)[0].astype(np.float16)
    assert written.shape == (VIEWS, COUNT, 8, 8, 1) and written.dtype == np.uint8
    assert len(run[1]) == 8
    passes: list[dict[int, int]] = [{}, {}]
    for step, batch in enumerate(run[1]):
        index, view = batch["index"], batch["view"]
        assert batch["image"].shape == (2, 8, 8, 8, 1)
        np.testing.assert_array_equal(batch["image"], written[view, index])
        np.testing.assert_array_equal(batch["label"], labels[index])
        np.testing.assert_array_equal(
            batch["teacher_logits"], np.float32(logits[view, index]), strict=True
        )
        passes[step // 4] |= dict(zip(index.flat, view.flat, strict=True))
    for number, found in enumerate(passes):
        assert found == {i: (number + i) % VIEWS for i in range(COUNT)}


@pytest.mark.parametrize("kind", ["crop", "resized_crop"])
def test_a_view_depends_on_image_and_number_alone(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on the batch, its cut into shards, the seed, or how images are read."""
    monkeypatch.setattr(  # Workers of this very process.
        pipeline, "by_workers", lambda make, keys, workers: map(make, keys)
    )
    fields = {"data__view": kind, "data__train_split": "train[:300]"}
    written = [
        np.load(alite_jax.write_views(config, tmp_path / name, VIEWS) / "images.npy")
        for name, config in {
            "memory": config_of(**fields),
            "stream": config_of(**fields, data__loading="stream", seed=1),
        }.items()
    ]
    np.testing.assert_array_equal(*written)
    texts = [
        (tmp_path / name / "views.json").read_bytes() for name in ("memory", "stream")
    ]
    assert texts[0] == texts[1]

    images = load_split(config_of(**fields).data, "train").images
    np.testing.assert_array_equal(written[0][0], images)
    for other in (0, 2):
        changed = (written[0][1] != written[0][other]).any(axis=(1, 2, 3))
        assert changed.mean() > 0.8
    index = np.random.default_rng(0).permutation(300)[:14].reshape(2, 7)
    index, view = np.int32(index), np.arange(14, dtype=np.int32).reshape(2, 7) % VIEWS
    step = parallel.spread(
        make_view_step(create_augmentation(config_of(**fields).data))
    )
    found = step({"image": images[index], "index": index, "view": view})["image"]
    np.testing.assert_array_equal(found, written[0][view, index])


@pytest.mark.processes
def test_the_run_is_that_with_the_teacher_itself(tmp_path: Path) -> None:
    """Of one view, which is the image itself."""
    plain = {"data__crop_padding": 0, "data__flip": False}
    # Of one view the augmentation makes no difference.
    logits, digest = asked(alite_jax.write_views(config_of(), tmp_path / "views", 1))
    np.savez(tmp_path / "table.npz", logits=logits[0], digest=digest)
    by_table = config_of(**plain, teacher__logits=str(tmp_path / "table.npz"))
    alite_jax.train(by_table, tmp_path / "table")
    alite_jax.train(config_of(**plain), tmp_path / "itself", teacher=(linear, WEIGHTS))
    found, wanted = (records(tmp_path / name) for name in ("table", "itself"))
    assert len(found) == len(wanted) > 8
    for line, other in zip(found, wanted, strict=True):
        assert line.keys() == other.keys()
        for name, value in line.items():
            assert value == (
                other[name]
                if isinstance(value, str)
                else pytest.approx(other[name], rel=1e-5, abs=1e-5)
            )


@pytest.mark.processes
def test_such_a_run_is_evaluated_exported_and_reported(
    run: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run[0]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["teacher"] is None and summary["ratios"] == {}
    config = read_config(folder)
    assert alite_jax.evaluate(config, folder)["student"] == summary["student"]
    card = alite_jax.export(config, folder, "float32")
    assert card["accuracy"] == summary["student"]["accuracy"]
    assert card["teacher"] is None
    assert alite_jax.restore(config, folder).keys() == {"student"}
    page = alite_jax.report(config, folder).read_text()
    assert "a table of its logits" in page
    capsys.readouterr()
    assert run_command(f"--workdir={folder}") == 0
    printed = capsys.readouterr().out
    rows = {line.split("  ")[0]: line for line in printed.splitlines()}
    assert rows["parameters"].split()[1] == "-"


@pytest.mark.processes
def test_killed_and_resumed_it_is_the_same_run(
    run: tuple[Path, Any], table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the table named as seen from the working directory."""
    monkeypatch.chdir(table.parent)
    config = config_of(teacher__logits=table.name, checkpoint__every_steps=1)
    with monkeypatch.context() as patch:
        save = fit_module.Checkpoints.save
        patch.setattr(fit_module.Checkpoints, "save", failing(save, 5))
        with pytest.raises(Stop):
            alite_jax.train(config, tmp_path)
    alite_jax.train(config, tmp_path)
    found, wanted = (
        alite_jax.restore(read_config(folder), folder)["student"][1]
        for folder in (tmp_path, run[0])
    )
    assert_same(found, wanted)


@pytest.mark.processes
def test_a_sweep_has_the_table_for_all_its_runs(table: Path, tmp_path: Path) -> None:
    """By a method that asks for gradients, which needs the teacher, too."""
    changes = {"pruning__method": "rigl", "pruning__every_steps": 2}
    config = config_of(teacher__logits=str(table), **changes, student__epochs=1)
    rows = alite_jax.sweep(config, {"distillation.alpha": [0.9]}, tmp_path)
    assert (rows[0]["teacher_accuracy"], rows[0]["ratio"]) == (None, None)
    assert sweep_table(rows).splitlines()[1].split().count("-") == 2


def test_the_digest_is_of_images_order_views_and_augmentation() -> None:
    split = random_split(300)
    digest = partial(views_digest, split, 2)
    base = config_of().data
    settings = {"crop_padding": 1, "flip": False, "view": "crop"}
    settings |= {"shape": [300, 8, 8, 1], "views": 2}
    assert [base.crop_padding, base.flip] == [settings["crop_padding"], False]
    text = json.dumps(settings, sort_keys=True).encode()
    slow = hashlib.sha256(text + split.images.tobytes()).hexdigest()
    assert digest(base) == slow

    swapped = split.images.copy()
    swapped[[0, 299]] = swapped[[299, 0]]
    reshaped = split.images.reshape(300, 4, 16, 1)
    others = [
        views_digest(Split(swapped, split.labels), 2, base),
        views_digest(Split(reshaped, split.labels), 2, base),
        views_digest(Split(split.images[:-1], split.labels[:-1]), 2, base),
        views_digest(split, 3, base),
        digest(config_of(data__crop_padding=3).data),
        digest(config_of(data__flip=True).data),
        digest(config_of(data__view="resized_crop").data),
        digest(config_of(data__view="resized_crop", data__crop_area=0.5).data),
        digest(config_of(data__view="resized_crop", data__crop_aspect=2).data),
    ]
    assert len({slow, *others}) == 10
    # What has no part in the views has none in the digest.
    assert digest(config_of(data__crop_area=0.5, seed=3, data__workers=2).data) == slow
    alone = {
        views_digest(split, 1, config_of(data__flip=f).data) for f in (True, False)
    }
    assert len(alone) == 1


GOOD = np.random.default_rng(1).normal(size=(2, 64, 10)).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits)
    return powers / powers.sum(axis=-1, keepdims=True)


def with_nan(logits: np.ndarray) -> np.ndarray:
    logits = logits.copy()
    logits[0, 3, 1], logits[1, 3, :2] = np.nan, np.inf
    return logits


@pytest.mark.parametrize(
    ("fields", "logits", "message"),
    [
        ({}, GOOD[:, :60], "has logits of 60 images, but 64 of digits are trained on"),
        ({}, GOOD[..., :7], "has 7 logits for an image, but digits has 10 classes"),
        ({}, GOOD[:1], "of other images than these 1 view.s.: .* run --job=views ag"),
        ({"data.crop_padding": 2}, GOOD, "another augmentation or number of views; r"),
        ({}, with_nan(GOOD), "NaN or infinity in 2 of 128 rows; compute them again"),
        ({}, softmax(GOOD), "gives probabilities .*; set teacher.output=probabilities"),
        (
            {"teacher.output": "probabilities"},
            GOOD,
            "gives no probabilities .* 'logits",
        ),
    ],
)
def test_a_table_of_something_else_is_refused(
    fields: dict[str, Any], logits: np.ndarray, message: str, tmp_path: Path
) -> None:
    data = Data(SPEC, random_split(64), random_split(50))
    digest = views_digest(data.train, 2, config_of().data)
    save_file({"logits": logits}, tmp_path / "a.safetensors", {"digest": digest})
    fields = {"teacher.logits": str(tmp_path / "a.safetensors")} | fields
    with pytest.raises(AliteError, match=message):
        open_table(tiny_config(fields), data)


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_both_kinds_of_file_are_read_and_answer_for_view_and_index(
    suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"table.{suffix}"

    def read(logits: np.ndarray, digest: str, probabilities: bool = False) -> Any:
        if suffix == "npz":
            np.savez(path, logits=logits, **({"digest": digest} if digest else {}))
        else:
            metadata = {"digest": digest} if digest else {}
            save_file({"another": logits[:1], "logits": logits}, path, metadata)
        return read_table(path, probabilities)

    index = np.array([[5, 0], [63, 5]], np.int32)
    view = np.array([[1, 0], [1, 0]], np.int32)
    found = read(GOOD, "a digest")
    assert found.digest == "a digest"
    assert isinstance(found.logits, np.memmap) == (suffix == "safetensors")
    answered = found.answered({"index": index, "view": view})
    np.testing.assert_array_equal(answered["teacher_logits"][1, 0], GOOD[1, 63])
    assert answered["teacher_logits"].shape == (2, 2, 10)
    half = read(GOOD[0].astype(np.float16), "a digest")
    assert half.logits.shape == (1, 64, 10)
    answered = half.answered({"index": index, "view": 0 * view})
    assert answered["teacher_logits"].dtype == np.float32
    chances = softmax(GOOD)
    chances[1, 5, 0] = 0
    answered = read(chances, "a digest", True).answered({"index": index, "view": view})
    np.testing.assert_allclose(
        answered["teacher_logits"][1, 0], np.log(chances[1, 63]), rtol=1e-6
    )
    assert -90 < answered["teacher_logits"][0, 0, 0] < -80
    with pytest.raises(DataError, match="which has no 'digest', by which images are"):
        read(GOOD, "")
    with pytest.raises(DataError, match=r"are int32 and of shape|no table of logits"):
        read(GOOD.astype(np.int32), "a digest")
    with pytest.raises(DataError, match=r"of shape \(64,\); it must hold 'logits', fl"):
        read(GOOD[0, :, 0], "a digest")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="damaged or no table of logits"):
        read_table(path, False)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no .safetensors or .npz file; write one with"):
        read_table(tmp_path / "logits.pt", False)
    with pytest.raises(DataError, match="cannot be read .No such file"):
        read_table(tmp_path / "logits.safetensors", False)
    np.savez(tmp_path / "weights.npz", kernel=GOOD)
    with pytest.raises(DataError, match="no table of logits .*logits"):
        read_table(tmp_path / "weights.npz", False)


def test_views_that_cannot_be_written_say_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write views to .*; choose another fo"):
        alite_jax.write_views(config_of(), tmp_path / "file")
    assert run_command("--job=views", "--views=0") == 2
    assert run_command("--views=2") == 2
