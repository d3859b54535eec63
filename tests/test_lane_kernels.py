"""The kernels for TPUs, by JAX's interpreter, and where `auto` takes them."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from references import local_attention_loops

from alite_jax.deploy.program import export_program
from alite_jax.errors import ConfigError
from alite_jax.ops import lane_attention
from alite_jax.ops.local_attention import local_attention

INPUTS = ("queries", "keys", "values", "row_embeddings", "column_embeddings")


def make_inputs(batch, height, width, heads, head_dim, kernel_size):
    rng = np.random.default_rng(0)
    shape = (batch, height, width, heads, head_dim)
    cotangent, *maps = [rng.normal(size=shape) for _ in range(4)]
    tables = [rng.normal(size=(kernel_size, head_dim // 2)) for _ in range(2)]
    return cotangent, *maps, *tables


def lanes(*inputs, border="zero"):
    size = inputs[-1].shape[0]
    return local_attention(*inputs, kernel_size=size, border=border, method="lanes")


def assert_close(found, expected, atol):
    for name, one, wanted in zip(("output", *INPUTS), found, expected, strict=True):
        scale = max(1.0, np.abs(wanted).max())
        np.testing.assert_allclose(
            np.float64(one) / scale, wanted / scale, atol=atol, err_msg=name
        )


# Two programs of two images, one of which is none, and one program of three.
@pytest.mark.parametrize(("border", "most_lanes"), [("zero", 71), ("mask", 128)])
def test_value_and_five_gradients_equal_the_loops(monkeypatch, border, most_lanes):
    monkeypatch.setattr(lane_attention, "_ENOUGH_LANES", most_lanes)
    inputs = make_inputs(3, 5, 7, 3, 4, 3)

    @jax.jit
    def run(cotangent, *inputs):
        output, pullback = jax.vjp(functools.partial(lanes, border=border), *inputs)
        return output, *pullback(cotangent)

    # Whole numbers, so that logits of many thousands are exact in float32. The softmax
    # is right to 1e-6, and keys of some hundreds multiply its error.
    large = [np.round(100 * x) for x in inputs]
    for case, atol in ((inputs, 3e-6), (large, 5e-4)):
        found = run(*map(np.float32, case))
        cotangent, *rest = case
        output, gradients = local_attention_loops(*rest, cotangent, border=border)
        assert_close(found, (output, *gradients), atol)

    # Images of a program do not see each other, not even what is infinite.
    large[1][1], large[2][1], large[3][1] = np.inf, np.inf, np.inf
    output, *_ = run(*map(np.float32, large))
    np.testing.assert_array_equal(output[::2], found[0][::2])
    assert not np.isfinite(output[1]).any()


def test_a_window_higher_than_the_map_in_bfloat16_under_vmap():
    cotangent, *inputs = make_inputs(2, 1, 2, 1, 2, 3)
    expected, _ = local_attention_loops(*inputs, cotangent, border="zero")
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in inputs]
    twice = [jnp.stack([x, x]) for x in inputs]
    for output in jax.jit(jax.vmap(lanes))(*twice):
        assert output.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float64(output), expected, atol=0.03)


def test_works_on_several_devices_in_a_loop_that_computes_it_again():
    cotangent, *inputs = make_inputs(2, 2, 1, 1, 2, 3)
    _, expected = local_attention_loops(*inputs, cotangent, border="zero")
    tables = [np.float32(x) for x in inputs[3:]]

    def gradients(cotangent, *maps):
        def loss(tables, cotangent, *maps):
            return jnp.sum(jax.checkpoint(lanes)(*maps, *tables) * cotangent)

        def image(sums, image):
            found = jax.grad(loss)(tables, *(x[None] for x in image))
            return jax.tree.map(jnp.add, sums, found), None

        nothing = [jnp.zeros_like(table) for table in tables]
        sums, _ = jax.lax.scan(image, nothing, (cotangent, *maps))
        return jax.lax.psum(sums, "batch")

    shared = jax.shard_map(
        gradients,
        mesh=Mesh(jax.devices()[:2], ("batch",)),
        in_specs=PartitionSpec("batch"),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    found = jax.jit(shared)(*map(np.float32, (cotangent, *inputs[:3])))
    for one, wanted in zip(found, expected[3:], strict=True):
        np.testing.assert_allclose(one, wanted, atol=1e-5)


@pytest.fixture
def tpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")


def shapes(side, head_dim, kernel_size=7, *, dtype=jnp.bfloat16, batch=128):
    maps = jax.ShapeDtypeStruct((batch, side, side, 8, head_dim), dtype)
    tables = jax.ShapeDtypeStruct((kernel_size, head_dim // 2), jnp.float32)
    return maps, maps, maps, tables, tables


def grids_of_kernels(inputs):
    """Programs of each kernel in the jaxpr of value and gradients."""
    attend = functools.partial(local_attention, kernel_size=inputs[-1].shape[0])

    def run(*inputs):
        output, pullback = jax.vjp(attend, *inputs)
        return pullback(output)

    text = str(jax.make_jaxpr(run)(*inputs))
    assert text.count("name=local_attention_lanes") == text.count("pallas_call[")
    return [int(number) for number in re.findall(r"grid=\((\d+),\)", text)]


@pytest.mark.parametrize(
    ("inputs", "programs"),
    [
        (shapes(32, 8), [128, 128]),
        (shapes(4, 64, dtype=jnp.float32, batch=1), [1, 1]),
        (shapes(16, 16), [32, 32]),
        (shapes(8, 32, batch=17), [2, 2]),
        (shapes(4, 64), [4, 4]),
        (shapes(64, 8), [128, 128]),
        (shapes(64, 8, dtype=jnp.float32), []),
        (shapes(8, 32, 13), []),
        (shapes(8, 512), []),
        (shapes(8, 32, dtype=jnp.float16), []),
    ],
)
def test_kernels_that_auto_takes_on_a_tpu(tpu, inputs, programs):
    assert grids_of_kernels(inputs) == programs


@pytest.mark.parametrize(("kind", "runs"), [("TPU v4", False), ("TPU v5 lite", True)])
def test_auto_asks_how_much_memory_a_core_has(tpu, monkeypatch, kind, runs):
    device = types.SimpleNamespace(device_kind=kind)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert bool(grids_of_kernels(shapes(64, 8))) == runs
    assert grids_of_kernels(shapes(32, 8))


def test_auto_follows_the_default_device(tpu):
    assert grids_of_kernels(shapes(4, 2))
    with jax.default_device("cpu"):
        assert grids_of_kernels(shapes(4, 2)) == []


def test_kernels_lower_for_a_tpu_that_is_not_here(tpu):
    inputs = shapes(32, 8)

    def run(*inputs):
        output, pullback = jax.vjp(functools.partial(lanes, border="mask"), *inputs)
        return pullback(output)

    lowered = jax.jit(run).trace(*inputs).lower(lowering_platforms=("tpu",))
    text = lowered.as_text()
    assert text.count('kernel_name = "local_attention_lanes') == 2
    # The window has 49 numbers for each channel of the keys.
    arrays = [np.int64(x.split("x")) for x in re.findall(r"tensor<([\dx]+)x", text)]
    assert max(map(np.prod, arrays)) < 3 * np.prod(inputs[0].shape)


def test_a_program_for_all_platforms_is_exported_on_a_tpu(tpu):
    """With a free batch, and for a CPU with a fixed one; `len` asks for that."""

    def forward(tables, images):
        maps = jnp.float32(images).reshape(len(images), 3, 3, 1, 2)
        return local_attention(maps, maps, maps, tables, tables, kernel_size=3)

    content = export_program(forward, np.ones((3, 1), np.float32), (3, 3, 2))
    assert "tpu" in jax.export.deserialize(bytearray(content)).platforms


def test_what_kernels_cannot_do_is_said():
    inputs = [np.float16(x) for x in make_inputs(1, 2, 3, 1, 2, 3)[1:]]
    with pytest.raises(ConfigError, match="float16; use 'auto'"):
        jax.eval_shape(lanes, *inputs)
