"""Any data set for classification that TFDS knows, by its name there.

    python launch.py --config=configs/tfds.py:NAME --job=prepare
    python launch.py --config=configs/tfds.py:NAME --workdir=runs/tfds

Images keep their size; where they have several, `--config.data.image_size=224` gives
them one. From Python it is `alite_jax.get_config("tfds:svhn_cropped")`, for example.

Cost: that of CIFAR-10 for images of 32 pixels; the recipe is the same, but for the stem
of ImageNet's networks from 96 pixels on.
Expected: not measured.
"""

from ml_collections import ConfigDict

from alite_jax.config import apply_arguments, default_config, split_argument

SMOKE = {"data.train_split": "train[:512]", "data.eval_split": "test[:256]"}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the configuration; `arg` is the name, and arguments after a comma."""
    name, rest = split_argument(arg)
    config = default_config()
    config.data.name = name or config.data.name
    for network in (config.teacher, config.student):
        network.stem = "auto"
    return apply_arguments(config, rest, SMOKE)
