"""A folder of photographs, one folder for each class, at the size of ImageNet's.

    python launch.py --config=configs/folder.py:PATH --workdir=runs/folder

PATH holds CLASS/image.jpg, of which a fifth of each class is held out for evaluation,
or train/CLASS/image.jpg and val/CLASS/image.jpg. From Python it is
`alite_jax.get_config("folder", {"data.folder": PATH})`.

Cost: that of ImageNet's networks at 224 pixels, so it wants an accelerator;
`configs/folder_cpu.py:PATH` is what 2 CPU cores do in minutes.
Expected: not measured in this size.
"""

from ml_collections import ConfigDict

from alite_jax.config import apply_arguments, default_config, split_argument

SMOKE = {"data.image_size": 16, "data.batch_size": 16, "data.eval_batch_size": 16}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the configuration; `arg` is the folder, and arguments after a comma."""
    folder, rest = split_argument(arg)
    config = default_config()
    config.data.name = "folder"
    config.data.folder = folder
    config.data.image_size = 224
    config.data.batch_size = 64
    config.data.view = "resized_crop"
    for network in (config.teacher, config.student):
        network.stem = "auto"
        network.optimizer.learning_rate = 0.05
    return apply_arguments(config, rest, SMOKE)
