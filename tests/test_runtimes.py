"""An export in each of its runtimes, with nothing else installed, and damaged."""

import json
import random
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import CLASSES, SHAPE, logits, onnx_model, some_images, write_export
from PIL import Image

from alite_jax.deploy import artefact, runtimes
from alite_jax.deploy.artefact import load
from alite_jax.deploy.formats import FORMATS, parse_formats
from alite_jax.deploy.runtimes import RUNTIMES, Program, Runtime, in_batches_of
from alite_jax.errors import ArtefactError, ConfigError

ROOT = Path(__file__).resolve().parent.parent

# A process in which nothing is installed but what is named.
ALONE = """
import sys

known = sys.stdlib_module_names | {"alite_jax", *sys.argv[1].split(",")}

class Only:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in known or top.startswith("_sysconfigdata"):
            return self.finder.find_spec(name, path, target)

sys.meta_path = [Only(finder) for finder in sys.meta_path]
"""
# JAX comes with what follows it; `jax.export` wants flatbuffers besides.
WITH_JAX = "jax,jaxlib,ml_dtypes,opt_einsum,scipy,flatbuffers"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("run") / "export")


def lines_of_the_docs() -> str:
    page = (ROOT / "docs" / "export.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    [lines] = [block for block in blocks if "photo.jpg" in block]
    assert (
        len(lines.split("\n\n")) == 2
        and len(lines.replace("\n\n", "\n").split("\n")) < 7
    )
    return lines


def alone(script: str, installed: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", ALONE + script, f"numpy,PIL,{installed}"],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("runtime", ["jax", "onnx"])
def test_the_lines_of_the_docs_need_one_runtime_and_nothing_else(
    runtime: str, tmp_path: Path
) -> None:
    installed, others = WITH_JAX, {}
    if runtime == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
        installed, others = "onnxruntime", {"model_onnx": onnx_model(None)}
    folder = write_export(tmp_path / "export", **others)
    image = np.kron(some_images(1)[0, ..., 0], np.ones((8, 8), np.uint8))
    Image.fromarray(image).save(tmp_path / "photo.jpg", quality=100)
    script = lines_of_the_docs().replace('"onnx"', repr(runtime))
    script += "print('jax' in sys.modules)"
    found, jax_is_there = alone(script, installed, tmp_path).splitlines()
    [[(name, probability), *_]] = eval(found)
    here = load(folder)
    wanted = here.classify(here.read_image(tmp_path / "photo.jpg")[None])[0][0]
    assert name == wanted[0] and probability == pytest.approx(wanted[1], abs=1e-4)
    assert jax_is_there == str(runtime == "jax")


def test_without_a_runtime_predict_says_what_to_install(folder: Path) -> None:
    script = "sys.stderr = sys.stdout\nfrom alite_jax.predict import main\n"
    script += "print(main(['export', 'photo.jpg']))"
    wanted = "error: the runtime 'jax' needs jax and flatbuffers, not installed here"
    said = f"{wanted}; run pip install jax flatbuffers\n2\n"
    assert alone(script, "PIL", folder.parent) == said


def test_a_runtime_that_is_not_there_is_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ConfigError, match="unknown runtime 'onxx'; did you mean 'onnx'"
    ):
        load(folder, "onxx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    wanted = "the runtime 'onnx' needs onnxruntime, not installed here; run pip ins"
    with pytest.raises(ArtefactError, match=wanted):
        load(folder, "onnx")
    monkeypatch.setattr(artefact, "missing_modules", lambda modules: [])
    wanted = (
        r"no network for the runtime 'tflite' \(model.tflite is missing\); make one w"
    )
    with pytest.raises(
        ArtefactError, match=wanted + "ith --job=export --formats=tflit"
    ):
        load(folder, "tflite")


@pytest.mark.parametrize("batch", [None, 1, 4])
def test_onnx_runtime_takes_any_number_of_images(
    batch: int | None, tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    write_export(tmp_path, model_onnx=onnx_model(batch))
    found = load(tmp_path, "onnx")
    for count in (0, 1, 4, 9):
        images = some_images(count)
        np.testing.assert_allclose(found.logits(images), logits(images), rtol=1e-4)


def test_a_fixed_batch_is_filled_up_and_cut_again() -> None:
    sizes = []

    def call(images: np.ndarray) -> np.ndarray:
        sizes.append(len(images))
        assert images.dtype == np.uint8
        return logits(images)

    images = some_images(7)
    np.testing.assert_array_equal(in_batches_of(3, call)(images), logits(images))
    assert sizes == [3, 3, 3]


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["mlir", "safetensors"], {"mlir": 1, "safetensors": None}),
        ([" mlir:16"], {"mlir": 16}),
        ([], {}),
        ("mlir", r"formats is the text 'mlir', but must be a list: write \['mlir'\]"),
        (["mlr"], "unknown format 'mlr'; did you mean 'mlir'"),
        (["mlir", "mlir:2"], "--formats has 'mlir:2', but must name each format once"),
        (["mlir:0"], "--formats has 'mlir:0', but must"),
        (["mlir:"], "--formats has 'mlir:', but must"),
        (["mlir:two"], "--formats has 'mlir:two', but must"),
        (["safetensors:2"], "--formats has 'safetensors:2', but must"),
    ],
)
def test_formats_as_they_are_written(texts: list[str], found: Any) -> None:
    if isinstance(found, dict):
        assert parse_formats(texts) == found
    else:
        with pytest.raises(ConfigError, match=found):
            parse_formats(texts)


def test_a_format_that_is_not_installed_names_its_requirements(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, known in FORMATS.items():
        for module in known.modules:
            with monkeypatch.context() as patch:
                patch.setitem(sys.modules, module, None)
                wanted = f"the format {name} needs .*{module}.*; run {known.install}"
                with pytest.raises(ArtefactError, match=wanted):
                    parse_formats([name])
    # Its versions are those of the requirements files.
    for name in ("onnx", "tflite"):
        text = (ROOT / f"requirements-{name}.txt").read_text()
        listed = [line for line in text.splitlines() if not line.startswith("#")]
        assert set(listed) <= set(FORMATS[name].install.split())
    # What no requirements file can say is the same wherever it is said.
    assert FORMATS["tflite"].install.split()[-1] in text
    without = FORMATS["onnx"].install.partition("&& pip install ")[2]
    for file in ("Makefile", "requirements-onnx.txt", "docs/export.md"):
        assert without in (ROOT / file).read_text()


def test_a_program_of_other_images_than_the_card_says(
    folder: Path, tmp_path: Path
) -> None:
    for name in (*RUNTIMES["jax"].files, "card.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    card = json.loads((tmp_path / "card.json").read_text())
    card["image_shape"] = [8, 8, 1]
    (tmp_path / "card.json").write_text(json.dumps(card))
    wanted = r"has images of \(8, 8, 1\) and 3 classes, the program \(4, 4, 1\) and 3"
    with pytest.raises(ArtefactError, match=wanted):
        load(tmp_path)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Bits turned, cut off, something added, or all other."""
    kind = draw.random()
    if kind < 0.6:
        changed = bytearray(content)
        for _ in range(draw.choice([1, 1, 2, 50])):
            changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        return bytes(changed)
    if kind < 0.8:
        return content[: draw.randrange(len(content))]
    if kind < 0.9:
        return content + draw.randbytes(1 + draw.randrange(9))
    return draw.randbytes(draw.randrange(200))


def without_a_runtime(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """`onnx` reads the file NAME, and takes whatever is in it."""
    program = Program(logits, SHAPE, len(CLASSES))
    runtime = Runtime((name,), lambda content: program, (), "nothing")
    monkeypatch.setitem(RUNTIMES, "onnx", runtime)


@pytest.mark.parametrize("name", ["card.json", "model.onnx"])
def test_a_thousand_damaged_files_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_a_runtime(monkeypatch, "model.onnx")
    write_export(tmp_path, model_onnx=bytes(range(256)) * 4)
    Image.fromarray(some_images(1)[0, ..., 0]).save(tmp_path / "image.png")
    content = (tmp_path / name).read_bytes()
    draw, images = random.Random(0), some_images(1)

    def use() -> None:
        found = load(tmp_path, "onnx")
        found.classify(images)
        found.read_image(tmp_path / "image.png")

    tracemalloc.start()
    use()
    honest, let_in = tracemalloc.get_traced_memory()[1], 0
    for _ in range(1000):
        case = damaged(content, draw)
        if case == content:
            continue
        (tmp_path / name).write_bytes(case)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            use()
            let_in += 1
        except ArtefactError as error:
            assert "\n" not in str(error) and str(error).startswith(str(tmp_path))
        assert tracemalloc.get_traced_memory()[1] - before <= 2 * honest
    tracemalloc.stop()
    # Nobody can see another letter in the name of a class, and nobody looks at the
    # digests of files that this runtime does not read, a third of this card.
    assert let_in <= (200 if name == "card.json" else 0)


WRONG = {
    "no object": "[]",
    "nested": "[" * 10**5,
    "no classes": {"classes": []},
    "classes that are a text": {"classes": 3},
    "classes of numbers": {"classes": [1, 2, 3]},
    "two sides": {"image_shape": [4, 4]},
    "a side of 0": {"image_shape": [0, 4, 1]},
    "a side beyond memory": {"image_shape": [10**9, 10**9, 1]},
    "a side of a half": {"image_shape": [4.5, 4, 1]},
    "two channels": {"image_shape": [4, 4, 2]},
    "another way to resize": {"resize": "nearest"},
    "files that are a list": {"files": []},
    "no such file": {"files": {}},
    "a file without a size": {"files": {"model.onnx": {}}},
    "a file that is a number": {"files": {"model.onnx": 3}},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_a_card_that_makes_no_sense_is_refused(
    change: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_a_runtime(monkeypatch, "model.onnx")
    write_export(tmp_path, model_onnx=b"program")
    card = tmp_path / "card.json"
    if isinstance(change, dict):
        change = json.dumps(json.loads(card.read_text()) | change)
    card.write_text(change)
    with pytest.raises(ArtefactError, match="cannot be read"):
        load(tmp_path, "onnx")


def test_cards_of_before_say_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_a_runtime(monkeypatch, "model.onnx")
    write_export(tmp_path, model_onnx=b"program")
    card = {"image_shape": SHAPE, "classes": CLASSES}
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert load(tmp_path, "onnx").card["resize"] == "area"


def test_what_is_no_program_of_images_is_refused() -> None:
    for images, logits_shape, of_bytes in (
        ([1, 4, 4], [1, 3], True),
        ([1, 4, 4, 1], [1, 3, 3], True),
        ([1, 4, 4, 1], [1, 3], False),
    ):
        with pytest.raises(ArtefactError, match="no program from uint8 images"):
            runtimes._program(logits, of_bytes, images, logits_shape)
