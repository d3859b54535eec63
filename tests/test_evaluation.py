"""Evaluation: every example once, whatever the size of a batch."""

from typing import Any

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
