"""The rows of longer_cifar10_cpu once more, with a teacher of 6 epochs instead of 3.

    python launch.py --config=configs/cifar10_cpu.py --job=prepare
    python launch.py --job=study --study=configs/studies/six_epochs_cifar10_cpu.py

Cost: about half an hour on one CPU core for each of 5 runs.
Expected: see results/six_epochs_cifar10_cpu.
"""

from dataclasses import replace

from alite_jax.study.declaration import Study
from alite_jax.study.declaration import get_study as named_study
from alite_jax.study.method import short_training


def get_study() -> Study:
    """Returns the study."""
    return replace(
        named_study("longer_cifar10_cpu"),
        name="six_epochs_cifar10_cpu",
        title="CIFAR-10, reduced: with a teacher of 6 epochs",
        description=(
            "As longer_cifar10_cpu, but the teacher has 6 epochs, too, and a student"
            " that starts from scratch warms up for one epoch instead of a half."
        ),
        overrides=short_training(epochs=6),
    )
