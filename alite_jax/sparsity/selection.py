"""Exact top-k as a mask, for a k that is only known at run time."""

import jax
import jax.numpy as jnp


def top(scores: jax.Array, count: jax.Array | int) -> jax.Array:
    """Marks exactly the `count` highest scores; of equal ones the first are taken.

    The threshold is found bit by bit: 32 counts over the array, which compile and run
    several times as fast as a sort.

    Args:
        scores: `[n]`, float32; no NaN and no negative zero.
        count: integer in [0, n], may be traced.

    Returns:
        bool `[n]`.
    """
    # Unsigned integers in the order of the floats: negative ones flip all their bits,
    # positive ones the sign.
    bits = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.uint32)
    negative = bits >> 31 == 1
    ordered = jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))

    def decide_bit(step: jax.Array, threshold: jax.Array) -> jax.Array:
        higher = threshold | (jnp.uint32(1) << (31 - step).astype(jnp.uint32))
        return jnp.where(jnp.sum(ordered >= higher) >= count, higher, threshold)

    threshold = jax.lax.fori_loop(0, 32, decide_bit, jnp.uint32(0))
    above = ordered > threshold
    equal = ordered == threshold
    return above | (equal & (jnp.cumsum(equal) <= count - jnp.sum(above)))
