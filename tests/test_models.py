"""The networks: sizes, shapes and how their parts fit together."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from chex import assert_trees_all_equal
from jaxprs import equations, primitives
from networks import network

import alite_jax
from alite_jax.data.specs import DATASETS
from alite_jax.errors import ConfigError
from alite_jax.models.blocks import BRANCH_SCALE, BasicBlock, Bottleneck
from alite_jax.models.configured import configured_model
from alite_jax.models.layers import (
    Conv3x3,
    LocalSelfAttention,
    Pointwise,
    heads_for,
    max_pool,
    pointwise,
)
from alite_jax.models.resnet import (
    BLOCKS,
    MODELS,
    NORM_EPSILON,
    ResNet,
    create_model,
)
from alite_jax.models.stem import AttentionStem, ImageNetStem
from alite_jax.ops.local_attention import local_attention
from alite_jax.sparsity.masks import count_parameters
from alite_jax.trees import named_leaves

TINY = {"num_classes": 5, "width": 4, "kernel_size": 3}


def small(blocks):
    """A student of convolution, then attention."""
    spatial = Conv3x3, functools.partial(LocalSelfAttention, kernel_size=3)
    return ResNet(blocks, spatial, num_classes=5, width=4)


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    "name, classes, expected",
    [
        ("resnet50", 10, 23_520_842),
        ("resnet50", 100, 23_705_252),
        ("resnet50", 200, 23_910_152),
        ("resnet26_attention", 10, 8_295_074),
    ],
)
def test_exact_parameters(name, classes, expected):
    """`test_cost` has those of all networks, to the digits that are printed."""
    assert count_parameters(network(name, classes)[1]) == expected


def test_normalisation_and_embeddings_hold_the_counts_of_the_paper():
    def total(name, kernel_size, *parts):
        _, params = network(name, kernel_size=kernel_size)
        return sum(
            leaf.size
            for path, leaf in named_leaves(params)
            if any(part in path for part in parts)
        )

    assert total("resnet50", 7, "norm/") == 53_120
    assert total("resnet26_attention", 7, "norm/") == 30_080
    tables = [total("resnet26_attention", k, "embeddings") for k in (7, 3)]
    assert tables[0] - tables[1] == 928


@pytest.mark.parametrize("name", MODELS)
def test_every_model_maps_images_to_float32_logits(name):
    model = create_model(name, **TINY, dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.float32)
    run = functools.partial(model.init_with_output, train=False)
    logits, variables = jax.eval_shape(run, jax.random.key(0), images)
    assert logits.shape == (2, 5) and logits.dtype == jnp.float32
    for path, leaf in named_leaves(variables):
        assert leaf.dtype == jnp.float32, path


@pytest.mark.parametrize("name", MODELS)
def test_stages_hold_the_operators_and_blocks_of_the_name(name):
    depth, _, suffix = name.removeprefix("resnet").partition("_")
    convolutions = {"": 4, "attention": 0, "attention_conv1": 1, "attention_conv12": 2}
    params = network(name)[1]
    found = [key for key in params if key.startswith("stage")]
    expected = [
        f"stage{stage + 1}_block{block + 1}"
        for stage, blocks in enumerate(BLOCKS[int(depth)])
        for block in range(blocks)
    ]
    assert sorted(found) == sorted(expected)
    attention = {"query", "key", "value", "row_embeddings", "column_embeddings"}
    basic = depth in ("18", "34")
    for key in found:
        is_convolution = int(key[len("stage")]) <= convolutions[suffix]
        wanted = {"kernel"} if is_convolution else attention
        for operator in ("spatial1", "spatial2") if basic else ("spatial",):
            assert set(params[key][operator]) == wanted, key
        # A shortcut has weights only where the shape changes: first in each stage, but
        # for stages of basic blocks as wide as the stem.
        changes = key.endswith("block1") and not (basic and key == "stage1_block1")
        assert ("shortcut" in params[key]) == changes, key


@pytest.mark.parametrize("name", MODELS)
def test_only_normalisation_and_the_classifier_have_biases(name):
    for path, _ in named_leaves(network(name)[1]):
        if path.endswith("bias"):
            assert "norm/" in path or path == "classifier/bias", path


def inputs_of_calls(model, images):
    """The shape that reaches each module, by its path."""
    found = {}

    def record(call, args, kwargs, context):
        if context.method_name == "__call__" and args:
            found["/".join(context.module.path)] = args[0].shape
        return call(*args, **kwargs)

    def run(key):
        with nn.intercept_methods(record):
            return model.init(key, images, train=False)

    jax.eval_shape(run, jax.random.key(0))
    return found


@pytest.mark.parametrize("name", ["resnet26", "resnet26_attention"])
def test_attention_runs_before_and_normalisation_after_the_downsampling(name):
    model = create_model(name, **TINY)
    images = jnp.zeros((1, 32, 32, 3))
    found = inputs_of_calls(model, images)
    for stage, (before, after) in enumerate([(32, 32), (32, 16), (16, 8), (8, 4)]):
        block, width = f"stage{stage + 1}_block1", 4 * 2**stage
        assert found[f"{block}/spatial"] == (1, before, before, width)
        assert found[f"{block}/spatial_norm"] == (1, after, after, width)
        assert found[f"{block}/expand"] == (1, after, after, width)
    assert found["stage3_block2/spatial"] == (1, 8, 8, 16)


@pytest.mark.parametrize("operator", [Conv3x3, LocalSelfAttention])
@pytest.mark.parametrize("height, width", [(7, 7), (5, 8), (1, 1)])
def test_odd_maps_shrink_alike_for_operator_and_shortcut(operator, height, width):
    block = Bottleneck(
        features=4,
        stride=2,
        spatial=operator,
        norm=functools.partial(nn.BatchNorm, use_running_average=True),
    )
    inputs = jax.ShapeDtypeStruct((1, height, width, 8), jnp.float32)
    output, _ = jax.eval_shape(block.init_with_output, jax.random.key(0), inputs)
    assert output.shape == (1, -(-height // 2), -(-width // 2), 16)


def test_a_student_runs_on_odd_images():
    model = small(blocks=(1, 1))
    images = jax.ShapeDtypeStruct((1, 7, 7, 3), jnp.float32)
    run = functools.partial(model.init_with_output, train=True)
    logits, _ = jax.eval_shape(run, jax.random.key(0), images)
    assert logits.shape == (1, 5)


@pytest.mark.parametrize(
    "channels, heads, expected",
    [
        (64, 8, 8),
        (128, 8, 8),
        (512, 8, 8),
        (32, 8, 4),
        (16, 8, 2),
        (8, 8, 1),
        (4, 8, 1),
        (2, 8, 1),
        (64, 1, 1),
        (64, 4, 4),
        (16, 3, 2),  # three would be too narrow
        (48, 3, 3),
        (24, 8, 3),
    ],
)
def test_heads_are_reduced_to_keep_eight_channels_each(channels, heads, expected):
    assert heads_for(channels, heads) == expected


@pytest.mark.parametrize("channels, heads", [(64, 3), (36, 8), (3, 8), (18, 2)])
def test_heads_that_do_not_divide_the_channels_are_an_error(channels, heads):
    with pytest.raises(
        ConfigError, match=f"do not divide {channels} channels.*student"
    ):
        heads_for(channels, heads)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("border", ["zero", "mask"])
def test_attention_layer_is_projections_attention_and_pooling(stride, border):
    layer = LocalSelfAttention(16, stride=stride, kernel_size=3, border=border)
    inputs = normal(2, 5, 4, 6)
    output, variables = jax.jit(layer.init_with_output)(jax.random.key(1), inputs)
    params = variables["params"]
    x = np.asarray(inputs)
    queries, keys, values = (
        (x @ np.asarray(params[name]["kernel"])).reshape(2, 5, 4, 2, 8)
        for name in ("query", "key", "value")
    )
    attend = functools.partial(
        local_attention, kernel_size=3, border=border, method="all_pairs"
    )
    tables = params["row_embeddings"], params["column_embeddings"]
    expected = jax.jit(attend)(queries, keys, values, *tables)
    expected = np.asarray(expected).reshape(2, 5, 4, 16)
    if stride == 2:
        # 2x2 means; the fifth row has no partner.
        rows = [expected[:, [0, 1]], expected[:, [2, 3]], expected[:, [4]]]
        pooled = [row.mean(axis=1) for row in rows]
        expected = np.stack(pooled, axis=1).reshape(2, 3, 2, 2, 16).mean(axis=3)
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_heads_share_the_embeddings_and_projections_have_no_bias():
    layer = LocalSelfAttention(64, kernel_size=7)
    inputs = jnp.zeros((1, 4, 4, 32))
    params = jax.eval_shape(layer.init, jax.random.key(0), inputs)["params"]
    assert {path: leaf.shape for path, leaf in named_leaves(params)} == {
        "query/kernel": (32, 64),
        "key/kernel": (32, 64),
        "value/kernel": (32, 64),
        "row_embeddings": (7, 4),  # 8 heads of 8 channels, half of them for rows
        "column_embeddings": (7, 4),
    }


@pytest.mark.parametrize("operator", [LocalSelfAttention, AttentionStem])
def test_embeddings_start_with_the_variance_of_one_head(operator):
    layer = operator(512, kernel_size=31, heads=4)
    variables = jax.jit(layer.init)(jax.random.key(0), jnp.zeros((1, 1, 1, 8)))
    params = variables["params"]
    for name in ("row_embeddings", "column_embeddings"):
        np.testing.assert_allclose(np.std(params[name]), 128**-0.5, rtol=0.05, atol=0)


def as_if_on(backend, monkeypatch):
    """Lets operators choose their form for a backend, though the CPU runs it."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize(
    ("stride", "shape"), [(1, (2, 5, 4, 3)), (2, (2, 5, 4, 3)), (1, (1, 1, 1, 3))]
)
def test_pointwise_is_a_product_with_each_pixel(stride, shape, backend, monkeypatch):
    as_if_on(backend, monkeypatch)
    inputs = normal(*shape)
    output, variables = jax.jit(Pointwise(6, stride).init_with_output)(
        jax.random.key(1), inputs
    )
    kernel = np.asarray(variables["params"]["kernel"])
    expected = np.asarray(inputs)[:, ::stride, ::stride] @ kernel
    np.testing.assert_allclose(output, expected, atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_pointwise_has_the_gradients_of_a_product(backend, monkeypatch):
    as_if_on(backend, monkeypatch)
    shapes = ((3, 5, 4, 7), (7, 6), (3, 5, 4, 6))
    inputs, kernel, cotangent = (normal(*shape) for shape in shapes)

    @jax.jit
    def gradients(inputs, kernel):
        run = functools.partial(pointwise, dtype=jnp.float32)
        return jax.vjp(run, inputs, kernel)[1](cotangent)

    of_inputs, of_kernel = gradients(inputs, kernel)
    np.testing.assert_allclose(of_inputs, cotangent @ kernel.T, atol=1e-5)
    expected = np.einsum("bhwc,bhwd->cd", inputs, cotangent)
    np.testing.assert_allclose(of_kernel, expected, atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_on_a_cpu_only_pixels_are_multiplied_with_kernels(backend, monkeypatch):
    """Elsewhere they are convolved: XLA aborts where it compiles products for a GPU."""
    as_if_on(backend, monkeypatch)
    attention = functools.partial(LocalSelfAttention, kernel_size=3)
    model = ResNet((1, 1), (Conv3x3, attention), num_classes=3, width=16)
    images = jax.ShapeDtypeStruct((5, 8, 8, 3), jnp.float32)
    init = functools.partial(model.init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), images)

    def loss(params, batch_stats, images):
        logits, _ = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        return jnp.sum(logits)

    step = jax.make_jaxpr(jax.grad(loss))(
        variables["params"], variables["batch_stats"], images
    )
    multiplied = {
        variable.aval.shape
        for equation in equations(step)
        if equation.primitive.name == "dot_general"
        for variable in (*equation.invars, *equation.outvars)
    }
    kernels = {
        leaf.shape
        for path, leaf in named_leaves(variables["params"])
        if path.endswith(("reduce/kernel", "expand/kernel", "shortcut/kernel"))
    }
    kernels.add((32, 3 * 32))  # Query, key and value of the attention are one.
    if backend == "cpu":
        assert kernels <= multiplied and (5 * 8 * 8, 16) in multiplied
    else:
        transposed = {shape[::-1] for shape in kernels}
        assert not multiplied & (kernels | transposed)
        assert not [shape for shape in multiplied if 5 * 8 * 8 in shape]


def test_how_attention_is_computed_is_a_field(monkeypatch):
    """There are devices on which kernels may fail."""
    as_if_on("gpu", monkeypatch)
    images = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    found = []
    for method in ("auto", "blocked"):
        config = alite_jax.get_config("digits", {"compute.attention": method})
        model = configured_model(config, "student", DATASETS["digits"])
        init = functools.partial(model.init, train=False)
        jaxpr = jax.make_jaxpr(init)(jax.random.key(0), images)
        found.append(primitives(jaxpr))
    assert ["pallas_call" in names for names in found] == [True, False]


def test_what_is_made_for_a_cpu_on_a_gpu_multiplies(monkeypatch):
    as_if_on("gpu", monkeypatch)
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 4, 4, 3), (3, 5))]
    found = []
    for device in (None, "cpu"):
        with jax.default_device(device):
            jaxpr = jax.make_jaxpr(functools.partial(pointwise, dtype="float32"))
            found.append({e.primitive.name for e in equations(jaxpr(*shapes))})
    assert ["dot_general" in names for names in found] == [False, True]


def test_programs_with_a_free_batch_dimension_convolve():
    (batch,) = jax.export.symbolic_shape("batch")
    inputs = jax.ShapeDtypeStruct((batch, 4, 4, 3), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 5), jnp.float32)
    run = jax.jit(functools.partial(pointwise, dtype=jnp.float32))
    program = jax.export.export(run, platforms=("cuda",))(inputs, kernel).mlir_module()
    assert "stablehlo.convolution" in program
    assert "stablehlo.dot_general" not in program


@pytest.mark.parametrize("stride", [1, 2])
def test_conv3x3_equals_a_sum_over_shifts(stride):
    inputs = normal(1, 5, 4, 3)
    output, variables = jax.jit(Conv3x3(2, stride).init_with_output)(
        jax.random.key(1), inputs
    )
    kernel = np.asarray(variables["params"]["kernel"])
    padded = np.pad(inputs, ((0, 0), (1, 1), (1, 1), (0, 0)))
    full = sum(
        padded[:, a : a + 5, b : b + 4] @ kernel[a, b]
        for a in range(3)
        for b in range(3)
    )
    np.testing.assert_allclose(output, full[:, ::stride, ::stride], atol=1e-5)


@pytest.mark.parametrize("height, width", [(6, 9), (1, 2)])
def test_the_imagenet_stem_is_a_convolution_then_pooling(height, width):
    """By loops: 7x7 of stride 2, BatchNorm, ReLU, the largest of 3x3 of stride 2."""
    model = ResNet((), (), num_classes=3, width=2, stem=ImageNetStem, pool_stem=True)
    images = normal(1, height, width, 3)
    logits, variables = jax.jit(functools.partial(model.init_with_output, train=False))(
        jax.random.key(0), images
    )
    params = jax.device_get(variables["params"])
    assert params["stem"]["kernel"].shape == (7, 7, 3, 2)

    def windows(maps, size, filler):
        """Every window of stride 2, padded by half its size."""
        margin = size // 2
        padded = np.pad(maps, [(margin, margin)] * 2 + [(0, 0)], constant_values=filler)
        tops, lefts = (range(0, side, 2) for side in maps.shape[:2])
        return [[padded[i : i + size, j : j + size] for j in lefts] for i in tops]

    convolved = np.array(
        [
            [np.einsum("abc,abcf->f", window, params["stem"]["kernel"]) for window in r]
            for r in windows(images[0], 7, 0)
        ]
    )
    maps = np.maximum(convolved / np.sqrt(1 + NORM_EPSILON), 0)
    pooled = np.array(
        [[window.max((0, 1)) for window in r] for r in windows(maps, 3, -np.inf)]
    )
    expected = pooled.mean((0, 1)) @ params["classifier"]["kernel"]
    assert pooled.shape == (-(-height // 4), -(-width // 4), 2)
    np.testing.assert_allclose(logits[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("height, width", [(6, 9), (1, 2)])
def test_pooling_has_the_values_and_gradients_of_a_window(height, width):
    maps = normal(2, height, width, 3)
    cotangent = normal(2, -(-height // 2), -(-width // 2), 3)
    window = functools.partial(
        nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1))
    )
    for ours, theirs in zip(
        *(jax.jit(gradients(f))(maps, cotangent) for f in (max_pool, window)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def gradients(function):
    """The value of a function, and its gradient for a cotangent."""

    def both(inputs, cotangent):
        output, pullback = jax.vjp(function, inputs)
        return output, *pullback(cotangent)

    return both


def test_behind_the_imagenet_stem_maps_have_a_quarter_of_the_sides():
    model = create_model("resnet26_attention", **TINY, stem="imagenet")
    for side, sides in ((96, (24, 12, 6, 3)), (8, (2, 1, 1, 1)), (1, (1, 1, 1, 1))):
        shapes = inputs_of_calls(model, jnp.zeros((1, side, side, 3)))
        found = [shapes[f"stage{n}_block1/expand"][1:3] for n in range(1, 5)]
        assert found == [(n, n) for n in sides]


def test_stage_outputs_are_given_on_request_and_alike_for_teacher_and_student():
    images = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    shapes = []
    for name in ("resnet26", "resnet26_attention"):
        model = create_model(name, num_classes=10, width=16)
        init = functools.partial(model.init, train=False)
        variables = jax.eval_shape(init, jax.random.key(0), images)
        assert set(variables) == {"params", "batch_stats"}
        apply = functools.partial(model.apply, train=False, mutable="intermediates")
        _, updates = jax.eval_shape(apply, variables, images)
        stages = updates["intermediates"]
        assert list(stages) == ["stage1", "stage2", "stage3", "stage4"]
        shapes.append([leaf.shape for leaf in jax.tree.leaves(stages)])
    assert shapes[0] == shapes[1]
    assert shapes[0] == [(2, 16 >> n, 16 >> n, 64 << n) for n in range(4)]


def test_statistics_change_in_training_only():
    model = ResNet(blocks=(2,), spatial=(Conv3x3,), num_classes=3, width=4)
    images = normal(4, 4, 4, 3) + 2.0

    @jax.jit
    def run(key):
        variables = model.init(key, images, train=False)
        _, trained = model.apply(variables, images, train=True, mutable="batch_stats")
        _, evaluated = model.apply(
            variables, images, train=False, mutable="batch_stats"
        )
        return variables["batch_stats"], trained["batch_stats"], evaluated

    before, trained, evaluated = run(jax.random.key(1))
    assert_trees_all_equal(evaluated["batch_stats"], before)
    for (path, old), (_, new) in zip(
        named_leaves(before), named_leaves(trained), strict=True
    ):
        assert not np.array_equal(old, new), path
        assert np.isfinite(new).all(), path


def test_a_basic_block_by_hand():
    """One pixel, for which a 3x3 convolution is a product with its middle."""
    block = BasicBlock(
        features=2,
        stride=2,
        spatial=Conv3x3,
        norm=functools.partial(nn.BatchNorm, use_running_average=True, epsilon=3.0),
    )
    middles = {
        "spatial1": [[1.0, 0.0], [0.0, -1.0], [2.0, 0.0]],
        "spatial2": [[2.0, -20.0], [8.0, 8.0]],
        "shortcut": [[0.0, 1.0], [2.0, 0.0], [0.0, 2.0]],
    }
    params, statistics = {}, {}
    for name, kernel in middles.items():
        kernel = np.array(kernel, np.float32)
        if name != "shortcut":
            surrounded = np.full((3, 3, *kernel.shape), 9.0, np.float32)
            surrounded[1, 1] = kernel
            kernel = surrounded
        params[name] = {"kernel": kernel}
        params[f"{name}_norm"] = {"scale": np.ones(2), "bias": np.zeros(2)}
        # With the epsilon, the root of the variance is 2.
        statistics[f"{name}_norm"] = {"mean": np.zeros(2), "var": np.ones(2)}
    variables = {"params": params, "batch_stats": statistics}
    inputs = np.array([1.0, 2.0, 3.0], np.float32).reshape(1, 1, 1, 3)
    # First 7 and -2, halved 3.5 and 0; then 7 and -70, halved 3.5 and -35; the shortcut
    # 4 and 7, halved 2 and 3.5.
    found = block.apply(variables, inputs)
    np.testing.assert_allclose(found, [[[[5.5, 0.0]]]], rtol=1e-6)


def test_running_statistics_move_by_a_tenth():
    block = Bottleneck(
        features=1,
        stride=1,
        spatial=Conv3x3,
        norm=functools.partial(nn.BatchNorm, use_running_average=False, momentum=0.9),
    )
    inputs = normal(3, 2, 2, 4)
    variables = jax.jit(block.init)(jax.random.key(1), inputs)
    apply = functools.partial(block.apply, mutable="batch_stats")
    _, updates = jax.jit(apply)(variables, inputs)
    reduced = np.asarray(inputs) @ np.asarray(variables["params"]["reduce"]["kernel"])
    np.testing.assert_allclose(
        updates["batch_stats"]["reduce_norm"]["mean"],
        0.1 * reduced.mean(axis=(0, 1, 2)),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "name, message",
    [
        ("resnet26_atention", "'resnet26_atention'; did you mean 'resnet26_attention'"),
        ("resnet18_attention", "'resnet18_attention'; did you mean"),
        ("vit", "'vit'; valid names: .*resnet50_attention_conv12"),
    ],
)
def test_an_unknown_model_is_an_error(name, message):
    with pytest.raises(ConfigError, match=message):
        create_model(name, num_classes=10)


def test_a_block_starts_close_to_its_shortcut():
    init = functools.partial(small(blocks=(1, 2)).init, train=False)
    params = jax.jit(init)(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))["params"]
    for path, leaf in named_leaves(params):
        if path.endswith("/scale"):
            wanted = BRANCH_SCALE if "expand_norm" in path else 1.0
            np.testing.assert_array_equal(leaf, np.float32(wanted), path)


@pytest.mark.slow
def test_gradients_of_new_attention_are_not_much_larger_than_of_convolution():
    """With blocks that start at 1 they are 50 times as large."""
    images = jnp.asarray(normal(32, 8, 8, 1))

    def norm_of_gradient(name):
        model = create_model(name, num_classes=10, width=16)
        variables = jax.jit(functools.partial(model.init, train=False))(
            jax.random.key(0), images
        )

        def loss(params):
            logits, _ = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            return -jnp.mean(jax.nn.log_softmax(logits)[:, 0])

        return optax.tree.norm(jax.jit(jax.grad(loss))(variables["params"]))

    ratio = norm_of_gradient("resnet26_attention") / norm_of_gradient("resnet26")
    assert ratio < 3
