"""Local attention against explicit loops in float64, and its static promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chex import assert_trees_all_equal_shapes_and_dtypes
from hypothesis import given, settings
from hypothesis import strategies as st
from references import local_attention_loops

from alite_jax.errors import ConfigError
from alite_jax.ops import row_attention
from alite_jax.ops.local_attention import BORDERS, METHODS, fastest, local_attention

# tests/test_gpu_kernels.py and test_lane_kernels.py have the others, which take long to
# compile for a CPU.
PLAIN = [name for name in METHODS if name not in ("fused", "lanes")]
FAST_METHODS = [name for name in PLAIN if name != "reference"]
INPUTS = ("queries", "keys", "values", "row_embeddings", "column_embeddings")

# Height, width and kernel size, and heads and their channels where there are several:
# compiling takes long where a method has a term for each channel and each offset.
CASES = {
    "window larger than the map": (3, 2, 7),
    "map of one pixel": (1, 1, 3),
    "window of one pixel": (5, 4, 1),
    "several blocks": (8, 8, 3, 2, 6),
    "not divisible by the block": (9, 6, 5, 2, 4),
    "halo wider than a block": (7, 5, 11),
    "paper's window": (10, 11, 7),
}


def make_inputs(height, width, kernel_size, heads=1, head_dim=2, *, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    maps = [rng.normal(size=(batch, height, width, heads, head_dim)) for _ in range(3)]
    embeddings = [rng.normal(size=(kernel_size, head_dim // 2)) for _ in range(2)]
    return [*maps, *embeddings]


@functools.cache
def expected_from_loops(case, border):
    """Inputs, cotangent, output and gradients of a case, in float64."""
    inputs = make_inputs(*case)
    cotangent = np.random.default_rng(1).normal(size=inputs[0].shape)
    loops = local_attention_loops(*inputs, cotangent, border=border)
    return inputs, cotangent, *loops


STATIC = ("kernel_size", "border", "method")


@functools.partial(jax.jit, static_argnames=STATIC)
def attend(*inputs, kernel_size, border="zero", method="auto"):
    return local_attention(
        *inputs, kernel_size=kernel_size, border=border, method=method
    )


@functools.partial(jax.jit, static_argnames=STATIC)
def value_and_gradients(cotangent, *inputs, **options):
    run = functools.partial(local_attention, **options)
    output, pullback = jax.vjp(run, *inputs)
    return output, pullback(cotangent)


def of_each(methods, function, *inputs, **options):
    """What `function` returns with each method, by one program."""

    def run(*inputs):
        return {name: function(*inputs, **options, method=name) for name in methods}

    return jax.jit(run)(*inputs)


def to_float32(*arrays):
    return [np.float32(x) for x in arrays]


def assert_gradients_close(found, expected, atol, where=""):
    for name, one, wanted in zip(INPUTS, found, expected, strict=True):
        scale, place = max(1.0, np.abs(wanted).max()), f"{where} {name}"
        np.testing.assert_allclose(
            one / scale, wanted / scale, atol=atol, err_msg=place
        )


# Where masked positions lie beside others in a block, beyond it, and nowhere.
MASKED = ("window larger than the map", "window of one pixel", "several blocks")


@pytest.mark.parametrize(
    ("name", "border"),
    [(name, "zero") for name in CASES]
    + [
        pytest.param(
            name, "mask", marks=() if name in MASKED else pytest.mark.processes
        )
        for name in CASES
    ],
)
def test_value_and_five_gradients_equal_the_loops(name, border):
    case = CASES[name]
    inputs, cotangent, expected, expected_gradients = expected_from_loops(case, border)
    found = of_each(
        PLAIN,
        value_and_gradients,
        *to_float32(cotangent, *inputs),
        kernel_size=case[2],
        border=border,
    )
    for method, (output, gradients) in found.items():
        np.testing.assert_allclose(output, expected, atol=2e-6, err_msg=method)
        assert_gradients_close(gradients, expected_gradients, atol=5e-6, where=method)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    kernel_size=st.sampled_from([1, 3, 5, 7]),
    heads=st.integers(1, 3),
    half=st.integers(1, 3),
    border=st.sampled_from(BORDERS),
    seed=st.integers(0, 99),
)
def test_methods_agree_with_the_unfold_on_any_shape(
    height, width, kernel_size, heads, half, border, seed
):
    shape = height, width, kernel_size, heads, 2 * half
    inputs = to_float32(*make_inputs(*shape, batch=1, seed=seed))
    outputs = of_each(PLAIN, attend, *inputs, kernel_size=kernel_size, border=border)
    for method in FAST_METHODS:
        np.testing.assert_allclose(outputs[method], outputs["reference"], atol=3e-6)


@pytest.mark.parametrize(
    ("side", "head_dim", "kernel_size", "backend", "method"),
    [
        (32, 8, 7, "cpu", "rows"),
        (16, 16, 7, "cpu", "rows"),
        (8, 8, 7, "cpu", "rows"),
        (8, 32, 3, "cpu", "rows"),
        (8, 32, 7, "cpu", "all_pairs"),
        (4, 64, 3, "cpu", "all_pairs"),
        (14, 16, 11, "cpu", "all_pairs"),
        (16, 16, 11, "cpu", "rows"),
        (10, 8, 7, "any", "all_pairs"),
        (11, 8, 7, "any", "blocked"),
        (6, 8, 3, "any", "all_pairs"),
        (7, 8, 3, "any", "blocked"),
        (32, 8, 7, "tpu", "lanes"),
        (4, 64, 3, "tpu", "lanes"),
        (32, 8, 7, "gpu", "fused"),
        (4, 64, 3, "gpu", "fused"),
    ],
)
def test_fastest_method(side, head_dim, kernel_size, backend, method):
    assert fastest(side, side, head_dim, kernel_size, backend) == method


@pytest.mark.parametrize("side", [2, 3])
@pytest.mark.parametrize("border", BORDERS)
def test_auto_takes_the_fastest_method(side, border):
    inputs = to_float32(*make_inputs(side, side, 7, batch=1))

    def jaxpr(method):
        return jax.make_jaxpr(
            lambda *x: local_attention(*x, kernel_size=7, border=border, method=method)
        )(*inputs).pretty_print()

    texts = {method: jaxpr(method) for method in PLAIN}
    assert len(set(texts.values())) == len(PLAIN)
    assert jaxpr("auto") == texts[fastest(side, side, 2, 7, "cpu")]


def rows_anew(cotangent, inputs, **options):
    """Value and gradients; jit would give back the program of another limit."""
    return jax.jit(
        lambda cotangent, *inputs: value_and_gradients.__wrapped__(
            cotangent, *inputs, method="rows", **options
        )
    )(jnp.float32(cotangent), *inputs)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(
    ("batch", "height", "heads", "count"),
    [(1, 6, 2, 6), (2, 9, 1, 3)],
)
def test_strips_side_by_side_are_the_whole_image(
    monkeypatch, border, batch, height, heads, count
):
    inputs = to_float32(*make_inputs(height, 3, 5, heads, batch=batch))
    cotangent = np.random.default_rng(1).normal(size=inputs[0].shape)

    def run(images):
        monkeypatch.setattr(row_attention, "_SIDE_BY_SIDE", images)
        return rows_anew(cotangent, inputs, kernel_size=5, border=border)

    assert row_attention.strip_count(batch, height, 3, heads, 1) == count
    in_strips, gradients = run(8)
    whole, whole_gradients = run(1)
    np.testing.assert_allclose(in_strips, whole, atol=1e-6)
    assert_gradients_close(gradients, whole_gradients, atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "height", "width", "heads", "logits", "count"),
    [
        (1, 16, 16, 2, 1, 4),  # 64 columns
        (1, 16, 16, 1, 1, 8),  # 128 queries
        (2, 16, 16, 2, 1, 2),
        (4, 16, 16, 2, 1, 1),
        (1, 12, 5, 2, 1, 6),  # No more than 8 side by side, and a divisor.
        (1, 7, 8, 2, 1, 7),
        (1, 64, 128, 2, 1, 1),
        (1, 16, 8, 2, 2**17 // 3, 2),  # All strips of the image at once, or none.
    ],
)
def test_how_many_strips(batch, height, width, heads, logits, count):
    assert row_attention.strip_count(batch, height, width, heads, logits) == count


@pytest.mark.parametrize("border", BORDERS)
def test_rows_do_not_depend_on_how_many_images_are_done_at_a_time(monkeypatch, border):
    inputs = to_float32(*make_inputs(4, 5, 3, 2, batch=6))
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=inputs[0].shape))

    def run(limit):
        monkeypatch.setattr(row_attention, "_LOGITS_AT_ONCE", limit)
        return rows_anew(cotangent, inputs, kernel_size=3, border=border)

    (one, one_gradients), (two, two_gradients) = run(1), run(2 * 2 * 5 * 9)
    together, gradients = run(2**17)
    np.testing.assert_allclose(one, together, atol=1e-6)
    np.testing.assert_allclose(two, together, atol=1e-6)
    assert_gradients_close(one_gradients, gradients, atol=1e-6)
    assert_gradients_close(two_gradients, gradients, atol=1e-6)


@pytest.mark.parametrize(
    "batch, fitting, group", [(6, 1, 1), (6, 4, 3), (6, 99, 6), (7, 5, 1), (1, 0, 1)]
)
def test_a_group_of_images_divides_the_batch(batch, fitting, group):
    limit = row_attention._LOGITS_AT_ONCE
    logits_per_image = limit // fitting if fitting else 2 * limit
    assert row_attention.group_size(batch, logits_per_image) == group


@pytest.mark.parametrize("border", BORDERS)
def test_bfloat16_inputs_give_a_bfloat16_output_near_the_exact_one(border):
    case = CASES["not divisible by the block"]
    inputs, _, expected, _ = expected_from_loops(case, border)
    inputs = (jnp.asarray(x, jnp.bfloat16) for x in inputs)
    outputs = of_each(PLAIN, attend, *inputs, kernel_size=case[2], border=border)
    for method, output in outputs.items():
        assert output.dtype == jnp.bfloat16
        # Inputs alone are off by 2**-9, and logits reach about 10.
        np.testing.assert_allclose(
            np.float64(output), expected, atol=0.1, err_msg=method
        )
        assert np.mean(np.abs(np.float64(output) - expected)) < 0.01


@functools.cache
def large_logits_from_loops(border):
    # Whole numbers, so that logits of many thousands are exact in float32.
    rng = np.random.default_rng(2)
    inputs = [np.round(100 * x) for x in make_inputs(6, 5, 3, 2, 4, seed=3)]
    inputs[2] /= 100
    cotangent = rng.normal(size=inputs[0].shape)
    return inputs, cotangent, *local_attention_loops(*inputs, cotangent, border=border)


@pytest.mark.parametrize("border", BORDERS)
def test_logits_of_thousands_stay_finite_and_right(border):
    inputs, cotangent, expected, expected_gradients = large_logits_from_loops(border)
    queries, keys = inputs[:2]
    assert np.abs(np.sum(queries * keys, axis=-1)).max() > 10_000
    inputs = to_float32(cotangent, *inputs)
    found = of_each(PLAIN, value_and_gradients, *inputs, kernel_size=3, border=border)
    for method, (output, gradients) in found.items():
        assert all(np.isfinite(x).all() for x in (output, *gradients))
        np.testing.assert_allclose(output, expected, atol=1e-5, err_msg=method)
        # Softmax is right to 1e-6, and keys of some hundreds multiply its error.
        assert_gradients_close(gradients, expected_gradients, atol=5e-4, where=method)


EMPTY = [(0, 4, 5), (2, 0, 5), (2, 4, 0), (0, 1, 1), (0, 0, 0)]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("border", BORDERS)
def test_of_no_pixels_comes_nothing_and_no_gradient(border, dtype):
    for batch, height, width in EMPTY:
        inputs = make_inputs(height, width, 3, batch=batch)
        inputs = [jnp.asarray(x, dtype) for x in inputs]
        found = of_each(
            (*METHODS, "auto"),
            value_and_gradients,
            *(inputs[0], *inputs),
            kernel_size=3,
            border=border,
        )
        for output, gradients in found.values():
            assert (output.shape, output.dtype) == (inputs[2].shape, dtype)
            assert_trees_all_equal_shapes_and_dtypes(list(gradients), inputs)
            assert not any(np.any(gradient) for gradient in gradients)


def test_mistakes_are_found_where_there_are_no_images_too():
    inputs = to_float32(*make_inputs(4, 4, 3, batch=0))
    for options in ({"method": "fft"}, {"border": "wrap"}):
        with pytest.raises(ConfigError, match="unknown"):
            local_attention(*inputs, kernel_size=3, **options)


def test_queries_with_nothing_outside_have_finite_gradients():
    # The window of the middle pixel touches no border, so its outside mass is zero.
    inputs = to_float32(*make_inputs(5, 5, 3, batch=1))
    cotangent = jnp.zeros(inputs[0].shape).at[:, 2, 2].set(1.0)
    output, gradients = value_and_gradients(
        cotangent, *inputs, kernel_size=3, border="zero", method="all_pairs"
    )
    masked, masked_gradients = value_and_gradients(
        cotangent, *inputs, kernel_size=3, border="mask", method="all_pairs"
    )
    assert np.isfinite(output).all()
    np.testing.assert_allclose(output[:, 2, 2], masked[:, 2, 2], atol=1e-6)
    assert all(np.isfinite(x).all() for x in gradients)
    assert_gradients_close(gradients, masked_gradients, atol=1e-6)


def largest_intermediate(jaxpr):
    """The most elements of any array made in a jaxpr or in one nested in it."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [out.aval.size for out in equation.outvars]
        sizes += [largest_intermediate(inner) for inner in nested(equation.params)]
    return max(sizes)


def nested(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [jaxpr for item in value for jaxpr in nested(item)]
    value = getattr(value, "jaxpr", value)  # a closed jaxpr holds an open one
    return [value] if hasattr(value, "eqns") else []


def largest_of(method, border, side, differentiate):
    kernel_size, head_dim = 7, 8
    keys = jax.ShapeDtypeStruct((1, side, side, 1, head_dim), jnp.float32)
    table = jax.ShapeDtypeStruct((kernel_size, head_dim // 2), jnp.float32)

    # jit, so that the walk has to find its way into a nested jaxpr.
    @jax.jit
    def total(*inputs):
        return jnp.sum(
            local_attention(
                *inputs, kernel_size=kernel_size, border=border, method=method
            )
        )

    function = jax.grad(total, argnums=range(5)) if differentiate else total
    jaxpr = jax.make_jaxpr(function)(keys, keys, keys, table, table).jaxpr
    return largest_intermediate(jaxpr) / (kernel_size**2 * keys.size)


@pytest.mark.parametrize("differentiate", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(
    "method, side", [("blocked", 32), ("all_pairs", 8), ("rows", 32)]
)
def test_only_the_unfold_makes_a_copy_of_the_keys_for_each_offset(
    method, side, border, differentiate
):
    assert largest_of("reference", border, side, differentiate) >= 1.0
    assert largest_of(method, border, side, differentiate) < 0.5


def test_works_under_vmap_of_grad_and_jit_of_vmap():
    inputs = to_float32(*make_inputs(4, 5, 3))
    maps, tables = inputs[:3], inputs[3:]

    def loss(queries, keys, values):
        maps = (x[None] for x in (queries, keys, values))
        return jnp.sum(local_attention(*maps, *tables, kernel_size=3) ** 2)

    each = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1, 2))))(*maps)
    output = attend(*inputs, kernel_size=3)
    _, together = value_and_gradients(2 * output, *inputs, kernel_size=3, border="zero")
    for one, other in zip(each, together[:3], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_works_on_several_devices():
    inputs = make_inputs(4, 5, 3)
    output = local_attention_loops(*inputs, inputs[0], border="zero")[0]
    expected = local_attention_loops(*inputs, 2 * output, border="zero")[1][:3]
    maps, tables = to_float32(*inputs[:3]), to_float32(*inputs[3:])

    def gradients(*maps):
        def loss(*maps, method):
            output = local_attention(*maps, *tables, kernel_size=3, method=method)
            return jnp.sum(output**2)

        return of_each(PLAIN, jax.grad(loss, argnums=(0, 1, 2)), *maps)

    shares = [x.reshape(2, 1, *x.shape[1:]) for x in maps]
    for found in jax.pmap(gradients, axis_name="batch")(*shares).values():
        for one, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(one[:, 0], wanted, atol=1e-5)


def shapes(
    *, map_shape=(1, 4, 4, 2, 4), keys=None, values=None, row=(3, 2), column=None
):
    return [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in (
            map_shape,
            keys or map_shape,
            values or map_shape,
            row,
            column or row,
        )
    ]


@pytest.mark.parametrize(
    "inputs, options, message",
    [
        (shapes(), {"kernel_size": 4}, "kernel_size is 4.*odd number"),
        (shapes(), {"kernel_size": 0}, "kernel_size is 0.*odd number"),
        (shapes(), {"kernel_size": -1}, "kernel_size is -1.*odd number"),
        (shapes(map_shape=(1, 4, 4, 2, 3)), {}, "head_dim is 3.*even head_dim"),
        (shapes(), {"border": "zeros"}, "border 'zeros'; did you mean 'zero'"),
        (shapes(), {"border": "wrap"}, "border 'wrap'; valid names: mask, zero"),
        (
            shapes(),
            {"method": "all_pair"},
            "method 'all_pair'; did you mean 'all_pairs'",
        ),
        (shapes(), {"method": "fft"}, "method 'fft'; valid names: all_pairs, auto, bl"),
        (shapes(keys=(1, 4, 5, 2, 4)), {}, r"share one shape.*\(1, 4, 5, 2, 4\)"),
        (shapes(values=(1, 4, 4, 2, 6)), {}, r"share one shape.*\(1, 4, 4, 2, 6\)"),
        (shapes(map_shape=(4, 4, 2, 4)), {}, r"share one shape.*\(4, 4, 2, 4\)"),
        (shapes(row=(5, 2)), {}, r"embeddings must be .* \(3, 2\), found \(5, 2\)"),
        (shapes(column=(3, 4)), {}, r"\(3, 2\), found \(3, 2\) and \(3, 4\)"),
    ],
)
def test_what_does_not_belong_together_is_named(inputs, options, message):
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(
            functools.partial(local_attention, **{"kernel_size": 3, **options}), *inputs
        )
