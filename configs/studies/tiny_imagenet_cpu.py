"""Whether the method also wins with 200 classes, as far as 2 CPU cores allow.

    python launch.py --config=configs/tiny_imagenet.py --job=prepare
    python launch.py --job=study --study=configs/studies/tiny_imagenet_cpu.py

Cost: about 15 minutes on 2 CPU cores for 3 runs.
Expected: see results/tiny_imagenet_cpu.
"""

from alite_jax.study.declaration import Study
from alite_jax.study.method import small_study


def get_study() -> Study:
    """Returns the study."""
    return small_study(
        "tiny_imagenet",
        "Tiny-ImageNet",
        2,
        "The results come from 40,000 of the 100,000 training images, and all"
        " 10,000 validation images.",
    )
