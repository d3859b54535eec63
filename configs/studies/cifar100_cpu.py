"""Whether the method also wins with 100 classes, as far as 2 CPU cores allow.

    python launch.py --config=configs/cifar100.py --job=prepare
    python launch.py --job=study --study=configs/studies/cifar100_cpu.py

Cost: about 20 minutes on 2 CPU cores for 3 runs.
Expected: see results/cifar100_cpu.
"""

from alite_jax.study.ablation_rows import SHORT_PRUNING, method_rows, short_training
from alite_jax.study.declaration import Study


def get_study() -> Study:
    """Returns the study."""
    rows = method_rows(fine_tuning={}, pruning=SHORT_PRUNING)
    return Study(
        name="cifar100_cpu",
        title="CIFAR-100, reduced: the method against the plain student",
        description=(
            "Images averaged down to 16x16 pixels; networks 16 channels wide instead of"
            " 64; 2 epochs in batches of 64 instead of 200 in batches of 128; one seed."
            " All 50,000 training and 10,000 test images."
        ),
        config="cifar100",
        overrides=[
            short_training(epochs=2),
            {
                "data.image_size": 16,
                "data.crop_padding": 2,
                "teacher.width": 16,
                "student.width": 16,
            },
        ],
        rows={row: rows[row] for row in ("dense_ce", "joint_0.1")},
    )
