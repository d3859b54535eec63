"""Whether the best changes of recipe_cifar10_cpu add up, and what could be added.

    python launch.py --config=configs/cifar10_cpu.py --job=prepare
    python launch.py --job=study --study=configs/studies/combined_recipe_cifar10_cpu.py

Same data, size and steps as there. `chosen` has the two changes that the studies took
first; the other rows add to it, most of them one field to `learning_rate_0.2`, the
recipe of cifar10_cpu.

Cost: about 50 minutes on 1 CPU core for 17 runs.
Expected: see results/combined_recipe_cifar10_cpu.
"""

from dataclasses import replace
from typing import Any

from alite_jax.study.declaration import Row, Study
from alite_jax.study.declaration import get_study as named_study

CHOSEN = {"distillation.alpha": 0.5, "pruning.distribution": "erk"}
DENSE_CE = {"student.density": 1, "distillation.alpha": 0}
FASTER = {"student.optimizer.learning_rate": 0.2}
COOLER = {"distillation.temperature": 2.0}
TWO_SEEDS = (0, 1)
MORE: dict[str, list[Any]] = {
    "pruning.prune_rate_schedule": ["linear", "constant"],
    "pruning.stop_fraction": [0.75],
    "student.embedding_scale": [0.1, 3.0],
    "student.norm_momentum": [0.8, 0.97],
}


def get_study() -> Study:
    """Returns the study."""
    first = named_study("recipe_cifar10_cpu")
    best = "embedding_scale_3.0"
    more = {
        f"{field.rpartition('.')[2]}_{value}": Row(
            f"learning rate 0.2 and `{field}` {value}", [CHOSEN, FASTER, {field: value}]
        )
        for field, values in MORE.items()
        for value in values
    }
    return replace(
        first,
        name="combined_recipe_cifar10_cpu",
        title="CIFAR-10, reduced: the best changes together",
        description=(
            "Data, size and steps of recipe_cifar10_cpu; the test images stay unseen."
            " Seeds differ by more than a point: smaller differences mean nothing."
        ),
        rows={
            "chosen": Row("alpha 0.5 and ERK together", CHOSEN),
            "learning_rate_0.2": Row(
                "and a learning rate of 0.2", [CHOSEN, FASTER], TWO_SEEDS
            ),
            "temperature_2": Row("and temperature 2", [CHOSEN, COOLER]),
            "both": Row("and both", [CHOSEN, FASTER, COOLER]),
            "dense_ce": Row("the dense student without a teacher", DENSE_CE),
            "dense_ce_learning_rate_0.2": Row(
                "the same with a learning rate of 0.2", [DENSE_CE, FASTER]
            ),
            **more,
            best: replace(more[best], seeds=TWO_SEEDS),
        },
    )
