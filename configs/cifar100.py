"""CIFAR-100, 32x32, 100 classes, with the recipe of CIFAR-10.

    python launch.py --config=configs/cifar100.py --job=prepare
    python launch.py --config=configs/cifar100.py --workdir=runs/cifar100
    python launch.py --config=configs/cifar100.py --job=cost

Cost: 200 epochs each of teacher and student take 1.4e17 floating-point operations (6 a
MAC and training image, 2 for the frozen teacher's), so they want an accelerator;
`configs/cifar100.py:smoke` takes about 57 seconds on 2 CPU cores.
Expected on the 10,000 test images: not measured yet in the full size.
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
    # The default temperature is 4. The public code that the authors' own distillation
    # grew from has 20 for this data set, not compared yet:
    # config.distillation.temperature = 20.0
    return apply_arguments(config, arg, SMOKE)
