"""The method on CIFAR-10 at the paper's size: for an accelerator.

    python launch.py --config=configs/cifar10.py --job=prepare
    python launch.py --job=study --study=configs/studies/cifar10.py
    python launch.py --job=study --study=configs/studies/cifar10.py:short

The first study is the recipe of configs/cifar10.py with 200 epochs a training. `:short`
is 16 epochs of the teacher and 18 of each student in batches of 256: the settings of
results/h200_cifar10 and results/h100_cifar10, which are its row `joint_0.1`, trained by
earlier commits.

A row goes on from a teacher that is there already, be that a file or a run's folder:

    python launch.py --job=study --study=configs/studies/cifar10.py:short \
        --rows=joint_0.05 --config.teacher.weights=runs/cifar10/teacher.safetensors
    python launch.py --job=study --study=configs/studies/cifar10.py:short \
        --rows=joint_0.05 --config.teacher.workdir=runs/cifar10

`sequential` starts from `dense_kd`, which is trained before if it is not there.

Cost of `:short` on one GPU, reckoned and not measured, compiling included: at most 2.5
minutes for the teacher and 6 for each other row. All of the run on the H100 but its
teacher's epochs took 251 of 351 s, and on the H200 350 of 416 s; the other rows train
the same networks, `dense_ce` without the teacher. Both runs were without
`compute.deterministic`, whose cost is not known. Of 200 epochs, at the seconds that one
took there: at least 13 minutes for the teacher and 29 for each other row.
Expected of `:short`: see results/h100_cifar10. Of 200 epochs: not measured yet.
"""

from dataclasses import replace

from alite_jax.errors import ConfigError
from alite_jax.study.ablation_rows import SHORT_PRUNING, method_rows
from alite_jax.study.declaration import Study

LEARNING_RATE = 0.2  # Twice that of the recipe, as the batch is.
SHORT = {
    "data.batch_size": 256,
    "data.eval_batch_size": 1000,
    "teacher.epochs": 16,
    "teacher.optimizer.learning_rate": LEARNING_RATE,
    "teacher.optimizer.warmup_epochs": 1.0,
    "student.epochs": 18,
    "student.optimizer.learning_rate": LEARNING_RATE,
    "student.optimizer.warmup_epochs": 1.0,
    "distillation.alpha": 0.5,
    **SHORT_PRUNING,
}


def get_study(argument: str = "") -> Study:
    """Returns the study of 200 epochs, or the `short` one."""
    if argument not in ("", "short"):
        raise ConfigError(f"the one argument is 'short', found {argument!r}")
    short = argument == "short"
    rate = LEARNING_RATE if short else 0.1
    rows = method_rows(fine_tuning={"student.optimizer.learning_rate": rate / 4})
    mixed = rows["mixed_0.5_gradual"]
    rows["mixed_0.35_gradual"] = replace(
        mixed,
        question="35 % of the MACs and a tenth of the weights, pruned from dense",
        overrides=[*mixed.overrides, {"pruning.macs": 0.35}],
    )
    length = "200 epochs of the teacher and of each training of a student."
    if short:
        length = (
            "16 epochs of the teacher and 18 of each training of a student, in batches"
            " of 256, instead of 200 in batches of 128. The row `joint_0.1` was trained"
            " by earlier commits on an [H200](../h200_cifar10/README.md) and an"
            " [H100](../h100_cifar10/README.md)."
        )
    names = ("dense_ce", "dense_kd", "joint_0.1", "joint_0.05", "mixed_0.35_gradual")
    return Study(
        name="cifar10_short" if short else "cifar10",
        title="CIFAR-10 at the paper's size" + (", few epochs" if short else ""),
        description=(
            "All 50,000 training and 10,000 test images at their 32x32 pixels; networks"
            f" 64 channels wide; one seed. {length}"
        ),
        config="cifar10",
        overrides=[SHORT if short else {}, {"logging.tensorboard": False}],
        rows={name: rows[name] for name in (*names, "sequential")},
    )
