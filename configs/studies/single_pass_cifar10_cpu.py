"""The single pass against the long road, with many epochs of few images.

    python launch.py --config=configs/cifar10_cpu.py --job=prepare
    python launch.py --job=study --study=configs/studies/single_pass_cifar10_cpu.py

The paper trains 200 epochs, so that each image is seen as often as helps. In the 3 of
the study `cifar10_cpu` it is not, and whoever trains longer wins. Here a tenth of the
images is seen ten times as often.

Cost: about an hour on one CPU core for each seed.
Expected: see results/single_pass_cifar10_cpu.
"""

from dataclasses import replace

from alite_jax.study.declaration import Row, Study
from alite_jax.study.method import SHORT_PRUNING, method_rows, short_training

_EPOCHS = 30


def get_study() -> Study:
    """Returns the study."""
    faster = {"student.optimizer.learning_rate": 0.2}
    rows = method_rows(
        {
            "student.optimizer.learning_rate": 0.05,
            "student.optimizer.warmup_epochs": 0.5,
        },
        pruning={**SHORT_PRUNING, **faster},
    )
    rows["dense_kd"] = Row(rows["dense_kd"].question, ["student.density=1", faster])
    rows["gradual"] = replace(rows["gradual"], seeds=(0,))
    return Study(
        name="single_pass_cifar10_cpu",
        title="CIFAR-10, few images: the single pass against the long road",
        description=(
            "The first 5,000 training images and all 10,000 test images, averaged down"
            " to 16x16 pixels; networks 16 channels wide instead of 64; 30 epochs in"
            " batches of 64 instead of 200 in batches of 128. The long road trains for"
            " 30 epochs twice."
        ),
        config="cifar10_cpu",
        overrides=[short_training(_EPOCHS), {"data.train_split": "train[:5000]"}],
        rows={
            name: rows[name]
            for name in ("dense_kd", "joint_0.1", "gradual", "sequential")
        },
        seeds=(0, 1),
    )
