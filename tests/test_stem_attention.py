"""The attention stem against loops in float64, and what it keeps for its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import network
from references import stem_attention_loops

from alite_jax.errors import ConfigError
from alite_jax.models.layers import heads_for
from alite_jax.models.resnet import create_model
from alite_jax.models.stem import AttentionStem
from alite_jax.ops.stem_attention import mixture_shares, stem_attention
from alite_jax.sparsity.masks import count_parameters, is_prunable
from alite_jax.trees import named_leaves


def inputs(height=5, width=6, channels=3, features=8, size=4, mixtures=4, heads=2):
    """Float64 arguments of `stem_attention`, images of two, by position."""
    random = np.random.default_rng(0)
    shapes = [
        (2, height, width, channels),
        *[(channels, features)] * 2,
        (mixtures, channels, features),
        *[(size, features // heads)] * 2,
        (mixtures, features // heads),
    ]
    return [random.normal(size=shape) for shape in shapes]


@pytest.mark.parametrize("border", ["zero", "mask"])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"height": 2, "width": 3},  # smaller than the window
        {"size": 3, "mixtures": 2, "heads": 4},
        {"channels": 1, "size": 5, "heads": 1, "mixtures": 1},
    ],
    ids=str,
)
def test_values_are_those_of_the_loops(sizes, border):
    arguments = inputs(**sizes)
    options = {"heads": sizes.get("heads", 2), "border": border}
    expected = stem_attention_loops(*arguments, **options)
    single = [np.float32(x) for x in arguments]
    run = jax.jit(functools.partial(stem_attention, **options))
    np.testing.assert_allclose(run(*single), expected, atol=2e-5)


@pytest.mark.parametrize("border", ["zero", "mask"])
def test_gradients_are_those_of_the_loops(border):
    arguments = inputs(height=4, width=3)
    options = {"heads": 2, "border": border}
    random = np.random.default_rng(1)
    cotangent = random.normal(size=(2, 4, 3, 8))

    def loss(*arguments):
        return jnp.sum(stem_attention(*arguments, **options) * cotangent)

    single = [np.float32(x) for x in arguments]
    gradients = jax.jit(jax.grad(loss, argnums=tuple(range(7))))(*single)
    for n, gradient in enumerate(gradients):
        # Central differences of the float64 loops, along one direction per argument.
        direction = random.normal(size=arguments[n].shape)
        ends = []
        for step in (1e-5, -1e-5):
            moved = list(arguments)
            moved[n] = moved[n] + step * direction
            ends.append(np.sum(stem_attention_loops(*moved, **options) * cotangent))
        slope = (ends[0] - ends[1]) / 2e-5
        found = np.sum(np.asarray(gradient) * direction)
        np.testing.assert_allclose(found, slope, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("border", ["zero", "mask"])
@pytest.mark.parametrize("shape", [(0, 5, 6), (2, 0, 6), (2, 5, 0)])
def test_of_no_pixels_comes_nothing_and_no_gradient(shape, border):
    _, *parameters = (np.float32(x) for x in inputs())
    images = np.zeros((*shape, 3), jnp.bfloat16)

    @jax.jit
    def run(*arguments):
        attend = functools.partial(stem_attention, heads=2, border=border)
        output, pullback = jax.vjp(attend, *arguments)
        return output, pullback(output)

    output, (image_gradient, *gradients) = run(images, *parameters)
    assert (output.shape, output.dtype) == ((*shape, 8), jnp.bfloat16)
    assert image_gradient.shape == images.shape
    assert not any(np.any(gradient) for gradient in gradients)


@pytest.mark.parametrize("border", ["zero", "mask"])
def test_networks_take_no_images(border):
    model = create_model(
        "resnet26_attention", num_classes=3, width=8, stem="attention", border=border
    )
    shapes = jax.eval_shape(
        functools.partial(model.init, train=False),
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32),
    )
    run = functools.partial(model.apply, train=False)
    logits = jax.eval_shape(run, shapes, jax.ShapeDtypeStruct((0, 8, 8, 1), "float32"))
    assert logits.shape == (0, 3)


def test_shares_depend_on_the_place_and_sum_to_one():
    *_, row, column, mixture = (np.float32(x) for x in inputs())
    shares = np.asarray(jax.jit(mixture_shares)(row, column, mixture))
    assert shares.shape == (4, 4, 4)
    np.testing.assert_allclose(shares.sum(axis=-1), np.ones((4, 4)), rtol=1e-6)
    assert len(np.unique(shares.round(4).reshape(16, 4), axis=0)) == 16


def test_the_window_reaches_two_pixels_back_and_one_ahead():
    images, *parameters = (np.float32(x) for x in inputs(7, 7))
    run = jax.jit(functools.partial(stem_attention, heads=2))
    changed = images.copy()
    changed[:, 3, 3] += 1
    maps = (np.asarray(run(x, *parameters)) for x in (images, changed))
    seen = np.abs(np.subtract(*maps)).max(axis=(0, 3)) > 1e-6
    expected = np.zeros((7, 7), bool)
    expected[2:6, 2:6] = True
    np.testing.assert_array_equal(seen, expected)


def test_only_the_inputs_are_kept_for_the_gradients():
    shapes = jax.eval_shape(lambda: inputs(32, 32, features=64, heads=4))
    run = functools.partial(stem_attention, heads=4)
    kept = jax.eval_shape(lambda *x: jax.vjp(run, *x)[1], *shapes)
    assert max(leaf.size for leaf in jax.tree.leaves(kept)) == 2 * 32 * 32 * 3


def test_compute_in_bfloat16_with_softmax_in_float32():
    images, *parameters = (np.float32(x) for x in inputs())
    run = jax.jit(functools.partial(stem_attention, heads=2))
    exact = run(images, *parameters)
    found = run(images.astype(jnp.bfloat16), *parameters)
    assert found.dtype == jnp.bfloat16
    scale = np.abs(exact).max()
    np.testing.assert_allclose(np.float32(found), exact, atol=0.03 * scale)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"heads": 3}, "3 heads do not divide 8 features"),
        ({"heads": 2, "border": "zeros"}, "unknown border 'zeros'; did you mean 'zero"),
    ],
)
def test_mistakes_are_one_sentence(options, message):
    with pytest.raises(ConfigError, match=message):
        stem_attention(*map(jnp.asarray, inputs()), **options)


def test_the_module_is_the_function_with_its_parameters():
    images = inputs()[0].astype(np.float32)
    stem = AttentionStem(32, border="mask")
    output, variables = jax.jit(stem.init_with_output)(jax.random.key(0), images)
    params = variables["params"]
    kernels = [params[name]["kernel"] for name in ("query", "key", "value")]
    tables = [params[f"{name}_embeddings"] for name in ("row", "column", "mixture")]
    assert kernels[2].shape == (4, 3, 32) and tables[0].shape == (4, 8)
    # Every value kernel has the variance of one that stands alone, 2 over fan_out.
    wide = jax.jit(AttentionStem(512).init)(jax.random.key(0), images)["params"]
    np.testing.assert_allclose(
        np.std(wide["value"]["kernel"], axis=(1, 2)), (2 / 512) ** 0.5, rtol=0.1
    )
    expected = stem_attention_loops(
        *(np.asarray(x, np.float64) for x in (images, *kernels, *tables)),
        heads=heads_for(32, 4),
        border="mask",
    )
    np.testing.assert_allclose(output, expected, atol=2e-5)


def test_a_network_with_it_differs_in_its_stem_only():
    _, plain = network("resnet26_attention")
    _, params = network("resnet26_attention", stem="attention")
    assert {k: v for k, v in params.items() if k != "stem"} == {
        k: v for k, v in plain.items() if k != "stem"
    }
    prunable = {
        path for path, leaf in named_leaves(params["stem"]) if is_prunable(path, leaf)
    }
    assert prunable == {"query/kernel", "key/kernel", "value/kernel"}
    assert len(named_leaves(params["stem"])) == 6
    # 3x3 kernels of 3 channels, or six kernels of 3 and three tables of 4 x 16.
    assert count_parameters(plain["stem"]) == 9 * 3 * 64
    assert count_parameters(params["stem"]) == 6 * 3 * 64 + 3 * 4 * 16


def test_the_stem_follows_the_border_and_the_dtype():
    model = create_model(
        "resnet26", num_classes=3, stem="attention", border="mask", dtype=jnp.bfloat16
    )
    assert model.stem.keywords == {"border": "mask"}
    images = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    logits, variables = jax.eval_shape(
        functools.partial(model.init_with_output, train=False),
        jax.random.key(0),
        images,
    )
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_an_unknown_stem_is_an_error():
    with pytest.raises(ConfigError, match="unknown stem 'atention'; did you mean"):
        create_model("resnet26", num_classes=10, stem="atention")
