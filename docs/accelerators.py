"""What the full-size recipes need on accelerators, by counting; nothing is measured.

    python docs/accelerators.py

prints the tables of docs/accelerators.md.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import alite_jax
from alite_jax.counting.comparison import configured_costs
from alite_jax.data.specs import DATASETS
from alite_jax.pages.table import markdown

UTILISATION = 0.4
IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "tiny_imagenet": 100_000}


class Chip(NamedTuple):
    """What its maker says of a chip: bfloat16 operations a second, bytes of memory."""

    peak: float
    memory: float


CHIPS = {
    "TPU v4": Chip(275e12, 32e9),
    "TPU v5e": Chip(197e12, 16e9),
    "TPU v5p": Chip(459e12, 95e9),
    "TPU v6e": Chip(918e12, 32e9),
    "A100": Chip(312e12, 80e9),
    "H100": Chip(989e12, 80e9),
}


def operations(config: Any, images: int) -> float:
    """Floating-point operations of a whole run.

    Two for each MAC; backward passes take twice the forward one; the frozen teacher
    goes forward once more for each image that the student sees.
    """
    teacher, student = (network.total.macs for network in configured_costs(config))
    training = 6 * teacher * config.teacher.epochs
    joint = (6 * student + 2 * teacher) * config.student.epochs
    return float(images) * (training + joint)


def memory(config: Any) -> tuple[float, float]:
    """Bytes of a training step of the student: whatever the batch, and for each image.

    Fixed are its float32 parameters, momentum and gradients and the teacher's
    parameters. An image keeps, until the backward pass, each activation in bfloat16
    three times: as the layer gave it, normalised, and rectified.
    """
    teacher, student = (network.total for network in configured_costs(config))
    fixed = 4.0 * (3 * student.parameters + teacher.parameters)
    return fixed, 2.0 * 3 * student.activations


def tables() -> str:
    """Returns both tables as Markdown."""
    head = ["data set", "operations", *CHIPS]
    hours, batches = [head], [["data set", "a step", "an image", *CHIPS]]
    for name, images in IMAGES.items():
        config = alite_jax.get_config(name)
        total = operations(config, images)
        fixed, each = memory(config)
        size = DATASETS[name].image_shape[0]
        label = f"{name}, {size}x{size}"
        hours.append(
            [label, f"{total:.1e}"]
            + [f"{total / (UTILISATION * c.peak) / 3600:.2f}" for c in CHIPS.values()]
        )
        batches.append(
            [label, f"{fixed / 1e6:.0f} MB", f"{each / 1e6:.0f} MB"]
            + [str(_largest(fixed, each, chip.memory)) for chip in CHIPS.values()]
        )
    return "\n".join([*markdown(hours), "", *markdown(batches)])


def _largest(fixed: float, each: float, memory: float) -> int:
    """The largest power of two that fits in nine tenths of the memory."""
    return int(2 ** (int((0.9 * memory - fixed) / each).bit_length() - 1))


if __name__ == "__main__":
    print(tables())
