"""The single pass against the sequential pipeline, by the number of epochs.

    python launch.py --config=configs/cifar10_cpu.py --job=prepare
    python launch.py --job=study --study=configs/studies/epochs_cifar10_cpu.py:6,12

The argument is the epochs of the teacher, then those of each training of a student:
3,6, 6,6, 6,12 or 30,30. The sequential pipeline trains its student twice. With 30,30 a
tenth of the images is seen ten times as often: in the paper's 200 epochs each image is
seen as often as helps, and in a few of all images it is not, so that whoever trains
longer wins.

Teachers of equal epochs are equal: copied to `teacher/` of another argument's workdir,
one need not be trained again.

Cost: on one CPU core, half an hour for each 6 epochs, a quarter for 30 of few images.
Expected: see results/epochs_cifar10_cpu_6_12 and its neighbours.
"""

from dataclasses import replace

from alite_jax.errors import ConfigError, nearest
from alite_jax.study.ablation_rows import short_training
from alite_jax.study.declaration import Row, Study
from alite_jax.study.declaration import get_study as named_study

EPOCHS = ("3,6", "6,6", "6,12", "30,30")


def get_study(argument: str = "") -> Study:
    """Returns the study for one of `EPOCHS`."""
    if argument not in EPOCHS:
        raise ConfigError(
            "give the epochs of teacher and student behind the study, as in"
            f" epochs_cifar10_cpu:6,12; found {argument!r}, {nearest(argument, EPOCHS)}"
        )
    teacher, student = map(int, argument.split(","))
    few_images = teacher == 30
    method = named_study("cifar10_cpu").rows

    def row(name: str, question: str = "", **pruning: float) -> Row:
        changes = {"student.epochs": student, "pruning": pruning}
        return replace(
            method[name],
            question=question or method[name].question,
            overrides=[*method[name].overrides, changes],
            seeds=(),
        )

    images = "The first 5,000" if few_images else "All 50,000"
    return replace(
        named_study("cifar10_cpu"),
        name=f"epochs_cifar10_cpu_{teacher}_{student}",
        title=(
            f"CIFAR-10, reduced: {teacher} epochs of the teacher, {student} of each"
            " training of a student"
        ),
        description=(
            f"{images} training and 10,000 test images, averaged down to 16x16 pixels;"
            " networks 16 channels wide instead of 64; batches of 64 instead of 128."
            " The sequential pipeline trains its student twice."
        ),
        overrides=[
            short_training(teacher),
            {"data.train_split": "train[:5000]" if few_images else ""},
        ],
        rows={
            "dense_kd": row("dense_kd"),
            "joint_0.1": row("joint_0.1"),
            "gradual": row("gradual"),
            "mixed_0.35_gradual": row(
                "mixed_0.5_gradual",
                "35 % of the MACs and a tenth of the weights, pruned from dense",
                macs=0.35,
            ),
            "sequential": row("sequential"),
        },
        seeds=(0, 1) if few_images else (0,),
    )
