"""Foreign modules as models: what they are given, what comes back, what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from foreign import Counting, Mixer, Pair, Plain, ViT

from alite_jax.errors import ConfigError
from alite_jax.models.foreign import check_logits, foreign_model
from alite_jax.trees import named_leaves

SHAPE = (8, 8, 1)
IMAGES = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)
SETTINGS = {"num_classes": 10, "image_shape": SHAPE}
SOURCES: dict[str, Any] = {
    "vit": ViT(10),
    "class": ViT,
    "function": lambda num_classes: ViT(num_classes),
    "plain": Plain(),
    "counting": Counting(),
    "mixer": Mixer,
    "made mixer": Mixer(10, nnx.Rngs(3)),
}


@pytest.mark.parametrize("name", SOURCES)
def test_any_module_has_logits_and_the_same_ones_in_evaluation(name: str) -> None:
    model = foreign_model(SOURCES[name], name, **SETTINGS)
    check_logits(model, name, SHAPE, 10)
    variables = jax.jit(lambda key: model.init(key, IMAGES, train=False))(
        jax.random.key(0)
    )
    assert all(isinstance(path, str) for path, _ in named_leaves(variables))
    evaluate = jax.jit(lambda v: model.apply(v, IMAGES, train=False))
    logits = evaluate(variables)
    assert logits.shape == (4, 10) and logits.dtype == jnp.float32
    np.testing.assert_array_equal(logits, evaluate(variables))

    @jax.jit
    def train(key: jax.Array) -> Any:
        return model.apply(
            variables, IMAGES, train=True, mutable=["batch_stats"], rngs={"params": key}
        )

    trained, updates = train(jax.random.key(1))
    again, _ = train(jax.random.key(1))
    np.testing.assert_array_equal(trained, again)
    assert jax.tree.structure(updates["batch_stats"]) == jax.tree.structure(
        variables["batch_stats"]
    )
    # Where there is dropout another key makes a difference, elsewhere none.
    other, _ = train(jax.random.key(2))
    assert (trained != other).any() == (name not in ("plain", "counting"))


def test_statistics_of_every_kind_are_recorded_in_training_only() -> None:
    for source, path in (
        (Counting(), "collection.calls/count"),
        (Counting(), "collection.batch_stats/BatchNorm_0/mean"),
        (Mixer, "norm/mean"),
    ):
        model = foreign_model(source, "it", **SETTINGS)
        before = model.init(jax.random.key(0), IMAGES, train=False)
        rngs = {"params": jax.random.key(1)}
        found = {}
        for train in (False, True):
            _, updates = model.apply(
                before, IMAGES, train=train, mutable=["batch_stats"], rngs=rngs
            )
            found[train] = dict(named_leaves(updates["batch_stats"]))[path]
        old = dict(named_leaves(before["batch_stats"]))[path]
        np.testing.assert_array_equal(found[False], old)
        assert (found[True] != old).any()


def test_a_made_nnx_module_starts_with_its_weights_others_with_the_seed() -> None:
    made = Mixer(10, nnx.Rngs(3))
    one = foreign_model(made, "made").init(jax.random.key(0), IMAGES, train=False)
    np.testing.assert_array_equal(
        one["params"]["tokens"]["1"]["kernel"], made.tokens[1].kernel[...]
    )
    model = foreign_model(Mixer, "mixer", **SETTINGS)
    kernels = [
        model.init(jax.random.key(seed), IMAGES, train=False)["params"]["classifier"]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(kernels[0]["kernel"], kernels[1]["kernel"])
    assert (kernels[0]["kernel"] != kernels[2]["kernel"]).any()


def test_nnx_computes_what_it_computes_by_itself() -> None:
    made = Mixer(10, nnx.Rngs(3))
    model = foreign_model(made, "made")
    variables = model.init(jax.random.key(0), IMAGES, train=False)
    made.eval()
    np.testing.assert_allclose(
        model.apply(variables, IMAGES, train=False), made(jnp.asarray(IMAGES)), 1e-6
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Pair(), "it returns a tuple of 2, but must return one array, the logits"),
        (ViT(7), r"logits \[2, 7\] for 2 images, but the data set has 10 classes"),
        (lambda wide: None, "it cannot be made: .*'wide'; it is called with"),
        (lambda rngs: jnp.zeros(3), "it takes rngs, but makes a ShapeDtypeStruct"),
        (3, "it is a int, but must be a linen or nnx module"),
        (lambda num_classes: num_classes, "it is a int, but must be"),
    ],
)
def test_what_is_no_network_is_refused(source: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_logits(foreign_model(source, "it", **SETTINGS), "it", SHAPE, 10)


def test_a_module_that_needs_more_than_images_is_refused() -> None:
    class Two(Plain):
        def __call__(self, images: jax.Array, texts: jax.Array) -> jax.Array:
            return images

    message = "it is called with images, texts, but a network gets images, and at most"
    with pytest.raises(ConfigError, match=message):
        foreign_model(Two(), "it")
