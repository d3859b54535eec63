"""Any data set for classification that TFDS has prepared: what is read of it."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from archives import data_config, write_set
from ml_collections import ConfigDict

from alite_jax.data.prepare import prepare
from alite_jax.data.resize import BILINEAR, resize_and_crop
from alite_jax.data.sources import describe, load_split, measured, shared_examples
from alite_jax.errors import CheckpointError, ConfigError, DataError
from alite_jax.runs.folder import read_spec, record_spec

Features = tfds.features
BIRDS = Features.ClassLabel(names=["wren", "n01443537", "auk"])
RANDOM = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, np.uint8)


def examples(n: int, *shape: int, **more: Any) -> list[dict[str, Any]]:
    return [{"image": noise(*shape), "label": i % 3, **more} for i in range(n)]


def image(*shape: int | None) -> tfds.features.Image:
    return Features.Image(shape=shape)


def config_of(data_dir: Path, name: str = "birds", **fields: Any) -> ConfigDict:
    return data_config(name=name, data_dir=str(data_dir), **fields)


def test_what_is_known_is_read_from_the_set(tmp_path: Path) -> None:
    train, test = examples(9, 6, 5, 3), examples(4, 6, 5, 3)
    features = {"image": image(6, 5, 3), "label": BIRDS, "id": np.int64}
    train = [example | {"id": 7} for example in train]
    test = [example | {"id": 7} for example in test]
    write_set(tmp_path, "birds", features, {"train": train, "test": test})
    config = config_of(tmp_path)
    spec = describe(config)
    assert (spec.name, spec.prepared) == ("birds", "birds")
    assert (spec.num_classes, spec.image_shape) == (3, (6, 5, 3))
    # A synset id is called by its words, as in Tiny-ImageNet.
    assert spec.class_names == ("wren", "goldfish", "auk")
    assert (spec.train_split, spec.eval_split) == ("train", "test")
    assert spec.mean == spec.std == () and spec.resize == BILINEAR
    for part, written in (("train", train), ("eval", test)):
        split = load_split(config, part)  # type: ignore[arg-type]
        np.testing.assert_array_equal(split.images, [e["image"] for e in written])
        assert split.labels.tolist() == [e["label"] for e in written]
    pixels = np.stack([e["image"] for e in train]) / 255
    found = measured(spec, load_split(config, "train"))
    np.testing.assert_allclose(found.mean, pixels.mean((0, 1, 2)), atol=5.1e-5)
    np.testing.assert_allclose(found.std, pixels.std((0, 1, 2)), atol=5.1e-5)


@pytest.mark.parametrize(
    ("shape", "pixels", "channels"),
    [
        ((6, 6, 1), (6, 6, 1), 1),
        ((6, 6, 3), (6, 6, 3), 3),
        ((6, 6, 4), (6, 6, 4), 3),
        ((None, None, 3), (9, 7, 3), 3),
        ((None, None, 1), (9, 7, 1), 1),
        ((None, None, None), (9, 7, 3), 3),
        ((6, None, 3), (6, 7, 3), 3),
    ],
)
def test_shapes(
    shape: tuple[int | None, ...],
    pixels: tuple[int, ...],
    channels: int,
    tmp_path: Path,
) -> None:
    written = examples(4, *pixels)
    write_set(
        tmp_path, "birds", {"image": image(*shape), "label": BIRDS}, {"train": written}
    )
    config = config_of(tmp_path, train_split="train", eval_split="train")
    fixed = None not in shape
    expected_shape = (shape[0] or 0, shape[1] or 0, channels)
    assert describe(config).image_shape == expected_shape
    opaque = np.stack([e["image"] for e in written])
    if pixels[-1] == 4:
        # On black, as Pillow rounds it.
        share = opaque[..., 3:].astype(int)
        product = opaque[..., :3] * share + 128
        opaque = ((product >> 8) + product >> 8).astype(np.uint8)
    if fixed:
        np.testing.assert_array_equal(load_split(config, "train").images, opaque)
    else:
        with pytest.raises(
            ConfigError, match="images of birds have several; set it to"
        ):
            load_split(config, "train")
    for size in (4, 12):
        config.image_size = size
        np.testing.assert_array_equal(
            load_split(config, "train").images,
            [resize_and_crop(pixels, size, size, BILINEAR) for pixels in opaque],
        )


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (["train"], ("train[:90%]", "train[90%:]")),
        (["train", "test"], ("train", "test")),
        (["test", "train", "validation"], ("train", "validation")),
        (["train", "extra"], ("train[:90%]", "train[90%:]")),
        (["test"], ("test[:90%]", "test[90%:]")),
        (["full", "test"], ("full", "test")),
    ],
)
def test_splits(splits: list[str], expected: tuple[str, str], tmp_path: Path) -> None:
    written = {split: examples(10, 4, 4, 3) for split in splits}
    features = {"image": image(4, 4, 3), "label": BIRDS}
    write_set(tmp_path, "birds", features, written, disable_shuffling=False)
    config = config_of(tmp_path)
    spec = describe(config)
    assert (spec.train_split, spec.eval_split) == expected
    train, evaluation = load_split(config, "train"), load_split(config, "eval")
    alone = "[" in expected[0]
    assert (len(train), len(evaluation)) == ((9, 1) if alone else (10, 10))
    assert shared_examples(config, spec) == 0
    config.eval_split = "nowhere"
    with pytest.raises(ConfigError, match="'nowhere' is not a split of birds with"):
        load_split(config, "eval")


LABEL = Features.ClassLabel(num_classes=2)
OF_LABELS = {
    # Features, data.label, and the label that is learned.
    "label": ({"label": BIRDS, "genus": LABEL}, "", "label"),
    "the only one": ({"species": BIRDS}, "", "species"),
    "chosen": ({"label": BIRDS, "genus": LABEL}, "genus", "genus"),
    "with a segmentation": (
        {"label": BIRDS, "mask": Features.Image(shape=(4, 4, 1))},
        "",
        "label",
    ),
}


def example_of(features: dict[str, Any], i: int) -> dict[str, Any]:
    return {
        name: noise(4, 4, kind.shape[-1])
        if isinstance(kind, Features.Image)
        else "x"
        if isinstance(kind, Features.Text)
        else i % 2
        for name, kind in features.items()
    }


def write_features(data_dir: Path, features: dict[str, Any], **info: Any) -> ConfigDict:
    content = [example_of(features, i) for i in range(4)]
    write_set(data_dir, "birds", features, {"train": content, "test": content}, **info)
    return config_of(data_dir)


@pytest.mark.parametrize(
    ("labels", "chosen", "learned"), OF_LABELS.values(), ids=OF_LABELS
)
def test_the_label(
    labels: dict[str, Any], chosen: str, learned: str, tmp_path: Path
) -> None:
    config = write_features(tmp_path, {"image": image(4, 4, 3), **labels})
    config.label = chosen
    assert describe(config).num_classes == labels[learned].num_classes
    assert load_split(config, "train").labels.tolist() == [0, 1, 0, 1]


def test_the_target_that_tfds_names_and_an_image_of_another_name(
    tmp_path: Path,
) -> None:
    features = {"photo": image(4, 4, 3), "genus": LABEL, "species": BIRDS}
    config = write_features(tmp_path, features, supervised_keys=("photo", "species"))
    assert describe(config).num_classes == 3
    assert load_split(config, "train").images.shape == (4, 4, 4, 3)


BOX = {"bbox": Features.BBoxFeature(), "label": LABEL}
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "several labels": (
        {"image": image(4, 4, 3), "genus": LABEL, "species": BIRDS},
        "",
        "birds has several class labels (genus, species): choose one with data.label",
    ),
    "boxes": (
        {"image": image(4, 4, 3), "objects": Features.Sequence(BOX)},
        "",
        "birds has no class label of a whole image, but only objects: use a data set",
    ),
    "labels of several": (
        {"image": image(4, 4, 3), "labels": Features.Sequence(LABEL)},
        "",
        "birds has no class label of a whole image, but only labels: use a data set",
    ),
    "attributes": (
        {"image": image(4, 4, 3), "attributes": {"tail": np.bool_}},
        "",
        "birds has no class label of a whole image, but only attributes",
    ),
    "no label": (
        {"image": image(4, 4, 3)},
        "",
        "birds has no class label of a whole image, but only the image: use a data set",
    ),
    "a number": (
        {"image": image(4, 4, 3), "label": np.int64},
        "",
        "birds has no class label of a whole image, but only label",
    ),
    "no image": (
        {"text": Features.Text(), "label": LABEL},
        "",
        "birds has no feature that is its image, but only label, text; use a data set",
    ),
    "another label": (
        {"image": image(4, 4, 3), "label": LABEL, "genus": BIRDS},
        "family",
        "data.label = 'family' is no class label of birds; it has genus, label",
    ),
    "an image as label": (
        {"image": image(4, 4, 3), "label": LABEL},
        "image",
        "data.label = 'image' is no class label of birds; it has label",
    ),
    "one class": (
        {"image": image(4, 4, 3), "label": Features.ClassLabel(names=["a"])},
        "",
        "birds has one class of 'label' alone, but at least two are told apart; use",
    ),
}


@pytest.mark.parametrize(
    ("features", "label", "expected"), REFUSED.values(), ids=REFUSED
)
def test_what_is_no_classification(
    features: dict[str, Any], label: str, expected: str, tmp_path: Path
) -> None:
    content = {name: example_of(features, 0).get(name) for name in features}
    special = {"objects": [], "labels": [0], "attributes": {"tail": True}, "label": 0}
    content |= {name: special[name] for name in special.keys() & features.keys()}
    write_set(tmp_path, "birds", features, {"train": [content], "test": [content]})
    with pytest.raises((ConfigError, DataError), match=re.escape(expected)) as caught:
        describe(config_of(tmp_path, label=label))
    assert "\n" not in str(caught.value)


def test_variants(tmp_path: Path) -> None:
    features = {"image": image(4, 4, 3), "label": BIRDS}
    write = partial(write_set, tmp_path, features=features, disable_shuffling=False)
    write("birds/small", splits={"train": examples(10, 4, 4, 3)})
    for name in ("birds", "birds/small"):
        spec = describe(config_of(tmp_path, name))
        assert (spec.name, spec.prepared) == (name, "birds/small")
    write("birds/large", splits={"train": examples(20, 4, 4, 3)})
    with pytest.raises(ConfigError, match="use one of birds/large, birds/small"):
        describe(config_of(tmp_path))
    assert len(load_split(config_of(tmp_path, "birds/large"), "train")) == 18
    # What a run recorded stays the one that it was begun with.
    assert len(load_split(config_of(tmp_path), "train", spec)) == 9
    with pytest.raises(
        ConfigError, match="'birds/huge' is unknown to TFDS, and not in"
    ):
        describe(config_of(tmp_path, "birds/huge"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mnistt", "'mnistt' is unknown to TFDS, and not in .*; did you mean 'mnist'"),
        ("food102", "did you mean 'food101'"),
        ("mnist:3.0.1", "did you mean 'mnist'"),
        ("qqqqqqqq", r"such as \['digits', 'cifar10', 'cifar100', 'tiny_imagenet'\]"),
        (
            "mnist",
            "mnist is not prepared in .* run `python -m alite_jax prepare --config=",
        ),
        ("../x", "'../x' is unknown to TFDS"),
        ("", "'' is unknown to TFDS"),
    ],
)
def test_names(name: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=expected) as caught:
        load_split(config_of(tmp_path, name), "train")
    assert "\n" not in str(caught.value)
    if name != "mnist":
        with pytest.raises(ConfigError, match=expected):
            prepare(config_of(tmp_path, name))


def test_the_nearest_of_what_is_prepared_here(tmp_path: Path) -> None:
    features = {"image": image(4, 4, 3), "label": BIRDS}
    write_set(tmp_path, "my_own_birds", features, {"train": examples(3, 4, 4, 3)})
    with pytest.raises(ConfigError, match="did you mean 'my_own_birds'"):
        describe(config_of(tmp_path, "my_own_bird"))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            ImportError(
                'Failed to construct dataset "mnist", builder_kwargs "{}": No module'
                " named 'tensorflow'"
            ),
            "TFDS needs the package tensorflow to prepare mnist; `pip install"
            " tensorflow` for this one step and run `python -m alite_jax prepare",
        ),
        (
            ModuleNotFoundError(
                "Failed to encode example:\n{'image': array([[[0]]])}\nIn <Image> with"
                " name \"image\":\nNo module named 'tensorflow.io'"
            ),
            "TFDS needs the package tensorflow to prepare mnist; `pip install",
        ),
        (ImportError("libx", name="pycocotools.mask"), "needs the package pycocotools"),
        (
            AssertionError("Manual directory x is empty. Create it:\nput a.tar there"),
            "mnist cannot be prepared in {dir}: Manual directory x is empty. Create it:"
            " put a.tar there",
        ),
        (OSError(28, "No space left on device"), "mnist cannot be written to {dir} ("),
    ],
)
def test_a_set_that_tfds_cannot_prepare_here(
    error: Exception,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(DataError) as caught:
        prepare(config_of(tmp_path, "mnist"))
    message = str(caught.value)
    assert message.startswith(expected.format(dir=tmp_path)) or expected in message
    assert "\n" not in message and "array(" not in message


def test_a_label_of_a_known_set(tmp_path: Path) -> None:
    features = {
        "image": image(32, 32, 3),
        "label": Features.ClassLabel(names=[f"fine_{i}" for i in range(100)]),
        "coarse_label": Features.ClassLabel(names=[f"coarse_{i}" for i in range(20)]),
    }
    written = [
        {"image": noise(32, 32, 3), "label": 5 * i, "coarse_label": i}
        for i in range(20)
    ]
    splits = {"train": written, "test": written[:2]}
    write_set(tmp_path, "cifar100", features, splits, "3.0.2")
    fine = config_of(tmp_path, "cifar100")
    coarse = config_of(tmp_path, "cifar100", label="coarse_label")
    assert describe(fine).num_classes == 100
    assert load_split(fine, "train").labels.tolist() == list(range(0, 100, 5))
    spec = describe(coarse)
    assert spec.num_classes == 20 and spec.class_names[3] == "coarse_3"
    assert spec.mean == describe(fine).mean  # The images are the same.
    assert load_split(coarse, "train").labels.tolist() == list(range(20))


def test_labels_of_a_split_that_has_none(tmp_path: Path) -> None:
    features = {"image": image(4, 4, 3), "label": BIRDS}
    train = examples(3, 4, 4, 3)
    test = [example | {"label": -1} for example in train]
    write_set(tmp_path, "birds", features, {"train": train, "test": test})
    with pytest.raises(DataError, match="example 0 of birds split 'test' has no label"):
        load_split(config_of(tmp_path), "eval")


def test_what_a_run_records_comes_back(tmp_path: Path) -> None:
    features = {"image": image(None, None, 1), "label": BIRDS}
    some = examples(10, 5, 6, 1)
    write_set(tmp_path / "data", "birds", features, {"train": some, "test": some})
    config = config_of(tmp_path / "data", image_size=4)
    spec = measured(describe(config), load_split(config, "train"))
    record_spec(tmp_path / "run", spec)
    assert read_spec(tmp_path / "run") == spec and len(spec.mean) == 1
    assert read_spec(tmp_path / "nowhere") is None
    path = tmp_path / "run" / "dataset.json"
    for damage in ("", "{", "[]", '{"name": "birds"}', '{"nme": 1}'):
        path.write_text(damage)
        with pytest.raises(
            CheckpointError, match="dataset.json .*put it back, or start"
        ):
            read_spec(tmp_path / "run")


def test_a_share_of_few_examples(tmp_path: Path) -> None:
    features = {"image": image(4, 4, 3), "label": BIRDS}
    splits = {"train": examples(3, 4, 4, 3)}
    write_set(tmp_path, "birds", features, splits, disable_shuffling=False)
    expected = r"eval_split = 'train\[90%:\]' is not a split of birds with examples in"
    with pytest.raises(ConfigError, match=expected):
        load_split(config_of(tmp_path), "eval")


def test_the_end_of_a_set_in_an_order_of_its_own_is_no_fair_share(
    tmp_path: Path,
) -> None:
    features = {"image": image(4, 4, 3), "label": BIRDS}
    write_set(tmp_path, "birds", features, {"train": examples(8, 4, 4, 3)})
    with pytest.raises(ConfigError, match="one split 'train' in an order of its own"):
        describe(config_of(tmp_path))
    chosen = {"train_split": "train[:50%]", "eval_split": "train[50%:]"}
    assert describe(config_of(tmp_path, **chosen)).num_classes == BIRDS.num_classes


def test_known_sets_are_not_recorded(tmp_path: Path) -> None:
    record_spec(tmp_path, describe(data_config()))
    assert not list(tmp_path.iterdir())
