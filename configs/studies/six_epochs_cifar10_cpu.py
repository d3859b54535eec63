"""The claims once more with a better teacher: it and its students have 6 epochs each.

    python launch.py --config=configs/cifar10_cpu.py --job=prepare
    python launch.py --job=study --study=configs/studies/six_epochs_cifar10_cpu.py

The teacher of cifar10_cpu and longer_cifar10_cpu had 3 epochs.

Cost: about 25 minutes on one CPU core for each of 8 runs.
Expected: see results/six_epochs_cifar10_cpu.
"""

from dataclasses import replace

from alite_jax.study.declaration import Row, Study
from alite_jax.study.declaration import get_study as named_study
from alite_jax.study.method import short_training


def get_study() -> Study:
    """Returns the study."""
    short = named_study("cifar10_cpu")

    def longer(name: str, *seeds: int, question: str = "", **changes: float) -> Row:
        row = short.rows[name]
        fields = {"student.epochs": 6} | {f"pruning.{k}": v for k, v in changes.items()}
        return Row(
            question or row.question, [*row.overrides, fields], seeds, row.start_from
        )

    return replace(
        short,
        name="six_epochs_cifar10_cpu",
        title="CIFAR-10, reduced: with a teacher of 6 epochs",
        description=(
            "As cifar10_cpu, but teachers and students have 6 epochs each; the long"
            " road has 6 to distil and 6 to prune and fine-tune."
        ),
        overrides=short_training(epochs=6),
        rows={
            "dense_ce_0.2": longer(
                "dense_ce_0.2", question=short.rows["dense_ce"].question
            ),
            "dense_kd": longer("dense_kd"),
            "joint_0.1": longer("joint_0.1", 0, 1),
            "mixed_0.35_gradual": longer(
                "mixed_0.5_gradual",
                question="35 % of the MACs and a tenth of the weights, from dense",
                macs=0.35,
            ),
            "sequential": longer("sequential"),
        },
    )
