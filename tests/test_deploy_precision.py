"""How far programs of one network may lie apart, and that no more is forgiven."""

import math
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alite_jax.deploy.program import compare
from alite_jax.errors import ArtefactError
from alite_jax.models.precision import Bounds, bounds, computing_dtype, logits_change

NINE = {"params": {f"layer{i}": {"kernel": np.ones((2, 2))} for i in range(9)}}


@pytest.mark.parametrize(
    ("dtype", "backend", "asked", "bits", "error"),
    [
        ("float32", "cpu", None, 24, 1e-3),
        ("float32", "gpu", None, 11, 12 * 2**-11),
        ("float32", "gpu", "highest", 24, 1e-3),
        ("float32", "gpu", "float32", 24, 1e-3),
        ("float32", "gpu", "high", 11, 12 * 2**-11),
        ("float32", "tpu", None, 8, 12 * 2**-8),
        ("float32", "tpu", "high", 16, 1e-3),
        ("float32", "cpu", "high", 24, 1e-3),
        ("bfloat16", "cpu", None, 8, 12 * 2**-8),
        ("bfloat16", "gpu", "highest", 8, 12 * 2**-8),
    ],
)
def test_bounds_follow_from_the_products(
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    backend: str,
    asked: str | None,
    bits: int,
    error: float,
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    with jax.default_matmul_precision(asked):
        assert bounds(jnp.dtype(dtype), NINE) == Bounds(bits, 9, error)


@pytest.mark.parametrize(
    ("devices", "dtype"),
    [
        ([("cpu", None)] * 2, "float32"),
        ([("tpu", None)], "bfloat16"),
        ([("gpu", "8.0")], "bfloat16"),
        ([("gpu", "12.1")], "bfloat16"),
        ([("gpu", "7.5")], "float32"),
        ([("gpu", "9.0"), ("gpu", "7.0")], "float32"),
        ([("gpu", "gfx942")], "bfloat16"),
        ([("other", None)], "float32"),
    ],
)
def test_the_number_format_suits_the_devices(
    monkeypatch: pytest.MonkeyPatch,
    devices: list[tuple[str, str | None]],
    dtype: str,
) -> None:
    found = [
        SimpleNamespace(platform=platform, compute_capability=capability)
        for platform, capability in devices
    ]
    monkeypatch.setattr(jax, "devices", lambda: found)
    assert computing_dtype("auto") == jnp.dtype(dtype)
    for named in ("float32", "bfloat16"):
        assert computing_dtype(named) == jnp.dtype(named)


def found(ours: list[list[float]], allowed: Bounds) -> Any:
    """Compares logits with (2, 1) for as many images as there are."""
    theirs = np.float32([[2, 1]] * len(ours))
    return compare(np.float32(ours), theirs, allowed)


def test_lower_precision_forgives_rounding_and_nothing_else() -> None:
    exact, coarse = Bounds(24, 9, 1e-3), Bounds(8, 9, 0.1)
    rounded = [[2.0, 1.19], [1.81, 1.0]]
    with pytest.raises(ArtefactError, match=r"0\.19 apart, where 0\.002 is allowed"):
        found(rounded, exact)
    agreement = found(rounded, coarse)
    assert agreement.same_classes == 1.0
    assert agreement.logits_error == pytest.approx(0.19)
    assert (agreement.largest_logit, agreement.images) == (2.0, 2)
    with pytest.raises(ArtefactError, match=r"0\.21 apart, where 0\.2 is allowed"):
        found([[2.0, 1.21]], coarse)
    with pytest.raises(ArtefactError, match=r"for 0\.00% of 1 images"):
        found([[1.0, 2.0]], exact)
    with pytest.raises(ArtefactError, match="nan apart"):
        found([[2.0, math.nan]], coarse)
    # The larger logit is the other one where both were as good as equal, no more.
    with pytest.raises(ArtefactError, match=r"for 50\.00% of 2 images"):
        found([[2.0, 1.0], [1.4, 1.6]], Bounds(8, 9, 0.4))
    assert found([[2.0, 1.0], [1.4, 1.6]], Bounds(8, 9, 0.5)).same_classes == 0.5


class Scale(nn.Module):
    """Multiplies by one number."""

    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.ones, (1, 1))
        pixels = images.reshape(len(images), 1).astype(self.dtype)
        return jnp.dot(pixels, kernel.astype(self.dtype))


def test_networks_are_compared_in_float32() -> None:
    """Whatever they compute in; 1.001 is 1 in bfloat16."""
    images = np.ones((2, 1, 1, 1), np.float32)
    one, other = (
        (
            Scale(jnp.bfloat16),
            {"params": {"kernel": np.float32([[k]])}, "batch_stats": {}},
        )
        for k in (1.0, 1.001)
    )
    assert logits_change(one, one, images) == 0
    assert logits_change(one, other, images) == pytest.approx(1e-3, rel=1e-3)
