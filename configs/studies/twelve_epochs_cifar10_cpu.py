"""The single pass with the 12 epochs that the long road of six_epochs_cifar10_cpu has.

    python launch.py --config=configs/cifar10_cpu.py --job=prepare
    python launch.py --job=study --study=configs/studies/twelve_epochs_cifar10_cpu.py

With --workdir=runs/studies/six_epochs_cifar10_cpu it takes that study's teacher.

Cost: about an hour on one CPU core, and half an hour for the teacher.
Expected: see results/twelve_epochs_cifar10_cpu.
"""

from dataclasses import replace

from alite_jax.study.declaration import Study
from alite_jax.study.declaration import get_study as named_study


def get_study() -> Study:
    """Returns the study."""
    six = named_study("six_epochs_cifar10_cpu")
    joint = six.rows["joint_0.1"]
    return replace(
        six,
        name="twelve_epochs_cifar10_cpu",
        title="CIFAR-10, reduced: 12 epochs in a single pass",
        description=(
            "As six_epochs_cifar10_cpu, with the same teacher of 6 epochs; the student"
            " has 12."
        ),
        rows={
            "joint_0.1_12": replace(
                joint, overrides=[*joint.overrides, "student.epochs=12"]
            ),
        },
    )
