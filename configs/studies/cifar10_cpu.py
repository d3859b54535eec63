"""What each part of the method contributes, on CIFAR-10 as 2 CPU cores allow it.

    python launch.py --config=configs/cifar10_cpu.py --job=prepare
    python launch.py --job=study --study=configs/studies/cifar10_cpu.py

Cost: about 4 hours on 2 CPU cores for 30 runs, in any number of sittings and, with
--rows, on several machines.
Expected: see results/cifar10_cpu.
"""

from alite_jax.study.ablation_rows import SHORT_PRUNING, method_rows, short_training
from alite_jax.study.declaration import Row, Study


def get_study() -> Study:
    """Returns the study."""
    # For sparse students of few epochs: results/recipe_cifar10_cpu_combined.
    faster = {"student.optimizer.learning_rate": 0.2}
    rows = method_rows(
        {
            "student.epochs": 3,
            "student.optimizer.learning_rate": 0.05,
            "student.optimizer.warmup_epochs": 0.5,
        },
        claim_seeds=(0, 1, 2),
        pruning={**SHORT_PRUNING, **faster},
    )
    rows["dense_kd"] = Row(rows["dense_kd"].question, ["student.density=1", faster])
    rows["dense_ce_0.2"] = Row(
        "`dense_ce` at the others' learning rate",
        [*rows["dense_ce"].overrides, faster],
    )
    for macs in (0.35, 0.3):
        rows[f"sequential_mixed_{macs}_longer"] = Row(
            f"mixed at {round(100 * macs)} %, with 6 epochs to prune and fine-tune",
            [
                *rows["sequential_mixed_0.3"].overrides,
                {"pruning.macs": macs, "student.epochs": 6},
            ],
            start_from="dense_kd",
        )
    return Study(
        name="cifar10_cpu",
        title="CIFAR-10, reduced: the parts of the method",
        description=(
            "All 50,000 training and 10,000 test images, averaged down to 16x16 pixels;"
            " networks 16 channels wide instead of 64; 3 epochs in batches of 64"
            " instead of 200 in batches of 128. The rows that claims rest on have three"
            " seeds, the others one."
        ),
        config="cifar10_cpu",
        overrides=short_training(epochs=3),
        rows=rows,
    )
