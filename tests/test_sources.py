"""Reading prepared data sets: what comes out, and what is refused."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from archives import data_config, write_tfds
from sklearn.datasets import load_digits

from alite_jax.config import get_config
from alite_jax.data.builders.encoding import encode_png
from alite_jax.data.resize import area_average
from alite_jax.data.sources import load_split
from alite_jax.data.specs import DATASETS
from alite_jax.deploy.artefact import Artefact
from alite_jax.errors import ConfigError, DataError

CIFAR_IMAGE = (32, 32, 3)


def random_examples(
    n: int, shape: tuple[int, ...] = CIFAR_IMAGE
) -> list[tuple[np.ndarray, int]]:
    random = np.random.default_rng(0)
    return [(random.integers(0, 256, shape, np.uint8), i % 10) for i in range(n)]


def cifar10_folder(folder: Path, n: int = 6, **replaced: tuple) -> Path:
    """Writes a cifar10 of n examples, some of them replaced, and returns its folder."""
    examples = random_examples(n)
    for index, example in replaced.items():
        examples[int(index.removeprefix("at"))] = example
    write_tfds(folder, "cifar10", "3.0.2", examples)
    return folder / "cifar10" / "3.0.2"


def test_digits_are_scikit_learns_images_with_a_stratified_split() -> None:
    train, test = (load_split(data_config(), split) for split in ("train", "eval"))
    assert train.images.shape == (1297, 8, 8, 1) and train.images.dtype == np.uint8
    assert test.images.shape == (500, 8, 8, 1) and test.labels.dtype == np.int32
    assert np.bincount(test.labels).tolist() == [50] * 10

    grey, labels = load_digits(return_X_y=True)
    # Halves are rounded up: 8 of 16 is 127.5 of 255.
    scaled = np.floor(grey / 16 * 255 + 0.5).astype(np.uint8)
    expected = sorted(
        (image.tobytes(), label) for image, label in zip(scaled, labels, strict=True)
    )
    got = [
        (image.tobytes(), label)
        for split in (train, test)
        for image, label in zip(split.images, split.labels.tolist(), strict=True)
    ]
    assert sorted(got) == expected
    assert {0, 128, 255} <= set(np.unique(train.images).tolist())


def test_digits_constants_are_those_of_the_training_split() -> None:
    pixels = load_split(data_config(), "train").images / 255
    spec = DATASETS["digits"]
    assert spec.mean == (round(float(pixels.mean()), 4),)
    assert spec.std == (round(float(pixels.std()), 4),)


def test_digits_split_and_order_never_change(tmp_path: Path) -> None:
    here = load_split(data_config(), "train")
    there = load_split(data_config(data_dir=str(tmp_path)), "train")
    np.testing.assert_array_equal(here.images, there.images)
    # Written down once: a change would make results incomparable.
    assert there.labels[:12].tolist() == [3, 4, 2, 7, 6, 0, 0, 8, 0, 7, 4, 5]
    assert int(there.images.sum()) == 6_479_771


@pytest.mark.parametrize("name", DATASETS)
def test_only_digits_are_never_mirrored(name: str) -> None:
    assert get_config(name).data.flip == (name != "digits")


def test_examples_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    cifar10_folder(tmp_path)
    split = load_split(data_config(name="cifar10", data_dir=str(tmp_path)), "eval")
    for image, label, (expected, expected_label) in zip(
        split.images, split.labels, random_examples(6), strict=True
    ):
        np.testing.assert_array_equal(image, expected)
        assert label == expected_label


def test_split_strings_select_parts(tmp_path: Path) -> None:
    cifar10_folder(tmp_path, n=10)
    config = data_config(
        name="cifar10",
        data_dir=str(tmp_path),
        train_split="train[:80%]",
        eval_split="train[80%:]",
    )
    train, held_out = load_split(config, "train"), load_split(config, "eval")
    assert train.labels.tolist() == list(range(8))
    assert held_out.labels.tolist() == [8, 9]


def test_data_dir_of_the_config_wins_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar10_folder(tmp_path / "config", n=2)
    cifar10_folder(tmp_path / "environment", n=3)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "environment"))
    assert len(load_split(data_config(name="cifar10"), "train")) == 3
    config = data_config(name="cifar10", data_dir=str(tmp_path / "config"))
    assert len(load_split(config, "train")) == 2


def test_home_folder_without_config_or_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    cifar10_folder(tmp_path / "tensorflow_datasets", n=2)
    assert len(load_split(data_config(name="cifar10"), "train")) == 2


def test_image_size_reduces_while_reading() -> None:
    full = load_split(data_config(), "eval")
    small = load_split(data_config(image_size=4), "eval")
    assert small.images.shape == (500, 4, 4, 1)
    np.testing.assert_array_equal(small.images, area_average(full.images, 4, 4))
    np.testing.assert_array_equal(small.labels, full.labels)


def test_files_are_read_and_reduced_as_in_training(tmp_path: Path) -> None:
    full = load_split(data_config(), "eval").images[:50]
    small = load_split(data_config(image_size=4), "eval").images[:50]
    network = Artefact({"image_shape": [4, 4, 1]}, lambda images: images)
    for image, expected in zip(full, small, strict=True):
        (tmp_path / "x.png").write_bytes(encode_png(image))
        found = network.read_image(tmp_path / "x.png")
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("image_size", [3, 5, 16])
def test_any_image_size_will_do(image_size: int) -> None:
    full, other = (
        load_split(data_config(image_size=size), "eval") for size in (0, image_size)
    )
    expected = area_average(full.images, image_size, image_size)
    np.testing.assert_array_equal(other.images, expected)


def test_unknown_name_shows_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'cifar100' or 'cifar10"):
        load_split(data_config(name="cifar1000"), "train")


@pytest.mark.parametrize(
    "split", ["trian[:10%]", "train[:10", "train[:0]", "train[60%:50%]", "train[9999:]"]
)
def test_bad_split_string_names_the_valid_ones(split: str) -> None:
    expected = f"data.train_split = {split!r} is not a split of digits"
    with pytest.raises(ConfigError, match=re.escape(expected)) as caught:
        load_split(data_config(train_split=split), "train")
    assert "'train' (1297 examples), 'test' (500 examples)" in str(caught.value)


def test_missing_data_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_split(data_config(name="cifar10", data_dir=str(tmp_path)), "train")
    assert f"cifar10 is not prepared in {tmp_path}" in str(caught.value)
    command = "python -m alite_jax prepare --config=cifar10"
    assert f"{command} --config.data.data_dir={tmp_path}`" in str(caught.value)

    with pytest.raises(DataError) as caught:
        load_split(data_config(name="tiny_imagenet", data_dir=str(tmp_path)), "train")
    archive_folder = tmp_path / "downloads" / "manual"
    assert f"put tiny-imagenet-200.zip into {archive_folder}" in str(caught.value)


def test_label_outside_the_classes(tmp_path: Path) -> None:
    cifar10_folder(tmp_path, at4=(np.zeros(CIFAR_IMAGE, np.uint8), 10))
    config = data_config(
        name="cifar10", data_dir=str(tmp_path), train_split="train[2:]"
    )
    expected = r"example 2 of cifar10 split 'train\[2:\]' has label 10, expected 0 to 9"
    with pytest.raises(DataError, match=expected):
        load_split(config, "train")


def test_image_of_another_size(tmp_path: Path) -> None:
    cifar10_folder(tmp_path, at3=(np.zeros((31, 32, 3), np.uint8), 0))
    config = data_config(name="cifar10", data_dir=str(tmp_path))
    expected = "example 3 of cifar10 split 'test' is an image of shape (31, 32, 3)"
    with pytest.raises(DataError, match=re.escape(expected)):
        load_split(config, "eval")


def test_a_grey_image_among_colours_has_three_equal_channels(tmp_path: Path) -> None:
    grey = random_examples(1, (32, 32, 1))[0][0]
    cifar10_folder(tmp_path, at3=(grey, 0))
    config = data_config(name="cifar10", data_dir=str(tmp_path))
    found = load_split(config, "eval").images[3]
    np.testing.assert_array_equal(found, np.repeat(grey, 3, axis=-1))


def test_unreadable_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archives.encode_png", lambda image: b"no image")
    cifar10_folder(tmp_path)
    config = data_config(name="cifar10", data_dir=str(tmp_path))
    with pytest.raises(DataError, match="example 0 .* is no image of any known"):
        load_split(config, "eval")


def truncate(folder: Path) -> None:
    file = next(folder.glob("cifar10-train*"))
    file.write_bytes(file.read_bytes()[:70_000])


def flip_bits(folder: Path) -> None:
    file = next(folder.glob("cifar10-train*"))
    data = bytearray(file.read_bytes())
    data[3_000] ^= 255
    file.write_bytes(data)


def delete(folder: Path) -> None:
    next(folder.glob("cifar10-train*")).unlink()


def delete_info(folder: Path) -> None:
    (folder / "dataset_info.json").unlink()


@pytest.mark.parametrize("damage", [truncate, flip_bits, delete, delete_info])
def test_damaged_or_half_copied_folder(tmp_path: Path, damage) -> None:
    folder = cifar10_folder(tmp_path)
    damage(folder)
    with pytest.raises(DataError, match="is incomplete.*delete that folder and run"):
        load_split(data_config(name="cifar10", data_dir=str(tmp_path)), "train")


def test_folder_that_tfds_left_unfinished_is_not_there(tmp_path: Path) -> None:
    folder = cifar10_folder(tmp_path)
    folder.rename(folder.with_name("incomplete.ABCDEF_3.0.2"))
    with pytest.raises(DataError, match="is not prepared"):
        load_split(data_config(name="cifar10", data_dir=str(tmp_path)), "train")


def test_another_file_format_is_explained(tmp_path: Path) -> None:
    folder = cifar10_folder(tmp_path)
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "riegeli"
    (folder / "dataset_info.json").write_text(json.dumps(info))
    expected = "stored as riegeli, but only array_record and tfrecord are read; set"
    with pytest.raises(DataError, match=expected):
        load_split(data_config(name="cifar10", data_dir=str(tmp_path)), "train")


def test_newest_version_is_read(tmp_path: Path) -> None:
    write_tfds(tmp_path, "cifar10", "3.0.2", random_examples(2))
    write_tfds(tmp_path, "cifar10", "3.0.10", random_examples(3))
    config = data_config(name="cifar10", data_dir=str(tmp_path))
    assert len(load_split(config, "train")) == 3


@pytest.mark.processes
def test_reading_needs_no_tensorflow_and_importing_no_tfds(tmp_path: Path) -> None:
    cifar10_folder(tmp_path)
    script = f"""
import sys
import alite_jax.data.pipeline, alite_jax.data.augment
from archives import data_config
assert "tensorflow_datasets" not in sys.modules, "imported too early"
from alite_jax.data.builders.encoding import encode_png
from alite_jax.data.resize import area_average
from alite_jax.data.sources import load_split
config = data_config(name="cifar10", data_dir={str(tmp_path)!r})
assert len(load_split(config, "train")) == 6
config = data_config(data_dir={str(tmp_path)!r})
assert len(load_split(config, "train")) == 1297
assert "tensorflow" not in sys.modules
"""
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={"PYTHONPATH": f"{root}:{root / 'tests'}", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    # Neither a warning nor a progress bar: digits are prepared without a word.
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
