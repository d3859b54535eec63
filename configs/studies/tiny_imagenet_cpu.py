"""Whether the method also wins with 200 classes, as far as 2 CPU cores allow.

    python launch.py --config=configs/tiny_imagenet.py --job=prepare
    python launch.py --job=study --study=configs/studies/tiny_imagenet_cpu.py

Cost: about 15 minutes on 2 CPU cores for 3 runs.
Expected: see results/tiny_imagenet_cpu.
"""

from dataclasses import replace

from alite_jax.study.declaration import Study
from alite_jax.study.declaration import get_study as named_study


def get_study() -> Study:
    """Returns the study of CIFAR-100 with other images."""
    return replace(
        named_study("cifar100_cpu"),
        name="tiny_imagenet_cpu",
        title="Tiny-ImageNet, reduced: the method against the plain student",
        description=(
            "Images averaged down to 16x16 pixels; networks 16 channels wide instead of"
            " 64; 2 epochs in batches of 64 instead of 200 in batches of 128; one seed."
            " The results come from 40,000 of the 100,000 training images, and all"
            " 10,000 validation images."
        ),
        config="tiny_imagenet",
    )
