"""CIFAR-100, 32x32, 100 classes, with the recipe of CIFAR-10.

    python launch.py --config=configs/cifar100.py --job=prepare
    python launch.py --config=configs/cifar100.py --workdir=runs/cifar100

Cost: the full-size recipe is meant for an accelerator (RESULT PENDING hours);
`configs/cifar100.py:smoke` takes RESULT PENDING seconds on 2 CPU cores.
Expected on the 10,000 test images: teacher RESULT PENDING %, student RESULT PENDING %.
The student keeps 10 % of its weights, 27.0 times fewer parameters than its teacher.
"""

from ml_collections import ConfigDict

from alite_jax.config import apply_arguments, default_config

SMOKE = {
    "data.train_split": "train[:512]",
    "data.eval_split": "test[:256]",
    "data.image_size": 16,
}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the configuration; `arg` as in `alite_jax.config.ARGUMENTS`."""
    config = default_config()
    config.data.name = "cifar100"
    return apply_arguments(config, arg, SMOKE)
