"""Single passes of 6 epochs, as many as the long road of the study cifar10_cpu has.

    python launch.py --config=configs/cifar10_cpu.py --job=prepare
    python launch.py --job=study --study=configs/studies/longer_cifar10_cpu.py

The long road there distils for 3 epochs, then prunes and fine-tunes for 3. Here the
single pass has the same teacher and the same 6 epochs.

Cost: about half an hour on one CPU core for each of 3 runs.
Expected: see results/longer_cifar10_cpu.
"""

from dataclasses import replace

from alite_jax.study.declaration import Row, Study
from alite_jax.study.declaration import get_study as named_study


def get_study() -> Study:
    """Returns the study."""
    short = named_study("cifar10_cpu")
    longer = {"student.epochs": 6}
    return replace(
        short,
        name="longer_cifar10_cpu",
        title="CIFAR-10, reduced: single passes as long as the long road",
        description=(
            "As cifar10_cpu, with the same teachers of 3 epochs; the students have 6."
        ),
        rows={
            "joint_0.1": Row(
                short.rows["joint_0.1"].question,
                [*short.rows["joint_0.1"].overrides, longer],
            ),
            "mixed_0.35_gradual": Row(
                "35 % of the MACs and a tenth of the weights, pruned from dense",
                [
                    *short.rows["mixed_0.5_gradual"].overrides,
                    {"pruning.macs": 0.35},
                    longer,
                ],
                seeds=(0, 1),
            ),
        },
    )
