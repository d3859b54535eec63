"""The job `plan`: from a target that people think in to fields of the configuration."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alite_jax.config import override
from alite_jax.counting.layers import total_macs
from alite_jax.data.sources import describe
from alite_jax.data.specs import DatasetSpec
from alite_jax.deploy.pack import pack, unpack
from alite_jax.deploy.program import export_program, forward_of, milliseconds
from alite_jax.deploy.runtimes import compiled
from alite_jax.errors import ConfigError, nearest
from alite_jax.jax_settings import job, seed_key
from alite_jax.jobs.command import Command
from alite_jax.models.configured import configured_model, image_shape
from alite_jax.models.resnet import ResNet
from alite_jax.runs.networks import draw_masks
from alite_jax.sparsity.masks import apply_masks, count_nonzero, is_prunable
from alite_jax.structure.compact import compact, widths_as_json
from alite_jax.structure.configured import compactable, create_structure
from alite_jax.structure.widths import TOLERANCE, choose_widths
from alite_jax.trees import named_leaves, nested

# Fractions of the MACs that are timed; between them the time is interpolated.
_TIMED = (1.0, 0.7, 0.5, 0.35, 0.25)
_CLOSE = 0.005  # No need to come closer to a number of bytes.
_MOST = 6  # Sizes that are tried for it.
# Bytes of trained masks over those of masks that are random within each layer: 0.832 to
# 0.840 in the seven runs of results/cifar10_cpu with 5 to 10 % of the weights. Other
# methods leave them as they are (gradual pruning 0.99).
_MASK_BYTES = {"sparse_momentum": 0.833}


class Planned(NamedTuple):
    """How to reach a target.

    Attributes:
        changes: what to override in the configuration.
        reached: what that gives, in the unit of the target.
        table: for milliseconds, the times by fraction of the MACs.
    """

    changes: dict[str, Any]
    reached: float
    table: dict[float, float]


class _Student(NamedTuple):
    model: ResNet
    spec: DatasetSpec
    shape: tuple[int, int, int]


def run(command: Command) -> None:
    """Prints the arguments that reach `--target`."""
    kind, _, text = (command.flags.target or "").partition("=")
    try:
        value = float(text)
    except ValueError as error:
        raise ConfigError(
            "--job=plan needs --target=KIND=NUMBER, such as --target=bytes=90000"
        ) from error
    planned = plan(command.config(), kind, value, command.flags.batch)
    print(plan_text(kind, value, planned))


@job
def plan(config: ConfigDict, kind: str, value: float, batch: int = 1) -> Planned:
    """Works out the fields that reach a target; trains nothing and reads no data.

    Args:
        config: the whole configuration. Where its `pruning.structure` is `"none"`,
            targets of speed take `"heads"`.
        kind: what is meant, one of these. The first two set `student.density`, the
            others `pruning.macs`:
            `"parameters"`, those that are not zero;
            `"bytes"` of the packed file with int8 values, for masks as the method of
            the configuration leaves them;
            `"macs"` of the student once compacted;
            `"milliseconds"` of the exported student on this machine.
        value: the target; MACs of at most 1 are a fraction of the student's.
        batch: images in a batch, for milliseconds.

    Returns:
        A named tuple: `changes`, what to override in the configuration; `reached`, what
        that gives; `table`, for milliseconds, the times by fraction of the MACs.

    Raises:
        ConfigError: there is no such kind, or the target cannot be reached.

    Example:
        >>> planned = alite_jax.plan(config, "macs", 0.8)
        >>> planned.changes
        {'pruning.structure': 'heads', 'pruning.macs': 0.8}
        >>> smaller = alite_jax.override(config, planned.changes)
    """
    if kind not in _KINDS:
        raise ConfigError(f"--target: {kind!r} is none; {nearest(kind, _KINDS)}")
    dataset = describe(config.data)
    model = configured_model(config, "student", dataset)
    model = compactable(model, "--job=plan tries out widths")
    student = _Student(model, dataset, image_shape(config, dataset))
    return _KINDS[kind](config, student, value, batch)


def _parameters(
    config: ConfigDict, student: _Student, value: float, batch: int
) -> Planned:
    params = jax.eval_shape(partial(_draw, student.model, student.shape))["params"]
    named = named_leaves(params)
    whole = sum(leaf.size for _, leaf in named)
    prunable = sum(leaf.size for path, leaf in named if is_prunable(path, leaf))
    density = (value - (whole - prunable)) / prunable
    if not 0 < density <= 1:
        fewest = whole - prunable
        raise ConfigError(
            f"--target: {value:,.0f} parameters cannot be reached: {fewest:,} are never"
            f" pruned, and the whole student has {whole:,}"
        )
    changes = {"student.density": round(density, 6)}
    kept, params = _masks(override(config, changes), student)
    return Planned(changes, count_nonzero(kept, params), {})


def _bytes(config: ConfigDict, student: _Student, value: float, batch: int) -> Planned:
    mask_bytes = _MASK_BYTES.get(config.pruning.method, 1.0)

    def size(density: float) -> int:
        changed = override(config, {"student.density": density})
        masks, params = _masks(changed, student)
        params = jax.device_get(apply_masks(masks, params))
        variables = _draw(student.model, student.shape) | {
            "params": params,
            "masks": jax.device_get(masks),
        }
        smaller = compact(student.model, jax.tree.map(np.array, variables))
        described = {"widths": widths_as_json(smaller.model)}
        content = pack(described, smaller.variables, "int8")
        saved = (1 - mask_bytes) * unpack(content).sizes["masks"]
        return len(content) - round(saved)

    # Bytes grow about in proportion, and each size takes seconds: a few secants.
    before, density = 0.0, min(0.5, config.student.density)
    sizes = {before: 0, density: size(density)}
    while abs(sizes[density] - value) > _CLOSE * value and len(sizes) <= _MOST:
        slope = (sizes[density] - sizes[before]) / (density - before)
        wanted = density + (value - sizes[density]) / (slope or 1.0)
        wanted = round(min(0.99, max(0.001, wanted)), 6)
        if wanted in sizes:
            break
        before, density = density, wanted
        sizes[density] = size(density)
    if abs(sizes[density] - value) > TOLERANCE * value:
        raise ConfigError(
            f"--target: {value:,.0f} bytes cannot be reached: at density {density:g} it"
            f" is {sizes[density]:,}"
        )
    return Planned({"student.density": density}, sizes[density], {})


def _macs(config: ConfigDict, student: _Student, value: float, batch: int) -> Planned:
    dense = total_macs(student.model, student.shape)
    fraction = value if value <= 1 else value / dense
    if not 0 < fraction <= 1:
        raise ConfigError(f"--target: the whole student has {dense:,} MACs")
    structure = _structure(config)
    found = choose_widths(
        student.model, student.shape, structure, fraction, config.pruning.multiple
    )
    changes = {"pruning.structure": structure, "pruning.macs": round(fraction, 6)}
    return Planned(changes, found.macs / (dense if value <= 1 else 1), {})


def _milliseconds(
    config: ConfigDict, student: _Student, value: float, batch: int
) -> Planned:
    structure = _structure(config)
    images = np.zeros((batch, *student.shape), np.uint8)
    calls = {}
    for fraction in _TIMED:
        try:
            found = choose_widths(
                student.model,
                student.shape,
                structure,
                fraction,
                config.pruning.multiple,
            )
        except ConfigError:  # Not within reach of these units and multiples.
            continue
        model = student.model.clone(widths=found.widths)
        weights = _draw(model, student.shape)
        program = export_program(
            forward_of(model, student.spec), weights, student.shape
        )
        calls[found.macs / found.dense_macs] = compiled(program, weights)
    table = milliseconds(calls, images)
    fractions = sorted(table)  # At least that of the whole student.
    times = np.maximum.accumulate([table[fraction] for fraction in fractions])
    if not times[0] <= value <= times[-1]:
        raise ConfigError(
            f"--target: {value:g} ms for a batch of {batch} cannot be reached: here"
            f" the student takes from {times[0]:.3g} to {times[-1]:.3g} ms"
        )
    fraction = float(np.interp(value, times, fractions))
    changes = {"pruning.structure": structure, "pruning.macs": round(fraction, 4)}
    return Planned(changes, float(np.interp(fraction, fractions, times)), table)


_KINDS: dict[str, Callable[[ConfigDict, _Student, float, int], Planned]] = {
    "parameters": _parameters,
    "bytes": _bytes,
    "macs": _macs,
    "milliseconds": _milliseconds,
}


def _structure(config: ConfigDict) -> str:
    return str(
        config.pruning.structure if config.pruning.structure != "none" else "heads"
    )


def _masks(
    config: ConfigDict, student: _Student
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """Masks as random as those of a trained network, and parameters.

    What gradual pruning leaves at the end is drawn like the start of the others.
    """
    config = override(config, {"pruning.method": "static"})
    structure = create_structure(config, student.model, student.shape)
    params = _draw(student.model, student.shape)["params"]
    key = seed_key(config.seed)
    return jax.jit(partial(draw_masks, config, structure))(key, params), params


def _draw(model: ResNet, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Variables, of which what is not a kernel is noise and cannot be compressed."""
    images = jnp.zeros((1, *shape), jnp.float32)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)
    random = np.random.default_rng(0)

    def noise(path: str, leaf: jax.Array) -> jax.Array:
        if path.endswith("kernel"):
            return leaf
        values = random.normal(size=leaf.shape)
        if path.endswith(("scale", "var")):
            values = np.exp(values)
        return jnp.asarray(values, leaf.dtype)

    return {
        kind: nested({path: noise(path, leaf) for path, leaf in named_leaves(tree)})
        for kind, tree in variables.items()
    }


def plan_text(kind: str, value: float, planned: Planned) -> str:
    """What was planned, to people: the arguments that reach it and what it gives."""
    lines = [
        f"{fraction:8.1%} of the MACs: {time:.3g} ms"
        for fraction, time in sorted(planned.table.items())
    ]
    fields = " ".join(f"--config.{name}={v}" for name, v in planned.changes.items())
    lines.append(f"{fields}  # {planned.reached:,.6g} {kind}, asked for {value:,.6g}")
    return "\n".join(lines)
