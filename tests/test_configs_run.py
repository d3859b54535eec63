"""Every config: its documented command, both networks, and its `smoke` to the end."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from archives import write_images, write_tfds
from tiny import run_command

import alite_jax
from alite_jax.config.files import config_directory, config_names, load_config_file
from alite_jax.data.sources import Data, Split
from alite_jax.data.specs import DATASETS, DatasetSpec
from alite_jax.errors import ConfigError
from alite_jax.jobs import train as train_job
from alite_jax.models.configured import model_settings
from alite_jax.runs.metrics import read_metrics

# `default` is the list of fields, not a run.
NAMES = [name for name in config_names() if name != "default"]
# What is known of a folder's data set comes from the folder.
FOLDER = DatasetSpec("folder", 5, (0, 0, 3), "train", "validation")
SPECS = {**DATASETS, "folder": FOLDER}
VERSIONS = {"cifar10": "3.0.2", "cifar100": "3.0.2", "tiny_imagenet": "1.0.0"}


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_has_the_command(name: str) -> None:
    module = load_config_file(config_directory() / f"{name}.py")
    chosen = {"folder": ":PATH", "folder_cpu": ":PATH", "tfds": ":NAME"}.get(name, "")
    config = f"--config=configs/{name}.py{chosen}"
    assert f"python launch.py {config} --workdir=runs/{name}" in str(module.__doc__)
    dataset = alite_jax.get_config(name).data.name
    prepare = f"--config=configs/{dataset}.py --job=prepare"
    assert (prepare in str(module.__doc__)) == (name in VERSIONS)


def one_image(spec: DatasetSpec, side: int) -> Data:
    """Something of the right shape."""
    images = np.zeros((1, side, side, spec.image_shape[2]), np.uint8)
    split = Split(images, np.zeros(1, np.int32))
    return Data(spec, split, split)


@pytest.mark.parametrize("argument", ["", ":smoke"])
@pytest.mark.parametrize("name", NAMES)
def test_both_networks_can_be_built(tmp_path: Path, name: str, argument: str) -> None:
    """In the full size, too: only shapes are worked out."""
    config = alite_jax.get_config(name + argument)
    spec = SPECS[config.data.name]
    side = config.data.image_size or spec.image_shape[0]
    networks = train_job.create_networks(config, one_image(spec, side), tmp_path)
    teacher, student = (network.identity for network in networks)
    assert (teacher["model"], student["model"]) == (
        config.teacher.model,
        config.student.model,
    )
    assert teacher["num_classes"] == student["num_classes"] == spec.num_classes
    assert teacher["image_shape"] == [side, side, spec.image_shape[2]]
    assert not list(tmp_path.iterdir())


def test_identities_are_those_of_before_but_for_the_teacher_s_stem(
    tmp_path: Path,
) -> None:
    config = alite_jax.get_config("cifar10:smoke,stem=attention")
    data = one_image(DATASETS["cifar10"], 32)
    networks = train_job.create_networks(config, data, tmp_path)
    before = {
        "dataset": "cifar10",
        "image_shape": [32, 32, 3],
        "width": 8,
        "num_classes": 10,
    }
    options = {"kernel_size": 7, "heads": 8, "border": "zero"}
    teacher, student = (network.identity for network in networks)
    assert teacher == before | {"model": "resnet26", "stem": "conv"}
    model = {"model": "resnet26_attention", "stem": "attention"}
    assert student == before | options | model


@pytest.mark.parametrize(
    ("side", "image_size", "stem"),
    [(95, 0, "conv"), (96, 0, "imagenet"), (192, 64, "conv"), (192, 96, "imagenet")],
)
def test_a_stem_is_chosen_by_the_side_of_the_images_that_networks_see(
    side: int, image_size: int, stem: str
) -> None:
    spec = replace(DATASETS["tiny_imagenet"], image_shape=(side, 2 * side, 3))
    stems = {f"{network}.stem": "auto" for network in ("teacher", "student")}
    config = alite_jax.get_config(
        "tiny_imagenet", stems | {"data.image_size": image_size}
    )
    for network in ("teacher", "student"):
        assert model_settings(config, network, spec)["stem"] == stem


def test_features_are_compared_between_maps_of_equal_sides_only(tmp_path: Path) -> None:
    changes = {"student.stem": "imagenet", "distillation.feature_weight": 1}
    config = alite_jax.get_config("digits:smoke", changes)
    data = one_image(DATASETS["digits"], 8)
    message = "feature_weight .* teacher's are 8x8, 4x4, .* and the student's 2x2, 1x1"
    with pytest.raises(ConfigError, match=message):
        train_job.create_networks(config, data, tmp_path)
    both = alite_jax.override(config, {"teacher.stem": "imagenet"})
    train_job.create_networks(both, data, tmp_path)


@pytest.fixture
def quick_compilation() -> Iterator[None]:
    """The programs run for a moment only, and compiling them takes all the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("name", NAMES)
def test_smoke_runs_to_the_end(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own networks on few images: one step an epoch, and a rewiring."""
    config = alite_jax.get_config(f"{name}:smoke")
    spec = SPECS[config.data.name]
    changes = [
        *(f"data.train_split={spec.train_split}[:24]", "data.batch_size=24"),
        *(f"data.eval_split={spec.eval_split}[:5]", "data.eval_batch_size=10"),
    ]
    if spec.name in VERSIONS:
        random = np.random.default_rng(0)
        examples = [
            (random.integers(0, 256, spec.image_shape, np.uint8), label)
            for label in range(-12, 12)
        ]
        examples = [(image, label % spec.num_classes) for image, label in examples]
        splits = (spec.train_split, spec.eval_split)
        version = VERSIONS[spec.name]
        write_tfds(tmp_path / "data", spec.name, version, examples, splits)
        changes.append(f"data.data_dir={tmp_path / 'data'}")
    if spec.name == "folder":
        random = np.random.default_rng(0)
        images = {
            f"class{label}/{i}.png": random.integers(0, 256, (16 + i, 20, 3), np.uint8)
            for label in range(spec.num_classes)
            for i in range(6)
        }
        folder = write_images(tmp_path / "folder", images)
        changes.append(f"data.folder={folder}")
    workdir = tmp_path / "run"
    capsys.readouterr()
    status = run_command(
        f"--config=configs/{name}.py:smoke",
        f"--workdir={workdir}",
        *(f"--config.{change}" for change in changes),
    )
    output = capsys.readouterr()
    assert status == 0, output.err
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["dataset"] == spec.name
    assert summary["student"]["density"] == pytest.approx(
        config.student.density, rel=0.01
    )
    assert summary["ratios"]["parameters"] > 10
    steps = {(line["phase"], line["step"]) for line in read_metrics(workdir)}
    assert steps == {("teacher", 1), ("student", 1), ("student", 2)}
    assert "teacher epoch 1/1: " in output.err
    assert "student epoch 2/2: " in output.err
    assert "non-zero parameters" in output.out
