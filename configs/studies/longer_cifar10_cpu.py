"""The single pass against the long road, with twice the epochs of cifar10_cpu.

    python launch.py --config=configs/cifar10_cpu.py --job=prepare
    python launch.py --job=study --study=configs/studies/longer_cifar10_cpu.py

The joint pass has as many epochs here as the long road has there in all (3 to distil,
3 to prune and fine-tune), with the same teacher; and the long road has twice as many.

Cost: about half an hour on one CPU core for each of 4 runs.
Expected: see results/longer_cifar10_cpu.
"""

from dataclasses import replace

from alite_jax.study.declaration import Row, Study
from alite_jax.study.declaration import get_study as named_study


def get_study() -> Study:
    """Returns the study."""
    short = named_study("cifar10_cpu")

    def longer(name: str, question: str = "", **changes: float) -> Row:
        row = short.rows[name]
        fields = {"student.epochs": 6} | {f"pruning.{k}": v for k, v in changes.items()}
        return replace(
            row,
            question=question or row.question,
            overrides=[*row.overrides, fields],
            seeds=(),
        )

    return replace(
        short,
        name="longer_cifar10_cpu",
        title="CIFAR-10, reduced: the single pass against the long road, longer",
        description=(
            "As cifar10_cpu, with the same teacher of 3 epochs; each training of a"
            " student has 6."
        ),
        rows={
            "dense_kd": longer("dense_kd"),
            "joint_0.1": longer("joint_0.1"),
            "mixed_0.35_gradual": longer(
                "mixed_0.5_gradual",
                "35 % of the MACs and a tenth of the weights, pruned from dense",
                macs=0.35,
            ),
            "sequential": longer("sequential"),
        },
    )
