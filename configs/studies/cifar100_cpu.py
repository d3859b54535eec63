"""Whether the method also wins with 100 classes, as far as 2 CPU cores allow.

    python launch.py --config=configs/cifar100.py --job=prepare
    python launch.py --job=study --study=configs/studies/cifar100_cpu.py

Cost: about 20 minutes on 2 CPU cores for 3 runs.
Expected: see results/cifar100_cpu.
"""

from alite_jax.study.declaration import Study
from alite_jax.study.method import small_study


def get_study() -> Study:
    """Returns the study."""
    return small_study(
        "cifar100",
        "CIFAR-100",
        2,
        "All 50,000 training and 10,000 test images.",
    )
