"""Classifying images from a command line."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import CLASSES, logits, some_images, write_export
from PIL import Image

from alite_jax import predict
from alite_jax.data.images import read_image
from alite_jax.deploy.artefact import Artefact
from alite_jax.errors import DataError

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "alite_jax.predict"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("run") / "export")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Seven images in folders and folders of folders, sorted."""
    root = tmp_path_factory.mktemp("photos")
    names = ["a.png", "b.PNG", "c/d.bmp", "c/e/f.png", "c/g.png", "h/i.png", "j.png"]
    for name, image in zip(names, some_images(7), strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(root / name)
    (root / "notes.txt").write_text("no image")
    return [root / name for name in names]


def names_of(images: np.ndarray) -> list[str]:
    return [CLASSES[i] for i in logits(images).argmax(axis=1)]


def test_a_folder_is_searched_and_an_object_is_printed_for_each_image(
    model: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos[0].parent
    assert predict.main([str(model), str(root), "--json", "--top=2"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["path"] for line in found] == list(map(str, photos))
    best = [line["classes"][0]["name"] for line in found]
    assert best == names_of(some_images(7))
    assert all(len(line["classes"]) == 2 for line in found)
    assert all(0 <= c["probability"] <= 1 for line in found for c in line["classes"])


def test_images_go_through_in_batches_of_one_size(
    model: Path,
    photos: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes: list[int] = []
    alive: list[int] = []
    classify, read = Artefact.classify, Artefact.read_image

    def counted(self: Artefact, images: np.ndarray, top: int) -> Any:
        sizes.append(len(images))
        alive.append(0)
        return classify(self, images, top)

    def read_one(self: Artefact, path: str) -> np.ndarray:
        alive[-1:] = [alive[-1] + 1] if alive else [1]
        return read(self, path)

    monkeypatch.setattr(Artefact, "classify", counted)
    monkeypatch.setattr(Artefact, "read_image", read_one)
    root = str(photos[0].parent)
    for batch, wanted in ((3, [3, 3, 3]), (64, [8]), (1, [1] * 7), (7, [7])):
        sizes.clear()
        alive.clear()
        assert predict.main([str(model), root, f"--batch={batch}"]) == 0
        assert sizes == wanted
        # No more are read than a batch before the next one is classified.
        assert max(alive) <= batch
        lines = capsys.readouterr().out.splitlines()
        found = [line.rsplit(": ", 1)[1].split(" ")[0] for line in lines]
        assert found == names_of(some_images(7))


def test_a_list_on_standard_input(
    model: Path,
    photos: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    odd = tmp_path / os.fsdecode(b"\xff.png")  # Not UTF-8.
    odd.write_bytes(photos[0].read_bytes())
    lines = [str(photos[0]), "", str(tmp_path / "none.png"), str(odd), f"{photos[2]}\r"]
    content = io.BytesIO(os.fsencode("\n".join(lines)))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(content))
    assert predict.main([str(model), str(photos[1]), "-"]) == 2
    printed = capsys.readouterr()
    found = [line.rsplit(": ", 1)[0] for line in printed.out.splitlines()]
    shown = str(odd).encode(errors="backslashreplace").decode()
    assert found == [str(photos[1]), str(photos[0]), shown, str(photos[2])]
    assert printed.err == f"error: {tmp_path / 'none.png'} does not exist\n"


def test_mistakes_are_sentences(
    model: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        ([str(photos[0]), "--batch=0"], "--batch=0, but at least 1 is needed"),
        ([str(tmp_path)], f"{tmp_path} is a folder without image files"),
        (["http://x/y.png"], "http://x/y.png is no path on this machine"),
        (
            [str(photos[0]), "--runtime=tflite"],
            "the runtime 'tflite' needs ai_edge_lit",
        ),
    ):
        assert predict.main([str(model), *arguments]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1
        assert printed.err.startswith(f"error: {message}")


def test_whoever_stops_listening_hears_no_complaint(
    model: Path, photos: list[Path], tmp_path: Path
) -> None:
    many = tmp_path / "list.txt"
    many.write_text(f"{photos[0]}\n" * 5000)  # More than a pipe holds.
    with many.open("rb") as listed:
        process = subprocess.Popen(
            [*COMMAND, str(model), "-"],
            cwd=ROOT,
            stdin=listed,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    assert process.stdout and process.stderr
    assert process.stdout.readline().startswith(str(photos[0]).encode())
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 141
    process.stderr.close()


def test_ctrl_c_ends_it_quietly(model: Path, photos: list[Path]) -> None:
    # Where the tests run in the background, Ctrl-C would be ignored.
    script = (
        "import runpy, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "runpy.run_module('alite_jax.predict', run_name='__main__')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(model), "--batch=1", "-"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(f"{photos[0]}\n".encode())
        process.stdin.flush()
        assert process.stdout.readline()
        time.sleep(0.2)  # It waits for the next line.
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read() == b""


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


def test_heic_names_what_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    (tmp_path / "x.heic").write_bytes(HEIC)
    with pytest.raises(DataError, match="x.heic is HEIC, which .* install pillow-heif"):
        read_image(tmp_path / "x.heic", 3)


def test_heic_is_read_by_pillow_heif(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    image = np.zeros((64, 32, 3), np.uint8)
    image[:16] = 255
    turned = Image.Exif()
    turned[0x112] = 6
    file = pillow_heif.from_pillow(Image.fromarray(np.rot90(image)))
    file.save(tmp_path / "x.heic", quality=-1, exif=turned.tobytes())
    found = read_image(tmp_path / "x.heic", 3)
    np.testing.assert_allclose(found, np.float64(image), atol=8)
    (tmp_path / "y.heic").write_bytes(HEIC)
    with pytest.raises(DataError, match="y.heic is no"):
        read_image(tmp_path / "y.heic", 3)
