"""The method on a folder of photographs: 20 classes of Tiny-ImageNet at 64 pixels.

    python -m benchmarks.tiny_imagenet_folder photographs
    python launch.py --job=study --study=configs/studies/photographs_cpu.py

The first line makes the folder; `--config.data.folder=PATH` takes it from elsewhere.

Cost: about half an hour a run on 2 busy CPU cores, for 3 runs.
Expected: see results/photographs_cpu.
"""

from alite_jax.study.ablation_rows import method_rows
from alite_jax.study.declaration import Study


def get_study() -> Study:
    """Returns the study."""
    rows = method_rows(fine_tuning={})
    return Study(
        name="photographs_cpu",
        title="A folder of photographs, reduced: the method against the plain student",
        description=(
            "20 classes of Tiny-ImageNet as a folder of JPEG files, 200 to train on and"
            " 50 to evaluate on of each, at their 64x64 pixels; the stem of ImageNet's"
            " networks; 16 channels wide; 20 epochs in batches of 32; one seed."
        ),
        config="folder_cpu:photographs",
        overrides={
            "data.image_size": 64,
            "teacher.stem": "imagenet",
            "student.stem": "imagenet",
            "teacher.epochs": 20,
            "student.epochs": 20,
            "logging.tensorboard": False,
        },
        rows={row: rows[row] for row in ("dense_ce", "joint_0.1")},
    )
