"""A folder of images as a data set: its layouts, its copy, and what is refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import data_config, write_images
from ml_collections import ConfigDict
from PIL import Image
from tiny import SETTINGS, run_command

import alite_jax
from alite_jax.data import folder_copy
from alite_jax.data.builders.image_folder import ImageFolder
from alite_jax.data.folder import HELD_OUT
from alite_jax.data.images import read_image
from alite_jax.data.resize import BILINEAR, decode_least, resize_and_crop
from alite_jax.data.sources import describe, load_split
from alite_jax.errors import ConfigError, DataError
from alite_jax.runs.data import load_data
from alite_jax.runs.folder import read_spec, record_spec

# Two classes of five, each image of a grey of its own.
PETS = {
    f"{pet}/{i}.png": 20 * i + a
    for a, pet in enumerate(("cat", "dog"))
    for i in range(5)
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "my photos"


def config_of(root: Path, **fields: Any) -> ConfigDict:
    fields = {"data_dir": str(root.parent / "data"), **fields}
    return data_config(name="folder", folder=str(root), **fields)


def greys(config: ConfigDict, split: str) -> list[tuple[int, int]]:
    """The label and the grey of each image of a split, sorted."""
    found = load_split(config, split)  # type: ignore[arg-type]
    assert (found.images == found.images[:, :1, :1, :1]).all()
    pairs = zip(found.labels, found.images[:, 0, 0, 0], strict=True)
    return sorted((int(label), int(grey)) for label, grey in pairs)


def test_a_share_of_each_class_is_held_out(root: Path) -> None:
    files = {f"a/{i}.png": i for i in range(20)} | {
        f"b/{i}.png": 99 + i for i in (1, 2)
    }
    config = config_of(write_images(root, files))
    train, held_out = greys(config, "train"), greys(config, "eval")
    assert sorted(train + held_out) == [
        *((0, i) for i in range(20)),
        *((1, 99 + i) for i in (1, 2)),
    ]
    assert [label for label, _ in held_out] == [0] * round(HELD_OUT * 20) + [1]


@pytest.mark.parametrize(
    ("names", "evaluated"),
    [
        (("train", "val"), "val"),
        (("train", "valid"), "valid"),
        (("train", "validation"), "validation"),
        (("train", "test"), "test"),
        (("Train", "Val"), "Val"),
        (("training", "testing"), "testing"),
        (("train", "val", "test"), "val"),
    ],
)
def test_splits_that_the_folder_has(
    names: tuple[str, ...], evaluated: str, root: Path
) -> None:
    files = {
        f"{name}/{pet}/x.png": 50 * place + label
        for place, name in enumerate(names)
        for label, pet in enumerate(("cat", "dog"))
    }
    write_images(root, files | {"annotations/cat/x.xml": b"no image"})
    config, place = config_of(root), 50 * names.index(evaluated)
    assert greys(config, "train") == [(0, 0), (1, 1)]
    assert greys(config, "eval") == [(0, place), (1, place + 1)]
    if "test" in names:
        config.eval_split = "test"
        place = 50 * names.index("test")
        assert greys(config, "eval") == [(0, place), (1, place + 1)]


def test_the_only_split_is_cut_in_two(root: Path) -> None:
    config = config_of(write_images(root / "train", PETS).parent)
    assert len(greys(config, "train")) == 8 and len(greys(config, "eval")) == 2


def test_what_is_an_image(root: Path) -> None:
    write_images(root, PETS)
    write_images(
        root,
        {
            "cat/deep/er/5.PNG": 101,
            "cat/6.JPEG": 102,
            "cat/.hidden.png": 1,
            "cat/.ipynb_checkpoints/0-checkpoint.png": 2,
            "cat/__MACOSX/._0.png": 3,
            "cat/notes.txt": b"x",
            "cat/film.mpg": b"x",
            "cat/Thumbs.db": b"x",
            ".git/0.png": 4,
            "overview.png": 5,
        },
    )
    write_images(root.parent, {"elsewhere/deep/7.png": 103, "8.png": 104})
    (root / "cat" / "linked").symlink_to(root.parent / "elsewhere")
    (root / "cat" / "8.png").symlink_to(root.parent / "8.png")
    (root / "cat" / "loop").symlink_to(root / "cat")
    config = config_of(root)
    found = [pair for split in ("train", "eval") for pair in greys(config, split)]
    wanted = [(int("dog" in path), grey) for path, grey in PETS.items()]
    assert sorted(found) == sorted(
        wanted + [(0, grey) for grey in (101, 102, 103, 104)]
    )


def test_classes_of_odd_names_in_the_order_of_torchvision(root: Path) -> None:
    names = ["10", "2", "Zebra", "_", "a cat", "a,b:c", "train", "test", "ünï", "猫"]
    files = {
        f"{name}/{i}.png": 10 * i + label
        for label, name in enumerate(names)
        for i in range(2)
    }
    config = config_of(write_images(root, files))
    # As torchvision.datasets.ImageFolder sorts them.
    assert list(describe(config).class_names) == sorted(names)
    for label, grey in greys(config, "train") + greys(config, "eval"):
        assert names[grey % 10] == sorted(names)[label]


@pytest.mark.parametrize("name", ["a, b", "a:b", "photos,width", "ünï"])
def test_the_folder_on_the_command_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / name, PETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    prepared = set()
    for path in (f"{tmp_path}/{name}", f"{tmp_path}/{name}/", name, f"~/{name}"):
        config = alite_jax.get_config(f"folder:{path},smoke")
        assert config.data.folder == path and config.data.image_size == 16
        config.data.data_dir = str(tmp_path / "data")
        spec = describe(config.data)
        assert spec.name == name
        prepared.add(spec.prepared)
    assert len(prepared) == 1


def test_the_same_images_are_held_out_everywhere(root: Path, tmp_path: Path) -> None:
    write_images(root, PETS)
    there = tmp_path / "there" / "other name"
    for path in reversed(PETS):
        write_images(there, {path: (root / path).read_bytes()})
        os.utime(there / path, (1, 1))
    here, other = config_of(root), config_of(there)
    assert here.data_dir != other.data_dir
    for part in ("train", "eval"):
        first, second = load_split(here, part), load_split(other, part)
        np.testing.assert_array_equal(first.images, second.images)
        np.testing.assert_array_equal(first.labels, second.labels)


def test_copies_of_an_image_are_on_one_side(root: Path) -> None:
    copies = {f"cat/copy {i}.png": PETS[f"cat/{i % 5}.png"] for i in range(10)}
    config = config_of(write_images(root, PETS | copies))
    train, held_out = greys(config, "train"), greys(config, "eval")
    assert len(train) + len(held_out) == 20
    assert not set(train) & set(held_out)
    assert [label for label, _ in held_out] == [0, 0, 0, 1]


def odd_files(folder: Path, shape: tuple[int, int]) -> list[Path]:
    """Photographs of many kinds."""
    colours = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    image = Image.fromarray(colours)
    deep = Image.fromarray(colours[..., 0].astype(np.uint16) * 257)
    clear = image.copy()
    clear.putalpha(Image.fromarray(colours[..., 1]))
    turned = image.getexif()
    turned[0x0112] = 3
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "grey.jpg": (image.convert("L"), {}),
        "ink.jpg": (image.convert("CMYK"), {}),
        "palette.gif": (image.convert("P"), {}),
        "palette.png": (image.convert("P"), {}),
        "bits.png": (image.convert("1"), {}),
        "deep.png": (deep, {}),
        "deep.tif": (deep, {}),
        "turned.jpg": (image, {"exif": turned}),
        "alpha.png": (clear, {}),
        "alpha.webp": (clear, {"lossless": True}),
        "plain.bmp": (image, {}),
    }
    folder.mkdir(parents=True)
    for name, (content, options) in kinds.items():
        content.save(folder / name, **options)
    return [folder / name for name in kinds]


def test_every_kind_of_file_is_read_as_in_predict(root: Path) -> None:
    files = odd_files(root / "val" / "cat", (9, 12))
    write_images(
        root,
        {
            f"{place}/x.png": np.full((9, 12), len(place), np.uint8)
            for place in ("train/cat", "train/dog", "val/dog")
        },
    )
    config = config_of(root)
    assert describe(config).image_shape == (9, 12, 3)
    found = load_split(config, "eval")
    expected = [read_image(path, 3).tobytes() for path in files]
    cats = [image.tobytes() for image in found.images[found.labels == 0]]
    assert len(set(cats)) > 5 and sorted(cats) == sorted(expected)


def test_mixed_sizes_are_resized_as_in_predict(root: Path) -> None:
    files = odd_files(root / "val" / "cat", (33, 70))
    write_images(root, {"train/cat/x.png": 1, "train/dog/x.png": 2, "val/dog/x.png": 3})
    with pytest.raises(
        ConfigError, match="image_size = 0 .*my photos have several; set"
    ):
        load_split(config_of(root), "eval")
    found = load_split(config_of(root, image_size=12), "eval")
    least = decode_least(12, 12, BILINEAR)
    expected = [
        resize_and_crop(read_image(path, 3, least), 12, 12, BILINEAR).tobytes()
        for path in files
    ]
    cats = [image.tobytes() for image in found.images[found.labels == 0]]
    assert sorted(cats) == sorted(expected)


def add(root: Path) -> None:
    write_images(root, {"cat/new.png": 200})


def remove(root: Path) -> None:
    (root / "cat/0.png").unlink()


def rename_a_class(root: Path) -> None:
    (root / "cat").rename(root / "lynx")


def edit_without_a_trace(root: Path) -> None:
    path = root / "cat" / "1.png"
    times = path.stat()
    path.write_bytes((root / "cat" / "2.png").read_bytes())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size


CHANGES = [add, remove, rename_a_class, edit_without_a_trace]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_is_another_data_set(
    change: Callable[[Path], None],
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = alite_jax.get_config(
        "folder", {"data.folder": str(write_images(root, PETS))}
    )
    config.data.image_size = 8
    config.data.data_dir = str(root.parent / "data")
    run = root.parent / "run"
    before = load_data(config)
    record_spec(run, before.spec)
    with monkeypatch.context() as patch:  # Nothing is read when nothing has changed.
        patch.delattr(folder_copy, "inspect")
        assert load_data(config, run).spec == before.spec
    assert capsys.readouterr().err.count("note") == 0

    change(root)
    fresh = load_data(config)
    assert fresh.spec.prepared != before.spec.prepared
    assert (fresh.spec.class_names, fresh.train.images.tobytes()) != (
        before.spec.class_names,
        before.train.images.tobytes(),
    )
    kept = load_data(config, run)
    assert kept.spec == before.spec
    np.testing.assert_array_equal(kept.train.images, before.train.images)
    (note,) = capsys.readouterr().err.splitlines()
    assert note == (
        f"note: the images in {root} are no longer the same; the run keeps to the copy"
        f" {before.spec.prepared} that it was begun with"
    )

    shutil.rmtree(root.parent / "data" / before.spec.prepared)
    gone = f"the copy {before.spec.prepared} of the images that this run was trained on"
    with pytest.raises(DataError, match=f"{gone} is no longer in .*no longer the same"):
        load_data(config, run)
    shutil.rmtree(root)
    with pytest.raises(DataError, match=f"{gone} is no longer in .*does not exist"):
        load_data(config, run)
    assert not capsys.readouterr().err  # There is no copy to keep to.


def test_a_run_outlives_its_folder(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = alite_jax.get_config(
        "folder", {"data.folder": str(write_images(root, PETS))}
    )
    config.data.image_size = 8
    config.data.data_dir = str(root.parent / "data")
    before = load_data(config)
    record_spec(root.parent / "run", before.spec)
    shutil.rmtree(root)
    kept = load_data(config, root.parent / "run")
    np.testing.assert_array_equal(kept.train.images, before.train.images)
    assert "which does not exist; the run keeps to the copy" in capsys.readouterr().err


def test_a_folder_that_was_moved_is_known_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = describe(config_of(write_images(root, PETS)))
    shutil.copytree(root, root.with_name("copied"))
    moved = root.rename(root.with_name("Moved & 'renamed'"))
    monkeypatch.delattr(folder_copy, "_write")
    for place in (moved, root.with_name("copied")):
        after = describe(config_of(place))
        assert after.prepared == before.prepared and after.name == place.name


def test_other_images_of_the_same_names_sizes_and_times(root: Path) -> None:
    """Bitmaps of one size all have as many bytes, and archives set times to 0."""
    places = [root, root.with_name("others")]
    for shift, place in enumerate(places):
        files = {
            path.replace("png", "bmp"): g + 100 * shift for path, g in PETS.items()
        }
        for path in write_images(place, files).rglob("*.bmp"):
            os.utime(path, (0, 0))
    first, second = (greys(config_of(place), "train") for place in places)
    assert [(label, grey + 100) for label, grey in first] != first
    assert min(grey for _, grey in second) >= 100 > max(grey for _, grey in first)


def test_a_copy_in_a_data_dir_that_is_not_to_be_written(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(write_images(root, PETS))
    before = describe(config)
    os.utime(root / "cat" / "0.png", (1, 1))

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert describe(config) == before


def test_a_data_dir_in_which_nothing_can_be_made(root: Path) -> None:
    write_images(root, PETS)
    (root.parent / "data").touch()
    with pytest.raises(DataError) as caught:
        describe(config_of(root))
    message = str(caught.value)
    assert f"the images of {root} cannot be copied to {root.parent}/data/" in message
    assert "set data.data_dir to a folder that can be written" in message
    assert "\n" not in message


def test_interrupted_while_copying(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(write_images(root, PETS))
    examples = ImageFolder._generate_examples

    def interrupted(self: ImageFolder, split: str) -> Any:
        yield from list(examples(self, split))[:1]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ImageFolder, "_generate_examples", interrupted)
        describe(config)
    assert len(greys(config, "train")) == 8


def test_another_process_was_faster(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = ImageFolder.download_and_prepare

    def late(self: ImageFolder) -> None:
        prepare(self)
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(ImageFolder, "download_and_prepare", late)
    assert len(greys(config_of(write_images(root, PETS)), "train")) == 8


BAD = {
    "no folder": ({}, "data.folder is {root}, which does not exist"),
    "nothing": ({"a.txt": b""}, "holds no folder of a class, but at least two are"),
    "loose images": ({"a.png": 1, "b.png": 2}, "holds no folder of a class, but"),
    "one class": (
        {"cat/0.png": 1, "cat/1.png": 2},
        "{root} holds only the class 'cat', but at least two are told apart: put",
    ),
    "empty class": (
        PETS | {"fish/notes.txt": b""},
        "{root}/fish holds no image, but each folder in {root} is a class; remove it",
    ),
    "class in one split": (
        {"train/a/0.png": 1, "train/b/0.png": 2, "val/a/0.png": 3},
        "{root}/val has no images of the class 'b', which another split has (1 such",
    ),
    "class in the other split": (
        {"train/a/0.png": 1, "val/a/0.png": 2, "val/b/0.png": 3, "val/c/0.png": 4},
        "{root}/train has no images of the class 'b', which another split has (2 such",
    ),
    "split without classes": (
        {"train/a/0.png": 1, "train/b/0.png": 2, "test/0.png": 3},
        "{root}/test holds no folder of a class, but is a split by its name; put",
    ),
    "splits of loose images": (
        {"train/0.png": 1, "test/0.png": 3},
        "has the folders test, train, which are called like splits, but train with"
        " images",
    ),
    "no training split": (
        {"val/a/0.png": 1, "val/b/0.png": 2, "test/a/0.png": 3, "test/b/0.png": 4},
        "has the folders test, val, which are called like splits, but no folder train",
    ),
    "a split twice": (
        {
            f"{split}/{pet}/0.png": 1
            for split in ("train", "val", "valid")
            for pet in "ab"
        },
        "has 2 folders for the split 'validation': val, valid; leave one of them",
    ),
    "class beside splits": (
        {"train/a/0.png": 1, "train/b/0.png": 2, "c/0.png": 3},
        "has the folders train, which are splits, but c beside them has images, too",
    ),
    "unreadable": (
        PETS
        | {"cat/x.jpg": b"no image", "dog/y.png": b"", "dog/z.jpg": b"\xff\xd8\xff"},
        "3 of the 13 image files in {root} cannot be used, repair or remove them:"
        " {root}/cat/x.jpg is no image of any known format; the next is {root}/dog/y",
    ),
    "to convert": (
        PETS | {"cat/x.HEIC": b"\0\0\0\x18ftypheic"},
        "1 of the 11 image files in {root} cannot be used, repair or remove them:"
        " {root}/cat/x.HEIC is HEIC, which Pillow reads once pillow-heif is there",
    ),
    "in both splits": (
        {"train/a/0.png": 1, "train/b/0.png": 2, "val/a/x.png": 1, "val/b/0.png": 3},
        "1 image(s) of {root} would be evaluated on and trained on, too: val/a/x.png is"
        " the same as train/a/0.png; remove one of each",
    ),
    "one image": (
        PETS | {"fish/0.png": 7, "fish/copy.png": 7},
        "the class 'fish' of {root} has one image alone, copies of it aside, which",
    ),
    "space at the end": (
        PETS | {"cat /0.png": 200},
        "the class 'cat ' of {root} begins or ends with a space",
    ),
    "not UTF-8": (PETS | {"cat/\udcff.png": 200}, "is not UTF-8; rename it"),
}


@pytest.mark.parametrize(("files", "expected"), BAD.values(), ids=BAD)
def test_what_is_no_data_set(files: dict[str, Any], expected: str, root: Path) -> None:
    write_images(root, files)
    with pytest.raises(DataError) as caught:
        describe(config_of(root))
    message = str(caught.value)
    assert expected.replace("{root}", str(root)) in message and "\n" not in message
    assert not (root.parent / "data").exists()


def test_a_file_in_the_place_of_the_folder(root: Path) -> None:
    root.touch()
    with pytest.raises(DataError, match="which is a file, not a folder"):
        describe(config_of(root))


def test_a_broken_link_is_an_unreadable_image(root: Path) -> None:
    write_images(root, PETS)
    (root / "cat" / "x.png").symlink_to(root / "nowhere.png")
    expected = "1 of the 11 image files .*cat/x.png cannot be opened .No such file"
    with pytest.raises(DataError, match=expected):
        describe(config_of(root))


def test_a_folder_without_permission(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(root, PETS)
    scandir = os.scandir

    def refuse(path: str | Path) -> Any:
        if os.fspath(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="/cat cannot be read .Permission denied., but"):
        describe(config_of(root))


@pytest.mark.parametrize(
    ("name", "folder"), [("folder", ""), ("cifar10", "/tmp"), ("digits", "/tmp")]
)
def test_name_and_folder_belong_together(name: str, folder: str) -> None:
    with pytest.raises(ConfigError, match="as --config=configs/folder.py:PATH does"):
        describe(data_config(name=name, folder=folder))


def test_fewer_images_than_a_batch_and_a_split_that_is_not_there(root: Path) -> None:
    config = config_of(write_images(root, PETS), eval_split="test")
    expected = "data.eval_split = 'test' is not a split of my photos .* its splits are"
    with pytest.raises(ConfigError, match=expected) as caught:
        load_split(config, "eval")
    assert "'train' (8 examples)" in str(caught.value)
    assert "'validation' (2 examples)" in str(caught.value)


@pytest.mark.slow  # It trains.
def test_from_a_folder_to_an_export_by_the_workdir_alone(
    models: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    random = np.random.default_rng(0)
    files = {
        f"{pet}/{i}.png": random.integers(0, 256, (8, 8 + i % 2, 3), np.uint8)
        for pet in ("a cat", "dog", "n01443537")
        for i in range(20)
    }
    root, run = write_images(tmp_path / "pets", files), tmp_path / "run"
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    changes = SETTINGS | {
        "data.train_split": "",
        "data.eval_split": "",
        "data.image_size": 8,
        "teacher.epochs": 1,
        "student.epochs": 2,
    }
    fields = [f"--config.{name}={value}" for name, value in changes.items()]
    assert run_command(f"--config=folder:{root}", f"--workdir={run}", *fields) == 0
    spec = read_spec(run)
    assert spec is not None and (spec.num_classes, len(spec.mean)) == (3, 3)
    assert spec.class_names == ("a cat", "dog", "goldfish")
    assert json.loads((run / "summary.json").read_text())["dataset"] == "pets"
    capsys.readouterr()

    shutil.rmtree(root)
    monkeypatch.chdir(tmp_path / "data")
    for job in ("evaluate", "export", "report"):
        assert run_command(f"--job={job}", f"--workdir={run}") == 0
        assert capsys.readouterr().err.count("the run keeps to the copy") == 1
    card = json.loads((run / "export" / "card.json").read_text())
    assert card["classes"] == ["a cat", "dog", "goldfish"]
