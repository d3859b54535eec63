"""What fewer heads and channels are worth in an exported program, and its teacher."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from alite_jax.data.specs import DATASETS
from alite_jax.deploy.program import export_program, forward_of
from alite_jax.deploy.runtimes import compiled
from alite_jax.models.resnet import ResNet, create_model
from alite_jax.structure.widths import choose_widths
from benchmarks.timing import Row, Rows, interleave, milliseconds, ratios

FRACTIONS = (0.5, 0.3)
BATCHES = (1, 64)
SPEC = DATASETS["cifar10"]
SHAPE = (16, 16, 3)
WIDTH = 16


def compare(rounds: int) -> Rows:
    """Times the student as it is and with less, and the teacher, all exported alike.

    They have the size of `configs/cifar10_cpu.py` and weights as drawn.
    """
    create = partial(create_model, num_classes=SPEC.num_classes, width=WIDTH)
    student = create("resnet26_attention")
    calls = {"teacher": _exported(create("resnet50")), "student": _exported(student)}
    macs = {}
    for fraction in FRACTIONS:
        for structure in ("heads", "channels"):
            name = f"{structure}_{fraction:g}"
            chosen = choose_widths(student, SHAPE, structure, fraction)
            calls[name] = _exported(student.clone(widths=chosen.widths))
            macs[name] = chosen.dense_macs / chosen.macs
    rows = {}
    random = np.random.default_rng(0)
    for batch in BATCHES:
        images = random.integers(0, 256, (batch, *SHAPE), np.uint8)
        peers = {name: partial(call, images) for name, call in calls.items()}
        times = interleave(peers, rounds)
        end = f"_batch_{batch}"
        for name in ("teacher", "student"):
            rows[f"exported_{name}{end}"] = milliseconds(times[name], name)
        for name, promised in macs.items():
            gain = Row.of(
                ratios(times["student"], times[name]),
                "x",
                f"whole student over one with {promised:.2f} times fewer MACs",
            )
            rows[f"{name}{end}"] = gain
            share = [value / promised for value in (gain.value, gain.low, gain.high)]
            detail = "speed-up over what the MACs promise"
            rows[f"{name}{end}_share"] = Row(share[0], "x", share[1], share[2], detail)
            against = ratios(times["teacher"], times[name])
            rows[f"{name}{end}_vs_teacher"] = Row.of(against, "x", "teacher over this")
    return rows


def _exported(model: ResNet) -> Callable[[Any], jax.Array]:
    image = np.zeros((1, *SHAPE), np.float32)
    init = jax.jit(partial(model.init, train=False))
    weights = init(jax.random.key(0), image)
    return compiled(export_program(forward_of(model, SPEC), weights, SHAPE), weights)
