"""CIFAR-10 as one evening on 2 CPU cores allows it: reduced width, pixels and epochs.

    python launch.py --config=configs/cifar10_cpu.py --workdir=runs/cifar10_cpu

What is reduced: 16 channels in the stem instead of 64, images averaged down to 16x16, 8
epochs each instead of 200. All 50,000 training and 10,000 test images are used.

Cost: about an hour and a half on 2 busy CPU cores.
Expected on the 10,000 test images: not measured in this length; with 3 epochs in
batches of 64, and other settings that suit so few, see results/cifar10_cpu.
"""

from ml_collections import ConfigDict

from alite_jax.config import apply_arguments, default_config

SMOKE = {"data.train_split": "train[:512]", "data.eval_split": "test[:256]"}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the configuration; `arg` as in `alite_jax.config.ARGUMENTS`."""
    config = default_config()
    config.data.name = "cifar10"
    config.data.image_size = 16
    config.data.crop_padding = 2
    config.teacher.width = 16
    config.teacher.epochs = 8
    config.student.width = 16
    config.student.epochs = 8
    config.student.density = 0.075
    for network in (config.teacher, config.student):
        network.optimizer.warmup_epochs = 1.0
    return apply_arguments(config, arg, SMOKE)
