"""A network in evaluation form is the network."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from alite_jax.data.augment import normalize
from alite_jax.data.specs import DATASETS
from alite_jax.deploy.folded import POINTWISE, folded
from alite_jax.models.blocks import BasicBlock
from alite_jax.models.layers import Conv3x3, LocalSelfAttention
from alite_jax.models.resnet import ResNet
from alite_jax.models.stem import AttentionStem, ImageNetStem

SPEC = DATASETS["cifar10"]
attention = partial(LocalSelfAttention, kernel_size=3, heads=2)
NETWORKS = {
    "both operators, an odd side": (
        ResNet((1, 2), (Conv3x3, attention), num_classes=3, width=16),
        6,
    ),
    "basic blocks": (
        ResNet((1, 1), (Conv3x3, Conv3x3), num_classes=3, width=8, block=BasicBlock),
        4,
    ),
    "attention as stem": (
        ResNet((1,), (attention,), num_classes=3, width=16, stem=AttentionStem),
        5,
    ),
    "a stem for large images": (
        ResNet((1, 1), (attention, partial(attention, border="mask")), num_classes=3,
               width=16, stem=ImageNetStem, pool_stem=True),
        20,
    ),
}  # fmt: skip


def drawn(model: ResNet, side: int) -> Mapping[str, Any]:
    """Variables whose statistics, scales and biases are what training might leave."""
    shape = (1, side, side, 3)
    init = partial(model.init, train=False)
    zeros = np.zeros(shape, np.float32)
    shapes = jax.eval_shape(init, jax.random.key(0), zeros)
    draw = np.random.default_rng(0)

    def fill(path: Any, leaf: Any) -> np.ndarray:
        values = draw.normal(size=leaf.shape).astype(np.float32) * 0.3
        positive = path[-1].key in ("var", "scale")
        return np.exp(values) if positive else values

    variables: Mapping[str, Any] = jax.tree_util.tree_map_with_path(fill, shapes)
    return variables


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_the_network(name: str) -> None:
    model, side = NETWORKS[name]
    variables = drawn(model, side)
    images = np.random.default_rng(1).integers(0, 256, (2, side, side, 3), np.uint8)
    plain = partial(model.apply, train=False)
    normalized = normalize(images, SPEC.mean, SPEC.std)
    wanted = jax.jit(plain)(variables, normalized)
    for pointwise in POINTWISE:
        found = jax.jit(folded(model, variables, SPEC, pointwise))(images)
        largest = np.abs(wanted).max()
        np.testing.assert_allclose(found, wanted, atol=3e-5 * largest)


def test_no_batch_norm_is_left() -> None:
    """Nothing divides by a deviation, and no statistics are constants."""
    model, side = NETWORKS["both operators, an odd side"]
    forward = folded(model, drawn(model, side), SPEC, "product")
    images = jax.ShapeDtypeStruct((2, side, side, 3), np.uint8)
    primitives = {str(e.primitive) for e in jax.make_jaxpr(forward)(images).jaxpr.eqns}
    assert not {"rsqrt", "sqrt"} & primitives
