"""Exporting a network as a program, and the checks before it is kept."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

from alite_jax.data.augment import normalize
from alite_jax.data.specs import DatasetSpec
from alite_jax.errors import ArtefactError
from alite_jax.models.model import Model
from alite_jax.models.precision import Bounds

PLATFORMS = ("cpu", "cuda", "tpu")

# Fraction of the images for which both programs must predict the same class.
SAME_CLASSES = 0.999

# Images that a program takes at a time on a CPU, as long as there are as many.
_GROUP = 16

# In each, a program is timed often enough to have its own weights in the cache.
_TURNS = 10

Forward = Callable[[chex.ArrayTree, jax.Array], jax.Array]
Name = TypeVar("Name")


class Agreement(NamedTuple):
    """How an exported program compares with the network it was made of.

    Attributes:
        same_classes: fraction of the images for which they predict the same class.
        logits_error: the largest difference of a logit.
        largest_logit: of the network.
        images: how many were compared.
    """

    same_classes: float
    logits_error: float
    largest_logit: float
    images: int


def forward_of(model: Model, spec: DatasetSpec) -> Forward:
    """The program of a network: `forward(weights, images) -> logits`.

    Images are uint8 and normalised as `spec`, that of the data set, says.
    """

    def forward(weights: chex.ArrayTree, images: jax.Array) -> jax.Array:
        inputs = normalize(images, spec.mean, spec.std)
        logits: jax.Array = model.apply(weights, inputs, train=False)
        return logits

    return forward


def export_program(
    forward: Forward, weights: chex.ArrayTree, image_shape: tuple[int, ...]
) -> bytes:
    """Writes a program as StableHLO for `PLATFORMS`, with a free batch dimension.

    On a CPU it goes through the batch in groups of a fixed size and then image by
    image: attention is several times as fast where it knows how many there are. So it
    does everywhere if the network asks for a number of images, as with `len`.

    Args:
        forward: from `forward_of`.
        weights: `params` and `batch_stats`; only their shapes go into the program.
        image_shape: (height, width, channels).
    """
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.uint8)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), weights)

    in_groups = partial(_in_groups, forward)
    anywhere = forward if _takes_any_batch(forward, shapes, images) else in_groups

    def program(weights: chex.ArrayTree, images: jax.Array) -> jax.Array:
        logits: jax.Array = jax.lax.platform_dependent(
            weights, images, cpu=in_groups, default=anywhere
        )
        return logits

    exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)(shapes, images)
    return bytes(exported.serialize())


def _takes_any_batch(
    forward: Forward, weights: chex.ArrayTree, images: jax.ShapeDtypeStruct
) -> bool:
    """Whether a program can be made without knowing how many images there are."""
    try:
        jax.eval_shape(forward, weights, images)
    except Exception:  # A module may do anything with a number that is none.
        return False
    return True


def _in_groups(
    forward: Forward, weights: chex.ArrayTree, images: jax.Array
) -> jax.Array:
    """`forward`, for `_GROUP` images at a time and then for one."""
    count = images.shape[0]
    # Wherever this is exported, attention must take the form for a CPU. Kernels
    # for a GPU could not even be part of a program for several platforms.
    forward = _on_cpu(forward)
    one = jax.eval_shape(forward, weights, images[:1])
    # Slices of a fixed size must fit in whatever the count is.
    rest = jnp.zeros((_GROUP, *images.shape[1:]), images.dtype)
    padded = jnp.concatenate([images, rest])
    logits = jnp.zeros((count + _GROUP, *one.shape[1:]), one.dtype)

    def through(size: int, start: jax.Array, logits: jax.Array) -> jax.Array:
        def step(i: jax.Array, logits: jax.Array) -> jax.Array:
            place = start + i * size
            part = jax.lax.dynamic_slice_in_dim(padded, place, size)
            found = forward(weights, part)
            return jax.lax.dynamic_update_slice_in_dim(logits, found, place, axis=0)

        steps = (jnp.asarray(count) - start) // size
        return jax.lax.fori_loop(0, steps, step, logits)

    logits = through(_GROUP, jnp.array(0), logits)
    logits = through(1, jnp.asarray(count) // _GROUP * _GROUP, logits)
    return logits[:count]


def _on_cpu(forward: Forward) -> Forward:
    """`forward`, made for CPUs whatever is here."""

    def run(weights: chex.ArrayTree, images: jax.Array) -> jax.Array:
        with jax.default_device("cpu"):
            return forward(weights, images)

    return run


def compare(ours: np.ndarray, theirs: np.ndarray, allowed: Bounds) -> Agreement:
    """Compares an exported program with the network, by logits of the same images.

    Args:
        ours: `[n, classes]`, of the program as it was read back.
        theirs: the same, of the network.
        allowed: by how much logits may differ. Where products are not exact, so may the
            class of an image whose two largest logits are no further apart.

    Raises:
        ArtefactError: they do not agree.
    """
    same = ours.argmax(axis=1) == theirs.argmax(axis=1)
    error, largest = (float(np.abs(x).max()) for x in (ours - theirs, theirs))
    agreement = Agreement(float(same.mean()), error, largest, len(same))
    most = allowed.logits_error * largest
    if not allowed.exact:
        second, first = np.sort(theirs, axis=1)[:, -2:].T
        same |= first - second <= most
    if same.mean() < SAME_CLASSES or not error <= most:
        raise ArtefactError(
            f"the exported program names the same class for"
            f" {agreement.same_classes:.2%} of {len(same)} images, with logits up to"
            f" {error:.2g} apart, where {most:.2g} is allowed; it is not kept, please"
            " report this"
        )
    return agreement


def milliseconds(
    calls: Mapping[Name, Callable[[np.ndarray], Any]],
    images: np.ndarray,
    at_least: float = 1.0,
) -> dict[Name, float]:
    """The median time of each call, in milliseconds, once it is compiled.

    They take turns, so that what else the machine does slows all of them alike.

    Args:
        calls: take the images each.
        images: a batch.
        at_least: seconds to measure each for.
    """
    for call in calls.values():
        jax.block_until_ready(call(images))
    times: dict[Name, list[float]] = {name: [] for name in calls}
    for turn in range(1, _TURNS + 1):
        for name, call in calls.items():
            while sum(times[name]) < at_least * turn / _TURNS or len(times[name]) < 5:
                start = time.perf_counter()
                jax.block_until_ready(call(images))
                times[name].append(time.perf_counter() - start)
    return {name: 1000 * float(np.median(each)) for name, each in times.items()}
