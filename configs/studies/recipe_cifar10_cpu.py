"""Which recipe the study of CIFAR-10 should use, chosen without its test images.

    python launch.py --config=configs/cifar10_cpu.py --job=prepare
    python launch.py --job=study --study=configs/studies/recipe_cifar10_cpu.py

A fifth of the training images trains, their last tenth evaluates. Each row changes one
field of `base`.

Cost: about 25 minutes on 2 CPU cores for 11 runs, each in a process of its own.
Expected: see results/recipe_cifar10_cpu.
"""

from typing import Any

from alite_jax.study.declaration import Row, Study

BASE: dict[str, Any] = {
    "distillation.alpha": 0.9,
    "distillation.temperature": 4.0,
    "pruning.prune_rate": 0.5,
    "pruning.every_steps": 100,
    "pruning.distribution": "uniform",
    "student.border": "zero",
    "student.optimizer.learning_rate": 0.1,
}
OTHERS: dict[str, list[Any]] = {
    "distillation.alpha": [0.5],
    "distillation.temperature": [1.0, 2.0],
    "pruning.prune_rate": [0.3],
    "pruning.every_steps": [0],
    "pruning.distribution": ["erk"],
    "student.border": ["mask"],
    "student.optimizer.learning_rate": [0.05, 0.2],
}


def get_study() -> Study:
    """Returns the study."""
    rows = {"base": Row("the recipe so far")}
    for field, values in OTHERS.items():
        for value in values:
            name = f"{field.rpartition('.')[2]}_{value}"
            rows[name] = Row(
                f"`{field}` {value} instead of {BASE[field]}", {field: value}
            )
    return Study(
        name="recipe_cifar10_cpu",
        title="CIFAR-10, reduced: a choice of recipe",
        description=(
            "Trained with the first 10,000 training images and evaluated with the last"
            " 5,000 of them; the test images stay unseen. 5 epochs in batches of 64,"
            " one seed: only differences of several points mean something."
        ),
        config="cifar10_cpu",
        overrides=[
            BASE,
            {
                "data.train_split": "train[:20%]",
                "data.eval_split": "train[90%:]",
                "data.batch_size": 64,
                "teacher.epochs": 5,
                "teacher.optimizer.warmup_epochs": 0.5,
                "student.epochs": 5,
                "student.optimizer.warmup_epochs": 0.5,
                "student.density": 0.1,
                "logging.tensorboard": False,
            },
        ],
        rows=rows,
    )
