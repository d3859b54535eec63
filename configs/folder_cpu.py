"""A folder of photographs on 2 CPU cores: 96 pixels, narrow networks, fewer epochs.

    python launch.py --config=configs/folder_cpu.py:PATH --workdir=runs/folder_cpu

PATH is as for `configs/folder.py`.

Cost: 200 images in 5 classes took 9 minutes on 2 busy CPU cores, 40 epochs each.
Expected: so few images teach little; with 4,000 of 20 classes, see
results/photographs_cpu.
"""

from ml_collections import ConfigDict

from alite_jax.config import apply_arguments, split_argument
from alite_jax.config import get_config as named_config

SMOKE = {"data.image_size": 16, "data.batch_size": 16, "data.eval_batch_size": 16}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the configuration; `arg` is the folder, and arguments after a comma."""
    folder, rest = split_argument(arg)
    changes = {
        "data.image_size": 96,
        "data.batch_size": 32,
        "data.eval_batch_size": 32,
        "logging.every_steps": 10,
    }
    for network in ("teacher", "student"):
        changes |= {f"{network}.width": 16, f"{network}.epochs": 40}
    return apply_arguments(named_config(f"folder:{folder}", changes), rest, SMOKE)
