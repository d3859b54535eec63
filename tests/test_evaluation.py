"""Evaluation: every example once, whatever the size of a batch."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from tiny import TwoLayers, random_split

from alite_jax.data.sources import Data, Split
from alite_jax.data.specs import DATASETS
from alite_jax.runs import parallel
from alite_jax.runs.evaluation import Evaluator

SPEC = DATASETS["digits"]
COUNT = 37


@pytest.fixture(scope="module")
def variables() -> Any:
    """A network with running statistics that differ from a batch's own."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(
        lambda key: TwoLayers().init(key, np.zeros((1, 8, 8, 1)), train=False),
        jax.random.key(0),
    )
    return jax.tree.map(
        lambda leaf: (
            random.uniform(0.1, 1, leaf.shape).astype(np.float32)
            - np.float32(0.5 * (leaf.ndim > 1))
        ),
        shapes,
    )


def evaluate_plainly(variables: Any, split: Split) -> dict[str, float]:
    """One example at a time, in double precision."""
    params, stats = variables["params"], variables["batch_stats"]["norm"]
    correct, losses = [], []
    for image, label in zip(split.images, split.labels, strict=True):
        x = (np.float64(image.reshape(-1)) / 255 - SPEC.mean[0]) / SPEC.std[0]
        x = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
        x = x * params["norm"]["scale"] + params["norm"]["bias"]
        x = np.maximum(0, x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        logits = x @ params["classifier"]["kernel"] + params["classifier"]["bias"]
        losses.append(np.log(np.sum(np.exp(logits - logits[label]))))
        correct.append(np.argmax(logits) == label)
    return {"eval_accuracy": np.mean(correct), "eval_loss": np.mean(losses)}


@pytest.mark.parametrize("batch_size", [16, 64, 74])
def test_each_example_counts_once(variables: Any, batch_size: int) -> None:
    split = random_split(COUNT)
    labels = split.labels.copy()
    labels[-3:] = 0  # as the padding is labelled
    split = Split(split.images, labels)
    wanted = evaluate_plainly(variables, split)
    assert 0 < wanted["eval_accuracy"] < 1
    evaluator = Evaluator(TwoLayers(), Data(SPEC, split, split), batch_size)
    found = evaluator(parallel.replicate(variables))
    assert found["eval_accuracy"] == pytest.approx(wanted["eval_accuracy"], abs=1e-12)
    assert found["eval_loss"] == pytest.approx(wanted["eval_loss"], rel=1e-5)


def test_it_is_the_evaluation_split_that_counts(variables: Any) -> None:
    data = Data(SPEC, random_split(20, seed=1), random_split(COUNT))
    found = Evaluator(TwoLayers(), data, 16)(parallel.replicate(variables))
    wanted = evaluate_plainly(variables, data.evaluation)
    assert found["eval_accuracy"] == pytest.approx(wanted["eval_accuracy"])
    assert data.image_shape == (8, 8, 1)


class Pixels(nn.Module):
    """A network whose logits are the first pixels of an image."""

    classes: int

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        return images.reshape(len(images), -1)[:, : self.classes]


def measure(classes: int, examples: list[tuple[int, dict[int, int]]]) -> Any:
    """Evaluates labels and pixels, 4 at a time; the other pixels are 0."""
    images = np.zeros((len(examples), 8, 8, 1), np.uint8)
    for image, (_, pixels) in zip(images, examples, strict=True):
        for place, value in pixels.items():
            image.reshape(-1)[place] = value
    split = Split(images, np.array([label for label, _ in examples], np.int32))
    return Evaluator(Pixels(classes), Data(SPEC, split, split), 4).measure({})


def test_each_class_has_an_accuracy_of_its_own() -> None:
    """Five examples on two devices; the padding is of class 0 and taken for it."""
    sure, doubtful = {0: 9}, {1: 9, 0: 8}
    examples = [(0, sure), (0, doubtful), (1, doubtful), (2, sure), (0, sure)]
    found = measure(4, examples)
    assert found.class_accuracy == [2 / 3, 1.0, 0.0, None]
    assert found.accuracy == 3 / 5
    assert found.mean_class_accuracy == pytest.approx(5 / 9, abs=1e-12)


def test_the_five_likeliest_classes() -> None:
    """Of equal logits that of the lower label is the larger."""
    five, six = dict.fromkeys(range(5), 9), dict.fromkeys(range(6), 9)
    examples = [(4, five), (5, six), (5, six | {5: 10}), (7, five | {7: 8}), (49, {})]
    assert measure(50, examples).top5_accuracy == 2 / 5
    assert measure(50, [(4, {}), (49, {49: 1})]).top5_accuracy == 1
    assert measure(49, examples[:4]).top5_accuracy is None
