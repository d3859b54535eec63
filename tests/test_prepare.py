"""Preparing data sets, from small archives in the official layouts."""

import functools
import hashlib
import http.server
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from archives import (
    cifar_archive,
    data_config,
    tiny_imagenet_files,
    write_folder,
    write_tfds,
    write_zip,
)
from PIL import Image
from tensorflow_datasets.core.download import checksums, downloader
from tiny import run_command

from alite_jax.command_line import with_job_flag
from alite_jax.data import wordnet
from alite_jax.data.builders import cifar
from alite_jax.data.prepare import prepare
from alite_jax.data.sources import class_names, load_split
from alite_jax.errors import ConfigError, DataError

ARCHIVES = {"cifar10": "cifar-10-binary.tar.gz", "cifar100": "cifar-100-binary.tar.gz"}
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def manual(tmp_path: Path) -> Path:
    """The folder for archives fetched by hand; the data directory is beside it."""
    folder = tmp_path / "manual"
    folder.mkdir()
    return folder


def config_of(name: str, tmp_path: Path):
    return data_config(
        name=name,
        data_dir=str(tmp_path / "data"),
        manual_dir=str(tmp_path / "manual"),
    )


def accept_archive(monkeypatch: pytest.MonkeyPatch, archive: Path) -> None:
    """Lets TFDS take the small archive for the official one; it checks the checksum."""
    data = archive.read_bytes()
    small = checksums.UrlInfo(
        size=len(data), checksum=hashlib.sha256(data).hexdigest(), filename=archive.name
    )
    registered = checksums.get_all_url_infos()
    infos = {
        url: small if url.endswith("/" + archive.name) else info
        for url, info in registered.items()
    }
    assert small in infos.values()
    monkeypatch.setattr(checksums, "get_all_url_infos", lambda: dict(infos))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_prepared_as_tfds_names_and_reads_it(
    name: str, tmp_path: Path, manual: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = cifar_archive(name, manual / ARCHIVES[name])
    accept_archive(monkeypatch, manual / ARCHIVES[name])
    config = config_of(name, tmp_path)
    folder = prepare(config)
    assert Path(folder) == tmp_path / "data" / name / "3.0.2"

    for split, field in (("train", "train"), ("test", "eval")):
        # What TFDS itself reads, decoded by TFDS.
        source = tfds.data_source(
            name, split=split, data_dir=config.data_dir, download=False
        )
        loaded = load_split(config, field)
        assert len(source) == len(loaded) == len(expected[split])
        assert {example["id"] for example in source} == set(expected[split])
        for i, example in enumerate(source):
            label, image = expected[split][example["id"]]
            assert example["label"] == loaded.labels[i] == label
            np.testing.assert_array_equal(example["image"], image)
            np.testing.assert_array_equal(loaded.images[i], image)
    names = tfds.builder(name, data_dir=config.data_dir).info.features["label"].names
    assert names[1] == ("class_1" if name == "cifar10" else "fine_1")


def test_cifar_is_downloaded(
    tmp_path: Path, manual: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar_archive("cifar10", tmp_path / ARCHIVES["cifar10"])
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    layout = cifar.Cifar10(data_dir=str(tmp_path))._cifar_info
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=tmp_path
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_port}/{ARCHIVES['cifar10']}"
        monkeypatch.setattr(cifar.Cifar10, "_cifar_info", layout._replace(url=url))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        prepare(config_of("cifar10", tmp_path))
        server.shutdown()
        thread.join()
    assert len(load_split(config_of("cifar10", tmp_path), "train")) == 20


def test_no_network_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args, **kwargs):
        # Fewer attempts than TFDS's own, which take minutes.
        assert downloader.MAX_RETRIES < 10
        raise requests.ConnectionError("Name or service not known\nand more")

    monkeypatch.setattr(requests.Session, "get", fail)
    before = downloader.MAX_RETRIES
    with pytest.raises(DataError) as caught:
        prepare(config_of("cifar10", tmp_path))
    message = str(caught.value)
    assert "cifar10 cannot be downloaded (ConnectionError)" in message
    assert f"put {ARCHIVES['cifar10']} into {tmp_path / 'manual'}" in message
    assert "\n" not in message
    assert before == downloader.MAX_RETRIES
    assert not list((tmp_path / "data").glob("cifar10/*"))


def test_archive_that_is_not_the_official_one(tmp_path: Path, manual: Path) -> None:
    cifar_archive("cifar10", manual / ARCHIVES["cifar10"])
    with pytest.raises(DataError, match="not the official one, its size or checksum"):
        prepare(config_of("cifar10", tmp_path))


def test_archive_with_records_cut_short(
    tmp_path: Path, manual: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar_archive("cifar100", manual / ARCHIVES["cifar100"], cut=1)
    accept_archive(monkeypatch, manual / ARCHIVES["cifar100"])
    with pytest.raises(DataError, match="not a whole number of records of 3074 bytes"):
        prepare(config_of("cifar100", tmp_path))
    with pytest.raises(DataError, match="is not prepared"):
        load_split(config_of("cifar100", tmp_path), "train")


def test_archive_that_is_no_archive(
    tmp_path: Path, manual: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (manual / ARCHIVES["cifar10"]).write_bytes(b"an error page")
    accept_archive(monkeypatch, manual / ARCHIVES["cifar10"])
    with pytest.raises(DataError, match="cannot be read from .* delete that archive"):
        prepare(config_of("cifar10", tmp_path))


@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_tiny_imagenet(
    write, tmp_path: Path, manual: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tiny_imagenet_files()
    write(files, manual)
    config = config_of("tiny_imagenet", tmp_path)
    assert Path(prepare(config)) == tmp_path / "data" / "tiny_imagenet" / "1.0.0"

    wnids = sorted(files["wnids.txt"].decode().split())
    train = {
        path.split("/")[-1].removesuffix(".JPEG"): (
            wnids.index(path.split("/")[1]),
            data,
        )
        for path, data in files.items()
        if path.startswith("train/") and path.endswith(".JPEG")
    }
    validation = {}
    for line in files["val/val_annotations.txt"].decode().splitlines():
        name, wnid = line.split("\t")[:2]
        data = files[f"val/images/{name}"]
        validation[name.removesuffix(".JPEG")] = (wnids.index(wnid), data)

    for split, expected in (("train", train), ("validation", validation)):
        loaded = load_split(config, "train" if split == "train" else "eval")
        builder = tfds.builder("tiny_imagenet", data_dir=config.data_dir)
        ids = [e["id"].decode() for e in builder.as_data_source(split)]
        assert sorted(ids) == sorted(expected) and len(loaded) == len(ids)
        for i, name in enumerate(ids):
            label, data = expected[name]
            assert loaded.labels[i] == label
            with Image.open(io.BytesIO(data)) as image:
                pixels = np.asarray(image.convert("RGB"))
            np.testing.assert_array_equal(loaded.images[i], pixels)
    assert builder.info.features["label"].names == wnids
    monkeypatch.setitem(wordnet.NAMES, wnids[1], "goldfish")
    assert class_names(config) == (wnids[0], "goldfish", *wnids[2:])


def test_tiny_imagenet_without_archive(tmp_path: Path, manual: Path) -> None:
    (manual / "something.else").touch()
    with pytest.raises(DataError, match="neither tiny-imagenet-200.zip nor .* put one"):
        prepare(config_of("tiny_imagenet", tmp_path))
    config = data_config(name="tiny_imagenet", data_dir=str(tmp_path / "data"))
    with pytest.raises(DataError) as caught:
        prepare(config)
    assert str(tmp_path / "data" / "downloads" / "manual") in str(caught.value)
    assert "create that folder and put the archive into it" in str(caught.value)


def lose_training_image(files: dict[str, bytes]) -> None:
    images = [path for path in files if path.startswith("train/")]
    del files[[path for path in images if path.endswith("_1.JPEG")][-1]]


def lose_validation_image(files: dict[str, bytes]) -> None:
    del files["val/images/val_7.JPEG"]


def lose_annotations(files: dict[str, bytes]) -> None:
    del files["val/val_annotations.txt"]


def lose_class(files: dict[str, bytes]) -> None:
    files["wnids.txt"] = b"n1\nn2\n"


def cut_image(files: dict[str, bytes]) -> None:
    path = next(path for path in files if path.endswith("_1.JPEG"))
    files[path] = files[path][:1000]


def enlarge_image(files: dict[str, bytes]) -> None:
    path = next(path for path in files if path.endswith("_0.JPEG"))
    buffer = io.BytesIO()
    Image.new("RGB", (65, 64)).save(buffer, format="JPEG")
    files[path] = buffer.getvalue()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_training_image, "has 1 training images and others have 2"),
        (lose_validation_image, "lacks 1 of the 200 validation images"),
        (lose_annotations, "val/val_annotations.txt of .* cannot be read"),
        (lose_class, "has 2 classes, expected 200"),
        (cut_image, "is not a readable image"),
        (enlarge_image, "has 65x64 pixels, expected 64x64"),
    ],
)
def test_incomplete_tiny_imagenet(
    damage, message: str, tmp_path: Path, manual: Path
) -> None:
    files = tiny_imagenet_files()
    damage(files)
    write_zip(files, manual)
    config = config_of("tiny_imagenet", tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        prepare(config)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="is not prepared"):
        load_split(config, "train")


def test_half_downloaded_zip(tmp_path: Path, manual: Path) -> None:
    write_zip(tiny_imagenet_files(train_per_class=1), manual)
    archive = manual / "tiny-imagenet-200.zip"
    archive.write_bytes(archive.read_bytes()[:100_000])
    with pytest.raises(DataError, match="not a complete zip archive"):
        prepare(config_of("tiny_imagenet", tmp_path))


def test_preparing_again_keeps_what_is_there(tmp_path: Path) -> None:
    config = config_of("digits", tmp_path)
    folder = Path(prepare(config))
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert prepare(config) == str(folder)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def at(file: str, *keys: str | int, value: Any = None) -> Callable[[Path], None]:
    """A change of a value somewhere in a JSON file; None removes it."""

    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        place = content
        for key in keys[:-1]:
            place = place[key]
        if value is None:
            del place[keys[-1]]
        else:
            place[keys[-1]] = value
        (folder / file).write_text(json.dumps(content))

    return change


def becomes(file: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(content) and None


def cut_to_40_bytes(file: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / file).write_bytes((folder / file).read_bytes()[:40])

    return change


def is_missing(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def is_a_folder(file: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).mkdir()

    return change


def is_a_loop(file: str) -> Callable[[Path], None]:
    """A link to itself, which cannot be read, whoever tries."""

    def change(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).symlink_to(folder / file)

    return change


def is_a_file_itself(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a folder")


INFO, FEATURES = "dataset_info.json", "features.json"
EACH = ("featuresDict", "features")
TEXT = {
    "pythonClassName": "tensorflow_datasets.core.features.text_feature.Text",
    "text": {},
}

DAMAGE = {
    **{
        f"{file} {name}": (damage, f"{file} {finding}")
        for file in (INFO, FEATURES)
        for name, damage, finding in (
            ("cut", cut_to_40_bytes(file), "cannot be read: "),
            ("empty", becomes(file, b""), "cannot be read: Expecting value"),
            ("latin", becomes(file, b"\xe9"), "cannot be read: 'utf-8' codec"),
            ("nested", becomes(file, b"[" * 10**5), "cannot be read: "),
            ("a list", becomes(file, b"[]"), "holds no JSON object"),
            ("null", becomes(file, b"null"), "holds no JSON object"),
            ("a text", becomes(file, b'"a"'), "holds no JSON object"),
            ("a folder", is_a_folder(file), "cannot be read: .*Is a directory"),
            ("a loop", is_a_loop(file), "cannot be read: .*symbolic links"),
        )
    },
    "no info": (is_missing(INFO), f"it has no {INFO}"),
    "no features": (is_missing(FEATURES), f"it has no {FEATURES}"),
    "nothing known": (becomes(FEATURES, b"{}"), "Python class name"),
    "another field": (becomes(INFO, b'{"a": 1}'), 'no field named "a"'),
    "no version": (at(INFO, "version"), "Invalid version ''"),
    "no name": (at(INFO, "name"), "lists no splits of digits"),
    "another name": (at(INFO, "name", value="cifar10"), "lists no splits of digits"),
    "another format": (at(INFO, "fileFormat", value="zip"), "'zip' is not a valid"),
    "no splits": (at(INFO, "splits"), "lists no splits of digits"),
    "splits of no kind": (at(INFO, "splits", value=3), "splits"),
    "lengths": (at(INFO, "splits", 0, "shardLengths", value=["x"]), "shardLengths"),
    "no image": (at(FEATURES, *EACH, "image"), "has no image"),
    "no label": (at(FEATURES, *EACH, "label"), "has no label"),
    "a text as image": (at(FEATURES, *EACH, "image", value=TEXT), "has no image"),
    "a text as label": (at(FEATURES, *EACH, "label", value=TEXT), "labels of type"),
    "no class": (at(FEATURES, "pythonClassName"), "Python class name"),
    "no type of number": (
        at(FEATURES, *EACH, "image", "image", "dtype", value="float99"),
        "tensorflow",
    ),
    "fewer classes": (
        at(FEATURES, *EACH, "label", "classLabel", "numClasses", value="5"),
        "has 5 classes, expected 10",
    ),
    "a file": (is_a_file_itself, f"{INFO} cannot be read: .*Not a directory"),
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with digits in it, to be copied."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare(data_config(data_dir=str(folder)))
    return folder


def command_of(message: str) -> list[str]:
    """The arguments of the command that a sentence gives, as a shell splits it."""
    found = re.search("run `python -m alite_jax (.*)`", message)
    assert found is not None
    return with_job_flag(shlex.split(found[1]))


@pytest.mark.parametrize(("damage", "finding"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_metadata_is_one_sentence_everywhere(
    damage: Callable[[Path], None],
    finding: str,
    digits: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(digits, tmp_path / "my data")
    config = data_config(data_dir=str(tmp_path / "my data"))
    folder = tmp_path / "my data" / "digits" / "1.0.0"
    damage(folder)
    messages = set()
    for use in (prepare, class_names, functools.partial(load_split, split="train")):
        with pytest.raises(DataError) as caught:
            use(config)
        messages.add(str(caught.value))
    (message,) = messages
    assert message.startswith(f"the data set in {folder} is incomplete or damaged (")
    assert re.search(finding, message) and "\n" not in message
    assert "; delete that folder and run `python -m alite_jax prepare --" in message
    assert run_command(*command_of(message)) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


@pytest.mark.parametrize("name", ["my data", "it's", "$HOME; `date`", 'a&b|c*?"\\'])
def test_the_command_that_an_error_gives_can_be_pasted(
    name: str, tmp_path: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(digits, tmp_path / name)
    config = data_config(data_dir=str(tmp_path / name), manual_dir=f"{name}/manual")
    cut_to_40_bytes(INFO)(tmp_path / name / "digits" / "1.0.0")
    with pytest.raises(DataError) as caught:
        prepare(config)
    arguments = command_of(str(caught.value))
    assert arguments[-2:] == [
        f"--config.data.data_dir={config.data_dir}",
        f"--config.data.manual_dir={config.manual_dir}",
    ]
    # What the sentence says, to the letter.
    shutil.rmtree(tmp_path / name / "digits" / "1.0.0")
    assert run_command(*arguments) == 0
    assert "digits is ready in" in capsys.readouterr().out
    assert len(load_split(config, "eval")) == 500


def lose_names(folder: Path) -> None:
    (folder / "label.labels.txt").unlink()


def cut_names(folder: Path) -> None:
    (folder / "label.labels.txt").write_text("class_0\nclass_1\n")


def repeat_names(folder: Path) -> None:
    (folder / "label.labels.txt").write_text("class_0\n" * 10)


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (lose_names, "the names of its classes, label.labels.txt, cannot be read"),
        (is_a_folder("label.labels.txt"), "label.labels.txt, cannot be read"),
        (becomes("label.labels.txt", b"\xff"), "label.labels.txt, cannot be read"),
        (cut_names, "does not have 10 different names"),
        (repeat_names, "does not have 10 different names"),
    ],
)
def test_names_of_the_classes_belong_to_the_data_set(
    damage: Callable[[Path], None],
    finding: str,
    tmp_path: Path,
    manual: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cifar_archive("cifar10", manual / ARCHIVES["cifar10"])
    accept_archive(monkeypatch, manual / ARCHIVES["cifar10"])
    config = config_of("cifar10", tmp_path)
    folder = Path(prepare(config))
    assert class_names(config) == tuple(f"class_{label}" for label in range(10))
    damage(folder)
    for use in (prepare, class_names, functools.partial(load_split, split="train")):
        with pytest.raises(DataError, match=f"{finding}.*; delete that folder and run"):
            use(config)
    shutil.rmtree(folder)
    assert prepare(config) == str(folder)


def test_nameless_labels_are_called_by_their_numbers(tmp_path: Path) -> None:
    write_tfds(tmp_path, "cifar10", "3.0.2", [(np.zeros((32, 32, 3), np.uint8), 1)])
    config = data_config(name="cifar10", data_dir=str(tmp_path))
    assert load_split(config, "train").labels.tolist() == [1]
    assert class_names(config) == tuple(map(str, range(10)))


@pytest.mark.parametrize("lengths", [[], ["0"], ["-3"]])
def test_a_split_without_examples_is_damage_unless_it_was_asked_for(
    lengths: list[str], digits: Path, tmp_path: Path
) -> None:
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    damage = at(INFO, "splits", 0, "shardLengths", value=lengths)
    damage(tmp_path / "digits" / "1.0.0")
    config = data_config(data_dir=str(tmp_path))
    with pytest.raises(DataError, match="has no examples in its split 'train'"):
        load_split(config, "train")
    config.train_split = "train"
    with pytest.raises(ConfigError, match="data.train_split = 'train' is not a split"):
        load_split(config, "train")


def test_a_file_in_the_place_of_the_data_set(tmp_path: Path) -> None:
    (tmp_path / "digits").touch()
    with pytest.raises(DataError, match="digits cannot be written to .*set data.data"):
        prepare(data_config(data_dir=str(tmp_path)))


def test_unknown_data_set() -> None:
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        prepare(data_config(name="digit"))


def test_data_dir_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(DataError, match="digits cannot be written to .*/data"):
        load_split(config_of("digits", tmp_path), "train")


DIGITS_SCRIPT = """
import sys
from archives import data_config
from alite_jax.data.sources import load_split
from alite_jax.data.builders import digits
print("ready", flush=True)
if sys.argv[2] == "wait":
    sys.stdin.readline()
elif sys.argv[2] == "hang":
    examples = digits._examples
    def hang(*args):
        for i, example in enumerate(examples(*args)):
            if i == 100:
                print("half", file=sys.__stdout__, flush=True)
                sys.stdin.readline()
            yield example
    digits._examples = hang
print(len(load_split(data_config(data_dir=sys.argv[1]), "train")), flush=True)
"""


def start(folder: Path, mode: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", DIGITS_SCRIPT, str(folder), mode],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.processes
def test_two_processes_prepare_at_once(tmp_path: Path) -> None:
    process = start(tmp_path, "wait")
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert len(load_split(data_config(data_dir=str(tmp_path)), "train")) == 1297
    assert process.communicate(timeout=60)[0] == "1297\n"
    assert process.returncode == 0
    assert [folder.name for folder in (tmp_path / "digits").iterdir()] == ["1.0.0"]


@pytest.mark.processes
def test_killed_while_preparing(tmp_path: Path) -> None:
    process = start(tmp_path, "hang")
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    left = [folder.name for folder in (tmp_path / "digits").iterdir()]
    assert len(left) == 1 and left[0].startswith("incomplete.")
    assert len(load_split(data_config(data_dir=str(tmp_path)), "train")) == 1297


def test_digits_are_prepared_within_seconds(tmp_path: Path) -> None:
    begin = time.monotonic()
    prepare(data_config(data_dir=str(tmp_path)))
    assert time.monotonic() - begin < 10
