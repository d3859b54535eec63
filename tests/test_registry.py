"""Names that other packages register: found, used, recorded, refused."""

import dataclasses
import importlib.metadata
import json
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from archives import data_config

import alite_jax
from alite_jax.config import default_config, get_config
from alite_jax.config.run_config import from_json, to_json
from alite_jax.config.validation import registries
from alite_jax.data.prepare import prepare
from alite_jax.data.sources import (
    class_names,
    describe,
    load_split,
    measured,
    shared_examples,
)
from alite_jax.distillation import LOSSES, distillation_loss, joint_loss
from alite_jax.errors import ConfigError, DataError
from alite_jax.models.calls import call_with
from alite_jax.models.registered import find_model
from alite_jax.registry import Registry
from alite_jax.runs.folder import read_spec, record_spec
from alite_jax.sparsity.methods import Method, by_score, find_method
from alite_jax.sparsity.rewiring import rewire

PAGE = Path(__file__).resolve().parent.parent / "docs" / "extending.md"


def loss(logits, teacher_logits, labels, temperature):
    return temperature * jnp.mean((logits - teacher_logits) ** 2) + labels.sum()


def method():
    return Method(drop=by_score, grow=by_score)


class Linear(nn.Module):
    features: int

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(self.features)(images.reshape(len(images), -1))


def model(num_classes):
    return Linear(num_classes)


def dataset(split):
    count = {"train": 6, "eval": 4}[split]
    images = np.arange(count * 4 * 6 * 3, dtype=np.uint8).reshape(count, 4, 6, 3)
    return images, np.arange(count) % 3, ("one", "two", "three")


# Decorator, the field that names the thing, something to register, a name of ours.
KINDS = {
    "losses": (alite_jax.register_loss, "distillation.loss", loss, "dkd"),
    "methods": (alite_jax.register_method, "pruning.method", method, "rigl"),
    "models": (alite_jax.register_model, "student.model", model, "resnet26"),
    "datasets": (alite_jax.register_dataset, "data.name", dataset, "cifar10"),
}
each_kind = pytest.mark.parametrize(
    "group, register, field, thing, taken",
    [(f"alite_jax.{kind}", *rest) for kind, rest in KINDS.items()],
    ids=KINDS,
)


@pytest.fixture(autouse=True)
def registries_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in registries().values():
        monkeypatch.setattr(registry, "_registered", {})


class Distribution:
    name = "far-away"


class Entry:
    """As `importlib.metadata.EntryPoint`, as far as it is used."""

    dist = Distribution()

    def __init__(self, name, thing):
        self.name, self.thing = name, thing

    def load(self):
        if isinstance(self.thing, Exception):
            raise self.thing
        return self.thing


@pytest.fixture
def entries(monkeypatch):
    """Entry points by group, and the groups that were asked for."""
    found, asked = {}, []

    def entry_points(*, group):
        asked.append(group)
        return found.get(group, [])

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    return found, asked


@each_kind
def test_a_registered_name_is_a_choice(group, register, field, thing, taken):
    if field != "data.name":  # Any name may be one of TFDS.
        with pytest.raises(ConfigError, match="'mine'"):
            get_config("digits", {field: "mine"})
    assert register("mine")(thing) is thing
    register("mine")(thing)  # The same thing again.
    config = get_config("digits", {field: "mine"})
    text = to_json(config)
    assert json.loads(text)["packages"] == {f"{field}=mine": "test_registry"}
    assert from_json(text) == config


@each_kind
def test_a_taken_name_says_who_has_it(group, register, field, thing, taken):
    kind = registries()[field].kind
    with pytest.raises(ConfigError, match=f"^{kind} '{taken}' is taken by alite_jax;"):
        register(taken)(thing)
    register("mine")(thing)
    with pytest.raises(ConfigError, match=f"{kind} 'mine' is taken by test_registry"):
        register("mine")(lambda: thing())


@each_kind
@pytest.mark.parametrize("given", [3, None])
def test_what_is_no_function_is_refused(group, register, field, thing, taken, given):
    with pytest.raises(
        ConfigError, match=f"'mine' cannot be registered: it is {given}"
    ):
        register("mine")(given)
    with pytest.raises(ConfigError, match="registered under a name"):
        register(thing)


@each_kind
def test_an_entry_point_is_loaded_when_its_name_is_used(
    group, register, field, thing, taken, entries
):
    found, asked = entries
    found[group] = [Entry("other", ImportError("no")), Entry("mine", thing)]
    to_json(get_config("digits"))
    assert group not in asked
    config = get_config("digits", {field: "mine"})
    text = to_json(config)
    assert json.loads(text)["packages"] == {f"{field}=mine": "far-away"}
    found.clear()
    assert from_json(text) == config  # It is known from now on.
    registries()[field]._registered.clear()
    with pytest.raises(
        ConfigError, match=f"^{field} is 'mine', a .* that far-away has registered"
    ):
        from_json(text)


@each_kind
def test_an_entry_point_that_cannot_be_loaded(
    group, register, field, thing, taken, entries
):
    entries[0][group] = [Entry("mine", ImportError("No module named 'rare'"))]
    with pytest.raises(
        ConfigError, match="far-away, which cannot be loaded .No module"
    ):
        to_json(get_config("digits", {field: "mine"}))


def test_an_entry_point_whose_module_registers_itself(entries):
    class Module(Entry):
        def load(self):
            alite_jax.register_loss("mine")(loss)
            return pytest  # Some module.

    entries[0]["alite_jax.losses"] = [Module("mine", None)]
    get_config("digits", {"distillation.loss": "mine"})
    assert registries()["distillation.loss"]["mine"] is loss


def test_the_names_of_entry_points_are_suggested(entries):
    entries[0]["alite_jax.losses"] = [Entry("hinton_loss", loss)]
    with pytest.raises(ConfigError, match="did you mean 'hinton_loss'"):
        get_config("digits", {"distillation.loss": "hinton"})


def test_a_table_has_our_names_and_registered_ones():
    names = Registry("thing", "alite_jax.things", {"ours": len})
    names.register("theirs")(max)
    assert dict(names) == {"ours": len, "theirs": max} and len(names) == 2
    assert names.package("ours") == names.package("nobody's") == ""


def test_packages_are_recorded_by_distribution():
    name = {"__name__": "jax.something"}
    exec(
        "register('mine')(loss)", name | {"register": KINDS["losses"][0], "loss": loss}
    )
    assert registries()["distillation.loss"].package("mine") == "jax"


@pytest.mark.parametrize("packages", ["3", '"jax"'])
def test_packages_that_make_no_sense(packages):
    with pytest.raises(ConfigError, match="packages must be a JSON object"):
        from_json(f'{{"packages": {packages}}}')


def test_a_configuration_of_our_names_has_no_packages():
    assert "packages" not in json.loads(to_json(default_config()))


LOGITS, TEACHER = jnp.eye(4), jnp.ones((4, 4))
LABELS = jnp.arange(4)


def test_a_registered_loss_is_part_of_the_joint_loss():
    alite_jax.register_loss("mine")(loss)

    def joint(logits, teacher, loss):
        options = {"alpha": 0.25, "temperature": 2.0, "loss": loss}
        return joint_loss(logits, LABELS, teacher, **options)

    found = joint(LOGITS, TEACHER, "mine")
    wanted = 2 * 12 / 16 + 6
    np.testing.assert_allclose(found.distillation_loss, wanted)
    np.testing.assert_allclose(found.loss, 0.75 * found.task_loss + 0.25 * wanted)
    gradient = jax.grad(lambda teacher: joint(LOGITS, teacher, "mine").loss)(TEACHER)
    assert not gradient.any()
    usual = joint(LOGITS, 3 * LOGITS.T, "kd").distillation_loss
    assert usual == distillation_loss(LOGITS, 3 * LOGITS.T, 2.0)


def test_a_loss_of_each_example_is_refused():
    alite_jax.register_loss("each")(lambda logits, teacher, labels, t: logits[:, 0])
    with pytest.raises(ConfigError, match=r"'each' gives an array of shape \(4,\)"):
        joint_loss(LOGITS, LABELS, TEACHER, alpha=0.5, temperature=1.0, loss="each")


def test_a_function_that_is_defined_again_takes_its_own_place():
    for number in (1, 2):

        def mine(*arguments, number=number):
            return float(number)

        alite_jax.register_loss("again")(mine)
    assert LOSSES["again"] is mine

    def other(*arguments):
        return 0.0

    with pytest.raises(ConfigError, match="loss 'again' is taken by test_registry"):
        alite_jax.register_loss("again")(other)


@pytest.mark.parametrize("given", [method, method()], ids=["function", "method"])
def test_a_registered_method_rewires(given):
    alite_jax.register_method("mine")(given)
    assert find_method("mine") == method()
    params = {"kernel": jnp.array([1.0, 2.0, 3.0, 0.0, 0.0])}
    scores = {"kernel": jnp.array([9.0, 1.0, 5.0, 2.0, 7.0])}
    masks = {"kernel": jnp.array([True, True, True, False, False])}
    # It drops by the score, whereas all of ours drop the smallest weight.
    found = rewire(params, scores, masks, 0.3, jax.random.key(0), "mine")
    assert found["kernel"].tolist() == [True, False, True, False, True]


def test_a_function_that_returns_no_method_is_refused():
    with pytest.raises(ConfigError, match="it is 3, not an alite_jax.sparsity"):
        alite_jax.register_method("mine")(lambda: 3)


def test_a_registered_model_gets_what_it_asks_for():
    settings = {
        "num_classes": 7,
        "image_shape": (4, 6, 3),
        "dtype": jnp.float32,
        "config": default_config(),
    }
    alite_jax.register_model("mine")(model)
    assert find_model("resnet26") is find_model("nobody's") is None
    assert call_with(find_model("mine"), "mine", settings) == Linear(7)
    seen = {}
    call_with(lambda **all: seen.update(all), "all", settings)
    assert seen == settings
    with pytest.raises(ConfigError, match="missing 1 required .* argument: 'width'"):
        call_with(lambda num_classes, width: Linear(3), "it", settings)


def test_a_registered_data_set_is_read_as_any_other(tmp_path):
    alite_jax.register_dataset("mine")(dataset)
    config = data_config(name="mine")
    spec = describe(config)
    assert (spec.num_classes, spec.image_shape) == (3, (4, 6, 3))
    assert class_names(config, spec) == ("one", "two", "three")
    assert shared_examples(config, spec) == 0
    train, evaluation = load_split(config, "train"), load_split(config, "eval", spec)
    np.testing.assert_array_equal(train.images, dataset("train")[0])
    assert train.labels.dtype == np.int32 and evaluation.labels.tolist() == [0, 1, 2, 0]
    spec = measured(spec, train)
    values = train.images.reshape(-1, 3) / 255
    np.testing.assert_allclose(spec.mean, values.mean(0), atol=1e-4)
    record_spec(tmp_path, spec)
    assert read_spec(tmp_path) == spec
    config = data_config(name="mine", image_size=3)
    assert load_split(config, "eval", spec).images.shape == (4, 3, 3, 3)
    with pytest.raises(ConfigError, match="nothing to prepare"):
        prepare(config)


def test_classes_without_names_are_counted():
    alite_jax.register_dataset("mine")(lambda split: dataset(split)[:2])
    spec = describe(data_config(name="mine"))
    assert spec.class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    "fields, finding",
    [
        ({"loading": "stream"}, "data.loading is 'stream', but mine is a registered"),
        ({"label": "fine"}, "data.label is 'fine', but mine is a registered"),
        ({"train_split": "train[:9]"}, "data.train_split is .* leave it empty"),
    ],
)
def test_choices_that_a_function_does_not_have(fields, finding):
    alite_jax.register_dataset("mine")(dataset)
    with pytest.raises(ConfigError, match=finding):
        load_split(data_config(name="mine", **fields), "train")


IMAGES = np.zeros((4, 8, 8, 3), np.uint8)
FOUR = np.arange(4)
WRONG = {
    "no tuple": (IMAGES, "is ndarray, not a tuple of images"),
    "four things": ((IMAGES, FOUR, (), 1), "not a tuple of images"),
    "floats": ((IMAGES / 255, FOUR), r"images of float64 and shape \(4, 8, 8, 3\)"),
    "no channels": ((IMAGES[..., 0], FOUR), r"shape \(4, 8, 8\), expected uint8"),
    "two channels": ((IMAGES[..., :2], FOUR), "with 1 or 3 channels"),
    "real labels": ((IMAGES, FOUR / 2), "labels of float64"),
    "few labels": ((IMAGES, FOUR[:3]), "one for each of 4 images"),
    "below": ((IMAGES, FOUR - 1), "labels from -1 to 2, expected 0 to 2"),
    "above": ((IMAGES, FOUR, "abc"), "labels from 0 to 3, expected 0 to 2"),
    "nothing": ((IMAGES[:0], FOUR[:0]), "has no images"),
    "one class": ((IMAGES, 0 * FOUR), "has one class alone"),
}


@pytest.mark.parametrize("found, finding", WRONG.values(), ids=WRONG)
def test_what_is_no_data_set(found, finding):
    alite_jax.register_dataset("mine")(lambda split: found)
    with pytest.raises(DataError, match=f"'mine' returns for 'train' .*{finding}"):
        describe(data_config(name="mine"))


def test_an_evaluation_split_of_another_kind():
    def load(split):
        images, labels, _ = dataset(split)
        return (images, labels) if split == "train" else (images[:, 1:], labels)

    alite_jax.register_dataset("mine")(load)
    config = data_config(name="mine")
    with pytest.raises(DataError, match=r"'eval' has images of shape \(3, 6, 3\), but"):
        load_split(config, "eval")
    spec = dataclasses.replace(describe(config), num_classes=2, image_shape=(3, 6, 3))
    with pytest.raises(
        DataError, match="'eval' has labels from 0 to 2, expected 0 to 1"
    ):
        load_split(config, "eval", spec)


EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_of_the_page_run(example):
    scope = {"__name__": "my_package.part"}
    exec(example, scope)
    packages = json.loads(to_json(scope["config"]))["packages"]
    assert list(packages.values()) == ["my_package"]


def test_the_examples_do_what_they_say():
    for example in EXAMPLES:
        exec(example, {"__name__": "my_package"})
    same = joint_loss(
        LOGITS, LABELS, LOGITS, alpha=1.0, temperature=4.0, loss="logit_mse"
    )
    assert same.loss == 0
    assert find_method("saliency").grow is by_score
    mlp = call_with(find_model("mlp"), "mlp", {"num_classes": 5})
    assert mlp.num_classes == 5
    assert describe(data_config(name="stripes")).class_names == ("rows", "columns")
