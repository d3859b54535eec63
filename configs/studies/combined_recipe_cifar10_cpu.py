"""Whether the best changes of recipe_cifar10_cpu add up, and what helps dense students.

    python launch.py --config=configs/cifar10_cpu.py --job=prepare
    python launch.py --job=study --study=configs/studies/combined_recipe_cifar10_cpu.py

Same data, size and steps as there. `chosen` has the two changes that the studies took
first; the other rows add to it.

Cost: about 25 minutes on 1 CPU core for 7 runs.
Expected: see results/combined_recipe_cifar10_cpu.
"""

from dataclasses import replace

from alite_jax.study.declaration import Row, Study
from alite_jax.study.declaration import get_study as named_study

CHOSEN = {"distillation.alpha": 0.5, "pruning.distribution": "erk"}
DENSE_CE = {"student.density": 1, "distillation.alpha": 0}
FASTER = {"student.optimizer.learning_rate": 0.2}
COOLER = {"distillation.temperature": 2.0}


def get_study() -> Study:
    """Returns the study."""
    first = named_study("recipe_cifar10_cpu")
    return replace(
        first,
        name="combined_recipe_cifar10_cpu",
        title="CIFAR-10, reduced: the best changes together",
        rows={
            "chosen": Row("alpha 0.5 and ERK together", CHOSEN),
            "learning_rate_0.2": Row("and a learning rate of 0.2", [CHOSEN, FASTER]),
            "temperature_2": Row("and temperature 2", [CHOSEN, COOLER]),
            "both": Row("and both", [CHOSEN, FASTER, COOLER]),
            "dense_ce": Row("the dense student without a teacher", DENSE_CE),
            "dense_ce_learning_rate_0.2": Row(
                "the same with a learning rate of 0.2", [DENSE_CE, FASTER]
            ),
        },
    )
