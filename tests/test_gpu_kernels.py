"""The kernels for GPUs, by JAX's interpreter, and where `auto` takes them."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
from references import local_attention_loops

from alite_jax.deploy.program import export_program
from alite_jax.errors import ConfigError
from alite_jax.ops import fused_attention
from alite_jax.ops.local_attention import BORDERS, local_attention

INPUTS = ("queries", "keys", "values", "row_embeddings", "column_embeddings")

# Height, width, heads, head_dim and kernel size. No tile divides the first, and no side
# and no vector of either is a power of two.
LARGE = (5, 7, 3, 6, 3)
SMALL = (3, 5, 2, 6, 3)


def make_inputs(height, width, heads, head_dim, kernel_size, *, batch=2):
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(batch, height, width, heads, head_dim)) for _ in range(4)]
    tables = [rng.normal(size=(kernel_size, head_dim // 2)) for _ in range(2)]
    cotangent, *maps = maps
    return cotangent, *maps, *tables


def fused(*inputs, border="zero"):
    size = inputs[-1].shape[0]
    return local_attention(*inputs, kernel_size=size, border=border, method="fused")


def value_and_gradients(cotangent, *inputs, border="zero"):
    output, pullback = jax.vjp(functools.partial(fused, border=border), *inputs)
    return output, *pullback(cotangent)


def expected_from_loops(cotangent, *inputs, border="zero"):
    output, gradients = local_attention_loops(*inputs, cotangent, border=border)
    return output, *gradients


def assert_close(found, expected, atol):
    for name, one, wanted in zip(("output", *INPUTS), found, expected, strict=True):
        scale = max(1.0, np.abs(wanted).max())
        np.testing.assert_allclose(
            np.float64(one) / scale, wanted / scale, atol=atol, err_msg=name
        )


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(("case", "whole_map"), [(LARGE, False), (SMALL, True)])
def test_value_and_five_gradients_equal_the_loops(monkeypatch, case, whole_map, border):
    monkeypatch.setattr(fused_attention, "_goes_whole", lambda *_: whole_map)
    inputs = make_inputs(*case)
    run = jax.jit(functools.partial(value_and_gradients, border=border))
    found = run(*map(np.float32, inputs))
    assert_close(found, expected_from_loops(*inputs, border=border), atol=3e-6)

    # Whole numbers, so that logits of many thousands are exact in float32. The softmax
    # is right to 1e-6, and keys of some hundreds multiply its error.
    inputs = [np.round(100 * x) for x in inputs]
    found = run(*map(np.float32, inputs))
    assert all(np.isfinite(x).all() for x in found)
    assert_close(found, expected_from_loops(*inputs, border=border), atol=5e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_near_the_loops_under_vmap_too(dtype):
    inputs = make_inputs(*SMALL, batch=1)
    expected = expected_from_loops(*inputs)
    _, *inputs = (jnp.asarray(x, dtype) for x in inputs)
    twice = [jnp.stack([x, x]) for x in inputs]
    for output in jax.jit(jax.vmap(fused))(*twice):
        assert output.dtype == dtype
        np.testing.assert_allclose(np.float64(output), expected[0], atol=0.03)


def test_works_on_several_devices_in_a_loop_that_computes_it_again():
    cotangent, *inputs = make_inputs(2, 3, 1, 2, 3, batch=4)
    _, *expected = expected_from_loops(cotangent, *inputs)
    tables = [np.float32(x) for x in inputs[3:]]

    @functools.partial(jax.pmap, axis_name="batch")
    def gradients(cotangent, *maps):
        def loss(tables, cotangent, *maps):
            return jnp.sum(jax.checkpoint(fused)(*maps, *tables) * cotangent)

        def image(sums, image):
            found = jax.grad(loss)(tables, *(x[None] for x in image))
            return jax.tree.map(jnp.add, sums, found), None

        nothing = [jnp.zeros_like(table) for table in tables]
        sums, _ = jax.lax.scan(image, nothing, (cotangent, *maps))
        return jax.lax.psum(sums, "batch")

    maps = (np.float32(x).reshape(2, 2, *x.shape[1:]) for x in (cotangent, *inputs[:3]))
    for one, wanted in zip(gradients(*maps), expected[3:], strict=True):
        np.testing.assert_allclose(one[1], wanted, atol=1e-5)


@pytest.fixture
def gpu(monkeypatch):
    """As if there were one, of which nothing is known."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def shapes(side=16, head_dim=8, kernel_size=7, *, dtype=jnp.bfloat16, heads=8):
    maps = jax.ShapeDtypeStruct((2, side, side, heads, head_dim), dtype)
    tables = jax.ShapeDtypeStruct((kernel_size, head_dim // 2), jnp.float32)
    return maps, maps, maps, tables, tables


def names_of_kernels(inputs, method="auto"):
    """Of the kernels in the jaxpr of value and gradients."""
    attend = functools.partial(
        local_attention, kernel_size=inputs[-1].shape[0], method=method
    )

    def run(*inputs):
        output, pullback = jax.vjp(attend, *inputs)
        return pullback(output)

    names = re.findall(r"name=local_attention_(\w+)", str(jax.make_jaxpr(run)(*inputs)))
    return sorted(set(names))


MAP = ["map_backward", "map_forward"]
SHIFT = ["shift_forward", "shift_keys", "shift_queries"]


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        (shapes(32, 8), SHIFT),
        (shapes(9, 32), SHIFT),
        (shapes(8, 32), MAP),
        (shapes(8, 32, dtype=jnp.float16), MAP),
        (shapes(8, 32, dtype=jnp.float32), SHIFT),
        (shapes(7, 6, 11), MAP),
        (shapes(8, 32, 13), []),
        (shapes(8, 256, 3, heads=16), []),
    ],
)
def test_kernels_that_auto_takes_on_a_gpu(gpu, inputs, names):
    assert names_of_kernels(inputs) == names


def test_auto_takes_no_kernel_in_float64(gpu):
    with jax.enable_x64(True):
        assert names_of_kernels(shapes(dtype=jnp.float64)) == []


@pytest.mark.parametrize(
    ("capability", "runs"),
    [("7.5", False), ("8.0", True), ("12.0", True), ("gfx90a", False)],
)
def test_auto_asks_what_the_gpu_can_do(gpu, monkeypatch, capability, runs):
    device = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert bool(names_of_kernels(shapes())) == runs


def test_auto_follows_the_default_device(gpu):
    with jax.default_device("cpu"):
        assert names_of_kernels(shapes()) == []
    assert names_of_kernels(shapes())


def test_a_program_for_all_platforms_is_exported_on_a_gpu(gpu):
    """With a free batch, and for a CPU with a fixed one; `len` asks for that."""

    def forward(tables, images):
        maps = jnp.float32(images).reshape(len(images), 3, 3, 1, 2)
        return local_attention(maps, maps, maps, tables, tables, kernel_size=3)

    content = export_program(forward, np.ones((3, 1), np.float32), (3, 3, 2))
    assert jax.export.deserialize(bytearray(content)).platforms == (
        "cpu",
        "cuda",
        "tpu",
    )


@pytest.mark.parametrize(("inputs", "names"), [(shapes(32), SHIFT), (shapes(8), MAP)])
def test_kernels_lower_for_a_gpu_that_is_not_here(gpu, inputs, names):
    def run(*inputs):
        output, pullback = jax.vjp(fused, *inputs)
        return pullback(output)

    kind = "NVIDIA H100 80GB HBM3"
    device = AbstractDevice(device_kind=kind, num_cores=None, platform="gpu")
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        lowered = jax.jit(run).trace(*inputs).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    assert sorted(re.findall(r'name = "local_attention_(\w+)"', text)) == names
    # The window has 49 numbers for each channel of the keys.
    arrays = [np.int64(x.split("x")) for x in re.findall(r"tensor<([\dx]+)x", text)]
    assert max(map(np.prod, arrays)) < 3 * np.prod(inputs[0].shape)


def test_what_kernels_cannot_do_is_said():
    inputs = [np.float32(x) for x in make_inputs(*SMALL)[1:]]
    with pytest.raises(TypeError, match="forward-mode autodiff"):
        jax.jit(lambda *x: jax.jvp(fused, x, x)).lower(*inputs)
    with jax.enable_x64(True), pytest.raises(ConfigError, match="float64; use 'auto'"):
        jax.eval_shape(fused, *(np.float64(x) for x in inputs))
