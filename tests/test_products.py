"""Products of any network against MACs worked out by hand."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from networks import network

from alite_jax.counting import cost
from alite_jax.counting.comparison import NetworkCosts
from alite_jax.counting.layer import Layer
from alite_jax.counting.layers import parameter_shapes, trace_layers, trace_modules
from alite_jax.counting.products import CORE, trace_products

IMAGE = (4, 6, 3)  # 24 pixels
PIXELS = 24


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def macs_of(forward, params, image_shape=IMAGE):
    """MACs by whole path; those of cores under `CORE`."""
    found = {}
    for layer in trace_products(forward, params, image_shape):
        found |= {layer.parameter(name): n for name, n in layer.products.items()}
        if layer.core:
            found[layer.path] = layer.core
    return found


def macs_of_module(module, image_shape=IMAGE):
    params = jax.eval_shape(module.init, jax.random.key(0), shape(1, *image_shape))
    return macs_of(module.apply, params, image_shape)


def pixels_of(images):
    """`[pixels, channels]` of the one image."""
    return images.reshape(-1, images.shape[-1])


SAME, VALID = "SAME", "VALID"
MODULES = {
    "dense": (nn.Dense(5), PIXELS * 3 * 5),
    "conv": (nn.Conv(5, (3, 3)), PIXELS * 9 * 3 * 5),
    "stride": (nn.Conv(5, (3, 3), strides=2), 2 * 3 * 9 * 3 * 5),
    "valid": (nn.Conv(5, (3, 3), padding=VALID), 2 * 4 * 9 * 3 * 5),
    # Each of 6 outputs sees one of 3 channels.
    "groups": (nn.Conv(6, (3, 3), feature_group_count=3), PIXELS * 9 * 6),
    "dilation": (nn.Conv(5, (3, 3), kernel_dilation=2), PIXELS * 9 * 3 * 5),
    # Each weight once for each pixel of the input, of 8x12 and of 9x13 outputs.
    "transposed": (nn.ConvTranspose(5, (3, 3), strides=(2, 2)), PIXELS * 9 * 3 * 5),
    "transposed valid": (
        nn.ConvTranspose(5, (3, 3), strides=(2, 2), padding=VALID),
        PIXELS * 9 * 3 * 5,
    ),
    "transposed in rows": (
        nn.ConvTranspose(5, (2, 3), strides=(2, 1), padding=SAME),
        PIXELS * 6 * 3 * 5,
    ),
    "general": (nn.DenseGeneral((2, 5), axis=(-2, -1)), 4 * 18 * 10),
}


@pytest.mark.parametrize("module, macs", MODULES.values(), ids=MODULES)
def test_modules_of_one_kernel(module, macs):
    assert macs_of_module(module) == {"params/kernel": macs}


def test_a_normalisation_has_no_macs():
    assert macs_of_module(nn.LayerNorm()) == {}


def test_multi_head_attention():
    class Attention(nn.Module):
        @nn.compact
        def __call__(self, images):
            tokens = images.reshape(1, PIXELS, 3)
            return nn.MultiHeadDotProductAttention(2, qkv_features=8, name="heads")(
                tokens
            )

    projection = PIXELS * 3 * 8
    assert macs_of_module(Attention()) == {
        **{f"params/heads/{x}/kernel": projection for x in ("query", "key", "value")},
        "params/heads/out/kernel": projection,
        CORE: 2 * PIXELS * PIXELS * 8,
    }


def test_what_is_one_parameter_and_what_is_a_core():
    def forward(params, images):
        x = pixels_of(images)
        qkv = x @ jnp.concatenate([params["wq"], params["wk"], params["wv"]], axis=1)
        q, k, v = jnp.split(qkv, (4, 8), axis=1)
        weights = jax.nn.softmax(jnp.einsum("qc,kc->qk", q, k))
        return jnp.einsum("qk,kc->qc", weights, v) * params["scale"]

    params = {"wq": shape(3, 4), "wk": shape(3, 4), "wv": shape(3, 7)}
    found = macs_of(forward, params | {"scale": shape(1, 7)})
    core = PIXELS * PIXELS * (4 + 7)
    each = {name: PIXELS * x.size for name, x in params.items()}
    assert found == each | {CORE: core}


def test_shares_that_do_not_divide_add_up():
    def forward(params, images):
        w = jnp.concatenate([params["a"], params["b"]])  # 2 and 5 of 7 rows, one left
        return pixels_of(images) @ w[2:5]

    found = macs_of(forward, {"a": shape(2, 1), "b": shape(5, 1)})
    assert found == {"a": PIXELS * 3 * 2 // 7, "b": PIXELS * 3 - PIXELS * 3 * 2 // 7}


def views(kernel):
    """A kernel `[5, 3]` of the rest of the tests, seen in many ways."""
    kernel = jnp.flip(kernel.astype(jnp.bfloat16), 0).T.reshape(1, 3, 5)[0]
    return jnp.pad(kernel[:, :4].astype(jnp.float32), ((0, 0), (0, 1)))


def standardised(kernel):
    mean = kernel.mean(0, keepdims=True)
    return ((kernel - mean) / jnp.sqrt(kernel.var(0, keepdims=True) + 1e-5)).T


@pytest.mark.parametrize(
    "change", [views, standardised, lambda w: jax.jit(views)(w), lambda w: 2 * w.T]
)
def test_what_follows_from_a_kernel_still_is_that_kernel(change):
    def forward(params, images):
        return pixels_of(images) @ (change(params["kernel"]) * params["gain"])

    params = {"gain": shape(1, 5), "kernel": shape(5, 3)}
    assert macs_of(forward, params) == {"kernel": PIXELS * 15}


def test_what_no_image_takes_part_in_has_no_macs():
    def forward(params, images):
        kernel = params["left"] @ params["right"]
        filtered = jnp.ones((2, PIXELS)) @ pixels_of(images)
        return filtered @ kernel

    found = macs_of(forward, {"left": shape(3, 2), "right": shape(2, 5)})
    # Neither a fixed filter nor a product of two parameters has absent weights.
    assert found == {CORE: 2 * PIXELS * 3 + 2 * 3 * 5}


def test_what_the_logits_do_not_need_is_not_counted():
    def forward(params, images):
        x = pixels_of(images)
        _ = jax.nn.relu(x @ params["auxiliary"])
        return x @ params["kernel"]

    found = macs_of(forward, {"auxiliary": shape(3, 9), "kernel": shape(3, 5)})
    assert found == {"kernel": PIXELS * 15}


def test_a_tied_parameter_counts_each_time():
    def forward(params, images):
        return (pixels_of(images) @ params["w"]) @ params["w"].T

    assert macs_of(forward, {"w": shape(3, 5)}) == {"w": 2 * PIXELS * 15}


def test_a_scan_over_stacked_layers_and_a_carry():
    def forward(params, images):
        def block(carry, w):
            x, total = carry
            x = x @ w
            # What is carried is an activation only after the first round.
            return (x, total + x), total.T @ x

        x = pixels_of(images)
        (x, _), gram = jax.lax.scan(block, (x, jnp.zeros_like(x)), params["stack"])
        return x @ params["last"], gram

    found = macs_of(forward, {"stack": shape(7, 3, 3), "last": shape(3, 5)})
    assert found == {
        "stack": 7 * PIXELS * 9,
        "last": PIXELS * 15,
        CORE: 7 * PIXELS * 9,
    }


def test_kernels_among_the_constants_and_the_carry_of_loops():
    def forward(params, images):
        def body(state):
            x, w = state
            return x @ w @ params["constant"], w

        state = pixels_of(images), params["carried"]
        state = jax.lax.fori_loop(0, 4, lambda i, state: body(state), state)
        x, w = jax.lax.while_loop(lambda state: state[0].sum() < 0, body, state)
        return x @ w

    found = macs_of(forward, {"carried": shape(3, 3), "constant": shape(3, 3)})
    once = PIXELS * 9
    assert found == {"carried": (4 + 1 + 1) * once, "constant": (4 + 1) * once}


def double(x, w):
    return x @ w @ w


@jax.custom_vjp
def with_own_gradient(x, w):
    return double(x, w)


with_own_gradient.defvjp(lambda x, w: (double(x, w), (x, w)), lambda r, g: r)


@jax.custom_jvp
def with_own_tangent(x, w):
    return double(x, w)


with_own_tangent.defjvp(lambda primals, tangents: (double(*primals), tangents[0]))


@pytest.mark.parametrize(
    "call",
    [
        jax.jit(double),
        jax.checkpoint(double),
        with_own_gradient,
        with_own_tangent,
        jax.checkpoint(jax.jit(with_own_gradient)),
        # The largest of the branches, and the map of a batch of one.
        lambda x, w: jax.lax.cond(x.sum() > 0, double, lambda x, w: x @ w, x, w),
        lambda x, w: jax.vmap(double, (0, None))(x[None], w)[0],
    ],
)
def test_calls_are_looked_into(call):
    def forward(params, images):
        return call(pixels_of(images), params["w"])

    assert macs_of(forward, {"w": shape(3, 3)}) == {"w": 2 * PIXELS * 9}


def test_a_kernel_that_the_image_chooses_is_an_activation():
    def forward(params, images):
        a, b = params
        x = pixels_of(images)
        kernel = jax.lax.cond(x.sum() > 0, lambda: a, lambda: b)
        return x @ kernel + x @ jax.lax.cond(True, lambda: a, lambda: b)

    half = PIXELS * 9 // 2
    assert macs_of(forward, [shape(3, 3), shape(3, 3)]) == {
        **{"0": half, "1": half},
        CORE: PIXELS * 9,
    }


def test_layers_are_modules_in_the_order_in_which_they_meet_the_image():
    def forward(params, images):
        x = pixels_of(images) @ params["z"]["kernel"] + params["z"]["bias"]
        x = (x - x.mean()) * params["norm"]["scale"]
        return x @ params["a"]["one"] @ params["a"]["two"] + params["shift"]

    params = {
        "a": {"one": shape(5, 2), "two": shape(2, 7)},
        "norm": {"scale": shape(1, 5)},
        "shift": shape(1, 7),
        "unused": {"kernel": shape(3, 3)},
        "z": {"bias": shape(1, 5), "kernel": shape(3, 5)},
    }
    assert trace_products(forward, params, IMAGE) == [
        Layer(
            "z",
            {"bias": (1, 5), "kernel": (3, 5)},
            {"kernel": PIXELS * 15},
            outputs=PIXELS * 5,
        ),
        Layer("norm", {"scale": (1, 5)}),
        Layer(
            "a",
            {"one": (5, 2), "two": (2, 7)},
            {"one": PIXELS * 10, "two": PIXELS * 14},
            outputs=PIXELS * (2 + 7),
        ),
        Layer("", {"shift": (1, 7)}),
        Layer("unused", {"kernel": (3, 3)}),
    ]


def test_each_kernel_of_a_module_saves_its_own_macs(monkeypatch):
    def prunable(path, leaf, rules):
        return not path.endswith("shift")

    monkeypatch.setattr(cost, "is_prunable", prunable)
    layers = [
        Layer("attention", {"wq": (4, 5), "wk": (2, 5)}, {"wq": 2000, "wk": 100}),
        Layer("", {"shift": (1, 5)}, {"shift": 50}),
        Layer(CORE, {}, core=7),
    ]
    kept = {"attention/wq": 2, "attention/wk": 10, "shift": 5}
    found = cost.layer_costs(layers, kept)
    assert found["attention"].nonzero_macs == 2000 // 10 + 100
    assert found[""].nonzero_macs == found[""].macs == 50
    counted = NetworkCosts("any", 0.5, found)
    assert counted.total.nonzero_macs == 300 + 50 + 7
    # The last layer with weights stands for the classifier.
    assert counted.absent_from_classifier == 18


class Foreign(nn.Module):
    """With statistics, and without a name that this project would give."""

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(8, (3, 3), name="first")(images)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(10, name="head")(x.mean(axis=(1, 2)))


def test_a_foreign_module_is_counted_by_its_products():
    layers = trace_layers(Foreign(), IMAGE)
    assert [(x.path, x.weight, x.outputs) for x in layers] == [
        ("first", PIXELS * 9 * 3 * 8, PIXELS * 8),
        ("BatchNorm_0", 0, 0),
        ("head", 80, 10),
    ]
    params = parameter_shapes(Foreign(), IMAGE)
    init = partial(Foreign().init, train=False)
    expected = jax.eval_shape(init, jax.random.key(0), shape(1, *IMAGE))["params"]
    assert params == expected
    counts = cost.nominal_counts(layers, 0.5)
    total = cost.total(cost.layer_costs(layers, counts).values())
    assert total.nonzero_macs * 2 == total.macs
    assert total.parameters == 9 * 3 * 8 + 8 + 2 * 8 + 80 + 10


@pytest.mark.parametrize("name", ["resnet26", "resnet26_attention"])
@pytest.mark.parametrize("stem", ["conv", "imagenet"])
def test_kernels_of_our_networks_are_counted_as_by_their_modules(name, stem):
    model, params = network(name, kernel_size=3, width=16, stem=stem)
    by_modules = {
        x.path: x.weight for x in trace_modules(model, (32, 32, 3)) if x.weight
    }
    statistics = jax.eval_shape(
        partial(model.init, train=False), jax.random.key(0), shape(1, 32, 32, 3)
    )["batch_stats"]

    def forward(params, images):
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), statistics)
        variables = {"params": params, "batch_stats": zeros}
        return model.apply(variables, images, train=False)

    found = trace_products(forward, params, (32, 32, 3))
    kernels = {x.path: x.products["kernel"] for x in found if "kernel" in x.products}
    assert kernels == by_modules
    assert sum(len(x.shapes) for x in found) == len(jax.tree.leaves(params))
