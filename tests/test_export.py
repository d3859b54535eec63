"""From a run to a folder that works without it."""

import contextlib
import hashlib
import io
import itertools
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import ExifTags, Image
from tiny import run_command, tiny_config

import alite_jax
from alite_jax import predict
from alite_jax.deploy import program
from alite_jax.deploy.artefact import Artefact, load
from alite_jax.deploy.pack import unpack
from alite_jax.deploy.program import export_program, milliseconds
from alite_jax.deploy.runtimes import read_tflite
from alite_jax.deploy.tflite import tflite_program
from alite_jax.errors import ArtefactError, ConfigError
from alite_jax.jobs import export as export_job
from alite_jax.jobs import train as train_job
from alite_jax.models.layers import Pointwise
from alite_jax.ops.local_attention import fastest, local_attention
from alite_jax.pages import run_plots
from alite_jax.provenance import written_by
from alite_jax.structure.compact import check_compaction, compact

pytestmark = pytest.mark.usefixtures("models")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def run(
    models: None, finished_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run, exported as int8 (kept as `int8`) and then anew as float32."""
    folder = shutil.copytree(finished_run, tmp_path_factory.mktemp("export") / "run")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert run_command("--job=export", f"--workdir={folder}", "--multiple=8") == 0
    shutil.copytree(folder / "export", folder / "int8")
    assert printed.getvalue() == (folder / "int8" / "card.md").read_text() + "\n"
    how = "--values=float32", "--formats=mlir,safetensors"
    assert run_command("--job=export", f"--workdir={folder}", *how) == 0
    return folder


@pytest.fixture
def same_program(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports take the program that is there instead of writing it again."""
    content = (run / "export" / "graph.stablehlo").read_bytes()
    monkeypatch.setattr(export_job, "export_program", lambda *_: content)


@pytest.fixture(scope="module")
def images(models: None) -> np.ndarray:
    return train_job.load_data(tiny_config()).evaluation.images


def test_the_exported_program_is_the_network(run: Path, images: np.ndarray) -> None:
    found = load(run / "export")
    student, variables = alite_jax.restore(tiny_config(), run)["student"]
    spec = train_job.load_data(tiny_config()).spec
    inputs = (images / 255 - np.array(spec.mean)) / np.array(spec.std)
    wanted = jax.jit(partial(student.apply, train=False))(variables, np.float32(inputs))
    for count in (1, 3, len(images)):  # The batch is free.
        np.testing.assert_allclose(
            found.logits(images[:count]), wanted[:count], atol=1e-4
        )


def test_the_card_says_what_is_in_the_folder(run: Path, images: np.ndarray) -> None:
    folder = run / "export"
    card = json.loads((folder / "card.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    parts = sum(size for name, size in card["bytes"].items() if name != "program")
    assert parts == (folder / "weights.alite").stat().st_size
    assert card["bytes"]["program"] == (folder / "graph.stablehlo").stat().st_size
    assert card["accuracy"] == card["accuracy_before_packing"]
    assert card["accuracy"] == summary["student"]["accuracy"]
    assert card["teacher"]["accuracy"] == summary["teacher"]["accuracy"]
    assert card["macs_before_compaction"] == summary["student"]["macs"] >= card["macs"]
    assert card["agreement"]["same_classes"] == 1.0
    assert card["agreement"]["allowed"]["logits_error"] == 1e-3
    assert card["packing_error"] == 0
    assert card["agreement"]["images"] == len(images)
    assert card["classes"] == [str(digit) for digit in range(10)]
    of_classes = card["class_accuracy"]
    assert of_classes == summary["student"]["class_accuracy"]
    assert card["teacher"]["class_accuracy"] == summary["teacher"]["class_accuracy"]
    for name, known in card["files"].items():
        content = (folder / name).read_bytes()
        assert known["sha256"] == hashlib.sha256(content).hexdigest()
    assert set(card["files"]) | {"card.json", "card.md"} == {
        path.name for path in folder.iterdir()
    }
    assert set(card["formats"]) == {"mlir", "safetensors"}
    for found in card["formats"].values():
        assert found["agreement"]["same_classes"] == 1.0
    text = (folder / "card.md").read_text()
    worst = min(of_classes, key=of_classes.get)
    assert f"lowest for {worst} ({100 * of_classes[worst]:.2f} %), " in text
    assert f"{parts:,}" in text and "load(" in text
    assert "puts black behind what is transparent" in text
    assert set(card["milliseconds"]["student"]) == {"1", "64"}
    teacher = card["teacher"]
    every = teacher["bytes"] + teacher["program_bytes"], sum(card["bytes"].values())
    assert f"| bytes, weights and program | {every[0]:,} | {every[1]:,} |" in text
    accuracy = f"{100 * card['accuracy']:.2f} %"
    assert f"| graph.mlir | 1 | {accuracy} | 100.00 % |" in text
    assert f"| weights.safetensors | - | {accuracy} | 100.00 % |" in text
    assert text.endswith(f"Written by {written_by(card['environment'])}.\n")


def test_the_card_begins_as_model_hubs_read_it(run: Path) -> None:
    text = (run / "export" / "card.md").read_text()
    before, head, after = text.split("---\n", 2)
    assert before == "" and after.startswith("\n# tiny_attention for digits\n")
    # JSON is YAML.
    fields = {
        name: json.loads(value)
        for name, value in (line.split(": ", 1) for line in head.splitlines())
    }
    assert fields["license"] == "unknown" and fields["datasets"] == ["digits"]
    [model] = fields["model-index"]
    [result] = model["results"]
    assert result["dataset"]["split"] == "test[:50]"
    assert result["task"]["type"] == fields["pipeline_tag"] == "image-classification"
    accuracy = json.loads((run / "export" / "card.json").read_text())["accuracy"]
    assert [m["value"] for m in result["metrics"]] == [accuracy]


def test_values_of_a_byte_make_it_smaller(run: Path) -> None:
    of_floats, of_bytes = (
        (run / folder / "weights.alite").read_bytes() for folder in ("export", "int8")
    )
    assert len(of_bytes) < 0.7 * len(of_floats)
    widths = unpack(of_bytes).model["widths"]
    assert all(width % 8 == 0 for block in widths for width in block[:2])
    assert "stored as int8" in (run / "int8" / "card.md").read_text()


def test_a_report_has_what_was_exported(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_plots, "png", lambda figure: b"")  # They take long.
    page = alite_jax.report(tiny_config(), run).read_text()
    assert "<h2>Exported</h2>" in page
    size = (run / "export" / "weights.alite").stat().st_size
    assert "<td>bytes of the weights</td>" in page and f"<td>{size:,}</td>" in page


def test_image_files_are_classified(
    run: Path, images: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = load(run / "export")
    paths = []
    for i, image in enumerate(images[:4]):
        paths.append(str(tmp_path / f"{i}.png"))
        large = np.kron(image[..., 0], np.ones((5, 5), np.uint8))
        Image.fromarray(np.pad(large, [(0, 0), (9, 9)])).convert("RGB").save(paths[-1])
    for path, image in zip(paths, images, strict=False):
        np.testing.assert_array_equal(found.read_image(path), image)
    assert predict.main([str(run / "export"), *paths, "--top=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    wanted = found.logits(images[:4]).argmax(axis=1)
    assert [line.split(": ")[1][0] for line in lines] == [str(n) for n in wanted]
    probabilities = found.classify(images[:4], top=10)
    assert all(sum(p for _, p in row) == pytest.approx(1) for row in probabilities)


def test_a_digit_is_the_same_in_every_kind_of_file(
    images: np.ndarray, tmp_path: Path
) -> None:
    image = images[0]
    network = Artefact({"image_shape": image.shape}, np.asarray)
    ink = np.kron(image[..., 0], np.ones((16, 16), np.uint8))
    white = np.full_like(ink, 255)
    palette = Image.fromarray(ink).convert("P")
    palette.putpalette([255] * 768)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    files = {
        "plain.png": (ink, {}),
        "deep.png": (ink * np.uint16(257), {}),
        "grey_alpha.png": (np.stack([white, ink], axis=-1), {}),
        "alpha.png": (np.stack([white, white, white, ink], axis=-1), {}),
        "palette.png": (palette, {"transparency": bytes(range(256))}),
        # Lying on its side, so that turning it clockwise puts it upright.
        "turned.jpg": (np.rot90(ink), {"exif": turned, "quality": 100}),
    }
    for name, (content, options) in files.items():
        if isinstance(content, np.ndarray):
            content = Image.fromarray(content)
        content.save(tmp_path / name, **options)
        lost = 1 if name.endswith(".jpg") else 0
        read = network.read_image(tmp_path / name)
        np.testing.assert_allclose(read, np.float64(image), atol=lost)


def test_files_that_cannot_be_read_stop_no_others(
    run: Path, images: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(images[0, ..., 0]).save(tmp_path / "good.png")
    good = (tmp_path / "good.png").read_bytes()
    contents = {
        "huge.ppm": b"P5 20000 20000 255\n",
        "text.png": b"no image",
        "cut.png": good[:-40],
        "damaged.ppm": b"P6\n8 x\n255\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.png").mkdir()
    order = ["missing.png", "good.png", *contents, "good.png", "folder.png"]
    paths = [str(tmp_path / name) for name in order]
    assert predict.main([str(run / "export"), *paths]) == 2
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert len(lines) == 2 and lines[0] == lines[1]
    assert lines[0].startswith(f"{tmp_path / 'good.png'}: ")
    sentences = printed.err.splitlines()
    damaged = "is not a readable image: it is damaged or cut short"
    findings = [
        ("missing.png", "does not exist"),
        ("huge.ppm", "is too large: images of up to 178,956,970 pixels are read"),
        ("text.png", "is no image of any known format"),
        ("cut.png", damaged),
        ("damaged.ppm", damaged),
        ("folder.png", "is a folder without image files"),
    ]
    for sentence, (name, finding) in zip(sentences, findings, strict=True):
        assert sentence.startswith(f"error: {tmp_path / name} {finding}")
    assert predict.main([str(run / "export"), paths[0]]) == 2
    assert capsys.readouterr().out == ""


def test_no_images_have_no_classes(run: Path, images: np.ndarray) -> None:
    found = load(run / "export")
    logits = found.logits(images[:0])
    assert logits.shape == (0, 10) and logits.dtype == np.float32
    assert found.classify(images[:0]) == []


def test_at_least_one_class_is_named(
    run: Path, images: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    found = load(run / "export")
    for top, count in ((1, 1), (10, 10), (11, 10)):
        (classes,) = found.classify(images[:1], top)
        assert len(classes) == count
    for top in (0, -1):
        for count in (0, 1):
            with pytest.raises(ConfigError, match=f"top = {top}, but at least 1"):
                found.classify(images[:count], top)
        assert predict.main([str(run / "export"), "x.png", f"--top={top}"]) == 2
        assert f"--top={top}, but at least 1" in capsys.readouterr().err


def test_using_it_needs_neither_flax_nor_the_models(run: Path) -> None:
    script = (
        "import sys, numpy as np; from alite_jax.deploy.artefact import load;"
        f"print(load({str(run / 'export')!r}).logits(np.zeros((2, 8, 8, 1), 'uint8'))"
        ".shape); assert not {'flax', 'optax', 'alite_jax.models'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.returncode) == ("(2, 10)\n", 0), done.stderr


def test_mistakes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict.main([str(tmp_path), "x.png"]) == 2
    error = capsys.readouterr().err
    assert "holds no exported network (card.json is missing)" in error
    assert predict.main([str(run / "export"), str(tmp_path / "x.png")]) == 2
    assert "x.png does not exist" in capsys.readouterr().err
    for name in ("weights.alite", "graph.stablehlo", "card.json"):
        folder = shutil.copytree(run / "export", tmp_path / name)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ArtefactError, match="cannot be"):
            load(folder)


def test_a_program_that_does_not_agree_is_not_kept(
    run: Path, same_program: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(self: Any, images: np.ndarray) -> np.ndarray:
        return np.zeros((len(images), 10), np.float32)

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (run / "export").iterdir()}

    before = files()
    monkeypatch.setattr(Artefact, "logits", wrong)
    with pytest.raises(ArtefactError, match="names the same class for"):
        alite_jax.export(tiny_config(), run)
    assert files() == before


def test_programs_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    now = 0.0

    def call(name: str, seconds: float, images: np.ndarray) -> None:
        nonlocal now
        order.append(name)
        now += seconds

    monkeypatch.setattr(program, "time", SimpleNamespace(perf_counter=lambda: now))
    calls = {"quick": partial(call, "quick", 1e-4), "slow": partial(call, "slow", 4e-3)}
    found = milliseconds(calls, np.zeros(1), at_least=0.1)
    assert found == pytest.approx({"quick": 0.1, "slow": 4})
    assert sum(a != b for a, b in itertools.pairwise(order)) > 10


@pytest.mark.slow
def test_a_network_in_bfloat16_is_exported(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    config = tiny_config({"compute.dtype": "bfloat16"})
    card = alite_jax.export(config, folder)
    allowed = card["agreement"]["allowed"]
    assert allowed["bits"] == 8 and allowed["logits_error"] > 1e-2
    assert 0 < card["packing_error"] < 0.1  # As int8.
    text = (folder / "export" / "card.md").read_text()
    assert "factors have 8 significant bits" in text


def test_a_wrong_compaction_is_noticed(run: Path, images: np.ndarray) -> None:
    model, variables = alite_jax.restore(tiny_config(), run)["student"]
    found = compact(model, variables)
    inputs = np.float32(images[:8]) / 255
    assert check_compaction(model, variables, found, inputs) < 1e-5
    # Compaction changes no more of a network that computes in bfloat16.
    coarse = replace(found, model=found.model.clone(dtype=jnp.bfloat16))
    of_bfloat16 = model.clone(dtype=jnp.bfloat16)
    assert check_compaction(of_bfloat16, variables, coarse, inputs) < 1e-5
    params = jax.tree.map(np.array, found.variables["params"])
    params["classifier"]["bias"] += 0.01
    found.variables["params"] = params
    with pytest.raises(ArtefactError, match="nothing was written"):
        check_compaction(model, variables, found, inputs)


@pytest.mark.parametrize(("count", "side", "heads"), [(16, 8, 2), (1, 16, 1)])
def test_an_exported_program_computes_no_logits_twice(
    count: int, side: int, heads: int
) -> None:
    """Calls are inlined in it; see `alite_jax.ops.row_kernels`."""
    embeddings = np.ones((7, 2), np.float32)
    assert fastest(side, side, 4, 7, "cpu") == "rows"

    def forward(embeddings: Any, images: jax.Array) -> jax.Array:
        maps = images.astype(jnp.float32).reshape(*images.shape[:3], heads, 4)
        output = local_attention(
            maps, maps, maps, embeddings, embeddings, kernel_size=7
        )
        return output.mean(axis=(1, 2))

    images = np.ones((count, side, side, 4 * heads), np.uint8)
    content = export_program(forward, embeddings, images.shape[1:])
    exported = jax.export.deserialize(bytearray(content)).call

    def products(call: Any) -> int:
        compiled = jax.jit(call).lower(embeddings, images).compile()
        return str(compiled.as_text()).count(" multiply(")

    assert products(exported) == products(forward)


def test_a_program_for_litert_needs_its_converter(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "litert_converter", None)

    def too_early(*_: Any) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(export_job, "load_data", too_early)
    assert run_command("--job=export", f"--workdir={run}", "--formats=tflite") == 2
    assert (
        "pip install ai-edge-litert==2.3.0 litert-converter==0.5.0"
        in capsys.readouterr().err
    )
    assert (run / "export" / "card.json").exists()  # What was there stays.


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_program_for_litert_is_the_network(
    finished_run: Path, tmp_path: Path
) -> None:
    pytest.importorskip("litert_converter")
    pytest.importorskip("ai_edge_litert")
    folder = shutil.copytree(finished_run, tmp_path / "run")
    assert run_command("--job=export", f"--workdir={folder}", "--formats=tflite:4") == 0
    card = json.loads((folder / "export" / "card.json").read_text())
    found = card["formats"]["tflite"]
    assert found["agreement"]["same_classes"] == 1.0 and found["batch"] == 4
    written = (folder / "export" / "model.tflite").stat().st_size
    assert found["bytes"] == card["files"]["model.tflite"]["bytes"] == written
    assert found["milliseconds"].keys() == {"teacher", "student"}
    text = (folder / "export" / "card.md").read_text()
    accuracy = f"{100 * card['accuracy']:.2f} %"
    assert f"| model.tflite | 4 | {accuracy} | 100.00 % |" in text
    images = np.arange(6 * 64, dtype=np.uint8).reshape(6, 8, 8, 1)
    wanted = load(folder / "export").logits(images)
    for count in (1, 4, 6):
        logits = load(folder / "export", "tflite").logits(images[:count])
        np.testing.assert_allclose(logits, wanted[:count], atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_program_for_litert_may_have_maps_of_one_pixel() -> None:
    pytest.importorskip("litert_converter")
    pytest.importorskip("ai_edge_litert")
    layer = Pointwise(12)

    def forward(variables: Any, images: jax.Array) -> jax.Array:
        return jnp.mean(layer.apply(variables, images / 255), axis=(1, 2))

    images = np.arange(64, dtype=np.uint8).reshape(1, 1, 1, 64)
    variables = layer.init(jax.random.key(0), images / 255)
    program = read_tflite(tflite_program(forward, variables, images.shape[1:], 1))
    assert program.image_shape == (1, 1, 64)
    wanted = forward(variables, images)
    np.testing.assert_allclose(program.call(images), wanted, rtol=1e-4)


@pytest.mark.processes
@pytest.mark.filterwarnings("ignore")
def test_an_export_for_onnx_runtime_is_the_network(
    finished_run: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished_run, tmp_path / "run")
    card = alite_jax.export(tiny_config(), folder, formats=["onnx", "onnx_int8"])
    found, small = card["formats"]["onnx"], card["formats"]["onnx_int8"]
    assert found["agreement"]["same_classes"] == 1.0
    assert found["accuracy"] == card["accuracy"]
    assert found["milliseconds"].keys() == {"teacher", "student"}
    assert found["teacher_bytes"] > 0 and small["teacher_bytes"] > 0
    assert small["accuracy"] >= card["accuracy"] - 0.005
    images = np.arange(6 * 64, dtype=np.uint8).reshape(6, 8, 8, 1)
    wanted = load(folder / "export").logits(images)
    for count in (1, 4, 6):
        logits = load(folder / "export", "onnx").logits(images[:count])
        np.testing.assert_allclose(logits, wanted[:count], atol=1e-5)
    assert load(folder / "export", "onnx_int8").logits(images).shape == wanted.shape
