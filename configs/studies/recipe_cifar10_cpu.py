"""Which recipe the study of CIFAR-10 should use, chosen without its test images.

    python launch.py --config=configs/cifar10_cpu.py --job=prepare
    python launch.py --job=study --study=configs/studies/recipe_cifar10_cpu.py
    python launch.py --job=study --study=configs/studies/recipe_cifar10_cpu.py:combined

A fifth of the training images trains, their last tenth evaluates. Each row changes one
field of `base`. The rows of `:combined` put the best changes together: `chosen` has the
two that all studies of few epochs took; the others add to it, the last three to
`learning_rate_0.2`, the recipe of cifar10_cpu.

Cost: about 25 minutes on 2 CPU cores for 11 runs, each in a process of its own; 40
minutes on one for the 12 of `:combined`.
Expected: see results/recipe_cifar10_cpu and results/recipe_cifar10_cpu_combined.
"""

from typing import Any

from alite_jax.errors import ConfigError
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
CHOSEN = {"distillation.alpha": 0.5, "pruning.distribution": "erk"}
DENSE_CE = {"student.density": 1, "distillation.alpha": 0}
FASTER = {"student.optimizer.learning_rate": 0.2}
COOLER = {"distillation.temperature": 2.0}


def get_study(argument: str = "") -> Study:
    """Returns the study of single changes, or the `combined` one."""
    if argument not in ("", "combined"):
        raise ConfigError(f"the one argument is 'combined', found {argument!r}")
    combined = argument == "combined"
    return Study(
        name="recipe_cifar10_cpu" + ("_combined" if combined else ""),
        title="CIFAR-10, reduced: "
        + ("the best changes together" if combined else "a choice of recipe"),
        description=(
            "Trained with the first 10,000 training images and evaluated with the last"
            " 5,000 of them; the test images stay unseen. 5 epochs in batches of 64."
            " Seeds differ by more than a point: smaller differences mean nothing."
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
        rows=combined_rows() if combined else single_rows(),
    )


def single_rows() -> dict[str, Row]:
    """Returns rows that change one field each."""
    rows = {"base": Row("the recipe so far")}
    for field, values in OTHERS.items():
        for value in values:
            rows[f"{field.rpartition('.')[2]}_{value}"] = Row(
                f"`{field}` {value} instead of {BASE[field]}", {field: value}
            )
    return rows


def combined_rows() -> dict[str, Row]:
    """Returns rows with several changes, and what could be added to these."""
    rows = {
        "chosen": Row("alpha 0.5 and ERK together", CHOSEN),
        "learning_rate_0.2": Row(
            "and a learning rate of 0.2", [CHOSEN, FASTER], seeds=(0, 1)
        ),
        "temperature_2": Row("and temperature 2", [CHOSEN, COOLER]),
        "both": Row("and both", [CHOSEN, FASTER, COOLER]),
        "dense_ce": Row("the dense student without a teacher", DENSE_CE),
        "dense_ce_learning_rate_0.2": Row(
            "the same with a learning rate of 0.2", [DENSE_CE, FASTER]
        ),
    }
    for field, value in (
        ("prune_rate_schedule", "linear"),
        ("prune_rate_schedule", "constant"),
        ("stop_fraction", 0.75),
    ):
        rows[f"{field}_{value}"] = Row(
            f"learning rate 0.2 and `pruning.{field}` {value}",
            [CHOSEN, FASTER, {f"pruning.{field}": value}],
        )
    return rows
