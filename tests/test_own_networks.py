"""Students, teachers and optimizers that are not this project's, through whole runs."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fitting import Stop, failing
from flax import nnx
from foreign import Mixer, Pair, ViT
from ml_collections import ConfigDict
from tiny import SETTINGS, assert_same, run_command, tiny_config

import alite_jax
from alite_jax.config.run_config import read_config
from alite_jax.data.augment import NORMALIZATIONS
from alite_jax.data.specs import DATASETS
from alite_jax.deploy.artefact import load
from alite_jax.errors import AliteError, CheckpointError, ConfigError
from alite_jax.models.given import configured_teacher
from alite_jax.runs import fit as fit_module
from alite_jax.runs.data import load_data
from alite_jax.runs.given import Given
from alite_jax.runs.networks import create_networks
from alite_jax.sparsity.masks import density
from alite_jax.training.optimizer import create_optimizer
from alite_jax.trees import named_leaves

PAGE = Path(__file__).resolve().parent.parent / "docs" / "students.md"
pytestmark = pytest.mark.usefixtures("models")

ADAMW = {
    "student.optimizer.name": "adamw",
    "student.optimizer.learning_rate": 1e-3,
    "student.epochs": 2,
    "pruning.every_steps": 3,
}
VARIABLES = {
    "w": np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32),
    "b": np.zeros(10, np.float32),
}


def linear(variables: Any, images: jax.Array) -> jax.Array:
    """A teacher that is a function."""
    flat = images.reshape(len(images), -1)
    return flat @ variables["w"] + variables["b"][None]


def teacher(num_classes: int) -> Any:
    """What `teacher.module` names."""
    assert num_classes == 10
    return linear, VARIABLES


def small() -> nn.Module:
    """What `student.module` names."""
    return ViT(10, features=8)


GIVEN: dict[str, Any] = {"student": small, "teacher": (linear, VARIABLES)}


@pytest.fixture(scope="module")
def run(models: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a student, a teacher and AdamW from Python."""
    folder = tmp_path_factory.mktemp("own") / "run"
    alite_jax.train(tiny_config(ADAMW), folder, **GIVEN)
    return folder


@pytest.mark.processes
def test_a_run_of_own_networks_counts_and_prunes_them(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    ours, theirs = summary["student"], summary["teacher"]
    assert (ours["name"], theirs["name"]) == ("small", "linear")
    assert theirs["parameters"] == 650 and theirs["macs"] == 640
    found = alite_jax.restore(read_config(run), run, **GIVEN)["student"][1]
    assert density(found["masks"]) == pytest.approx(0.25, abs=0.01)
    kept = sum(np.count_nonzero(leaf) for _, leaf in named_leaves(found["params"]))
    assert kept <= ours["nonzero_parameters"] < ours["parameters"]
    assert found["masks"]["pos_embedding"].ndim == 0  # Stays dense.
    # 16 patches of 2x2, each token through all kernels, the classifier once; queries
    # and values with keys are products of two activations, in full.
    tokens, width = 17, 8
    blocks = tokens * (4 * width**2 + 2 * width * 16) + 2 * tokens**2 * width
    assert ours["macs"] == 16 * 4 * width + blocks + width * 10


@pytest.mark.processes
def test_it_is_evaluated_exported_and_reported(run: Path) -> None:
    config = read_config(run)
    summary = json.loads((run / "summary.json").read_text())
    # By what it was begun with, too.
    again = alite_jax.evaluate(tiny_config(ADAMW), run, **GIVEN)
    assert again["student"] == summary["student"]
    card = alite_jax.export(config, run, "float32", **GIVEN)
    assert card["accuracy"] == summary["student"]["accuracy"]
    assert card["agreement"]["same_classes"] == 1
    images = load_data(config).evaluation.images[:3]
    assert load(run / "export").logits(images).shape == (3, 10)
    page = alite_jax.report(config, run, **GIVEN).read_text()
    assert "small on digits" in page and "linear" in page and "Masks" in page


@pytest.mark.processes
def test_what_came_from_python_must_be_given_again(run: Path) -> None:
    config = read_config(run)
    assert config.student.module == "python:small"
    with pytest.raises(ConfigError, match="give it again, as teacher=linear"):
        alite_jax.evaluate(config, run)
    assert run_command("--job=report", f"--workdir={run}") == 2


@pytest.mark.processes
def test_modules_named_by_texts_make_the_same_run_killed_or_not(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """To the last bit, dropout included."""
    file, folder = Path(__file__), tmp_path / "run"
    fields = {
        "student.module": f"{file}:small",
        "teacher.module": f"{file.stem}:teacher",
        "checkpoint.every_steps": 1,
    }
    config = tiny_config(ADAMW | fields)
    with monkeypatch.context() as patch:
        save = fit_module.Checkpoints.save
        patch.setattr(fit_module.Checkpoints, "save", failing(save, 5))
        with pytest.raises(Stop):
            alite_jax.train(config, folder)
    alite_jax.train(config, folder)
    named = alite_jax.restore(read_config(folder), folder)
    given = alite_jax.restore(read_config(run), run, **GIVEN)
    assert_same(named["student"][1], given["student"][1])
    capsys.readouterr()
    assert run_command("--job=cost", f"--workdir={folder}", "--format=json") == 0
    counted = json.loads(capsys.readouterr().out)
    assert counted["teacher"]["total"]["weight_macs"] == 640
    assert counted["student"]["name"] == "small"


@pytest.mark.processes
def test_an_nnx_student_learns_from_a_file_of_weights_by_any_optimizer(
    finished_run: Path, tmp_path: Path
) -> None:
    file = finished_run / "teacher.safetensors"
    fields = {"student.epochs": 1, "pruning.every_steps": 2, "pruning.dense": "^tokens"}
    config = tiny_config(fields | {"teacher.weights": str(file)})
    summary = alite_jax.train(
        config,
        tmp_path,
        student=Mixer,
        # It keeps no momentum, by which masks change.
        optimizer=lambda steps: optax.sgd(optax.linear_schedule(0.1, 0, steps)),
    )
    before = json.loads((finished_run / "summary.json").read_text())["teacher"]
    # It is the other run's teacher, images normalised as there.
    assert summary["teacher"]["accuracy"] == before["accuracy"]
    assert summary["teacher"]["parameters"] == before["parameters"]
    recorded = read_config(tmp_path)
    assert recorded.student.optimizer.name == "python"
    found = alite_jax.restore(recorded, tmp_path, student=Mixer)["student"][1]
    assert set(found["batch_stats"]) == {"norm"}
    assert density(found["masks"]) == pytest.approx(0.25, abs=0.01)
    masks, params = (dict(named_leaves(found[kind])) for kind in ("masks", "params"))
    assert masks["tokens/0/kernel"].ndim == 0 and masks["channels/kernel"].ndim == 2
    for path, leaf in params.items():
        assert not leaf[~np.broadcast_to(masks[path], leaf.shape)].any()


def wrong(change: Callable[[jax.Array], Any]) -> Any:
    return lambda variables, images: change(linear(variables, images)), VARIABLES


@pytest.mark.parametrize(
    ("fields", "given", "message"),
    [
        (
            {},
            {"teacher": wrong(lambda logits: logits[:, :7])},
            "gives 7 logits, but digits has 10 classes; give a teacher that was",
        ),
        (
            {},
            {"teacher": wrong(jax.nn.softmax)},
            "gives probabilities .* where logits are expected; set teacher.output=prob",
        ),
        (
            {"teacher.output": "probabilities"},
            {"teacher": (linear, VARIABLES)},
            "gives no probabilities .*, but teacher.output is 'probabilities'",
        ),
        (
            {},
            {"teacher": wrong(lambda logits: logits * jnp.nan)},
            "gives NaN or infinity for 16 of 16 training images; check its weights",
        ),
        (
            {},
            {"teacher": wrong(lambda logits: (logits, logits))},
            "returns a tuple of 2, but must return one array, the logits",
        ),
        (
            {},
            {"teacher": (lambda v, x: x @ v["w"], VARIABLES)},
            "cannot be asked about the images of digits: TypeError: dot_general",
        ),
        ({}, {"teacher": 3}, "int is a int, but a teacher is a pair of a function"),
        ({}, {"student": Pair()}, "Pair returns a tuple of 2, but must return one"),
        ({}, {"student": ViT(7)}, r"logits \[2, 7\] for 2 images, but the data set"),
        (
            {"pruning.structure": "heads"},
            {"student": small},
            "pruning.structure is 'heads', but the blocks of small are not in the tab",
        ),
        (
            {"distillation.feature_weight": 1.0},
            {"student": small},
            r"the teacher's are \d+x\d+ and the student's none; give both",
        ),
        (
            {"student.module": "nowhere_at_all:vit"},
            {},
            "student.module is 'nowhere_at_all:vit', but there is no module 'nowhere_",
        ),
        (
            {"student.module": f"{Path(__file__).stem}:smal"},
            {},
            "has no 'smal'; did you mean 'small'",
        ),
        ({"student.module": "small"}, {}, "must be 'package.module:function'"),
        (
            {"teacher.weights": "a.npz", "teacher.logits": "b.npz"},
            {},
            "teacher.weights and teacher.logits each give a teacher",
        ),
        ({"pruning.dense": "("}, {}, "pruning.dense is '.', which is no regular expr"),
        ({"student.optimizer.name": "python"}, {}, "must give it again to go on, as"),
        ({}, {"optimizer": "adam"}, "optimizer is a str, but must be an optax"),
    ],
)
def test_what_does_not_fit_stops_with_one_sentence(
    fields: dict[str, Any], given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(AliteError, match=message):
        alite_jax.train(tiny_config(fields), tmp_path, **given)


@pytest.mark.processes
def test_another_student_in_the_same_folder_is_refused(run: Path) -> None:
    with pytest.raises((ConfigError, CheckpointError), match="another"):
        alite_jax.train(
            tiny_config(ADAMW), run, student=Mixer, teacher=(linear, VARIABLES)
        )


def test_teachers_see_images_in_their_own_form_and_answer_in_logits() -> None:
    taught = Mixer(10, nnx.Rngs(0))
    taught.eval()
    config = tiny_config({"teacher.normalization": "unit"})
    spec = DATASETS["digits"]
    found = configured_teacher(config, spec, taught)
    assert found is not None
    pixels = np.random.default_rng(0).random((4, 8, 8, 1), np.float32)
    mean, std = (
        np.array(c, np.float32)[None, None, None] for c in (spec.mean, spec.std)
    )
    images = (pixels - mean) / std
    logits = found[0].apply(found[1], images, train=False)
    np.testing.assert_allclose(logits, taught(jnp.asarray(pixels)), atol=1e-5)

    # Twice the side, three channels, and probabilities of which logits are made.
    def mean_colours(variables: Any, images: jax.Array) -> jax.Array:
        assert images.shape[1:] == (16, 16, 3)
        return jax.nn.softmax(images.mean(axis=(1, 2)) * variables)

    fields = {"teacher.normalization": "imagenet", "teacher.image_size": 16}
    config = tiny_config(fields | {"teacher.output": "probabilities"})
    found = configured_teacher(config, spec, (mean_colours, np.ones((1, 3))))
    assert found is not None
    logits = found[0].apply(found[1], images, train=False)
    imagenet = np.array(NORMALIZATIONS["imagenet"], np.float32)
    colours = (pixels.mean(axis=(1, 2)) - imagenet[:1]) / imagenet[1:]
    np.testing.assert_allclose(logits, jax.nn.log_softmax(colours), atol=1e-5)


def test_the_examples_of_the_page_describe_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such runs are trained above; here networks and optimizers are only made."""
    made = []

    def describe(config: ConfigDict, workdir: str, **parts: Any) -> None:
        given = Given(**parts)
        config = given.named(alite_jax.override(config, SETTINGS))
        data = load_data(config)
        student = create_networks(config, data, tmp_path, given)[1]
        variables = student.template(data.image_shape)
        optimizer = given.create_optimizer(10) or create_optimizer(
            config.student.optimizer, steps_per_epoch=5, epochs=2
        )
        state = jax.eval_shape(optimizer.init, variables["params"])
        made.append((workdir, student.identity["model"], variables, state))

    monkeypatch.setattr(alite_jax, "train", describe)
    scope: dict[str, Any] = {}
    for example in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(example, scope)
    small, lion = made
    assert small[:2] == ("runs/small", "Small") and lion[0] == "runs/lion"
    shapes = {path: leaf.shape for path, leaf in named_leaves(small[2]["params"])}
    # An image of 8x8 pixels and one channel, halved, in 16 channels; ten classes.
    assert shapes["Conv_0/kernel"] == (3, 3, 1, 16)
    assert shapes["Dense_0/kernel"] == (4 * 4 * 16, 10)
    assert small[2]["masks"]["Conv_0"]["kernel"].shape == (3, 3, 1, 16)
    assert "ScaleByAdamState" in str(small[3]) and "ScaleByLionState" in str(lion[3])
