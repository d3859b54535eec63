"""The rows that take the method apart, for studies of any data and size."""

from collections.abc import Mapping
from typing import Any

from alite_jax.study.declaration import Row, Study

_CE = "distillation.alpha=0"

# For few epochs: layers that start with shares that suit them need not find these first
# (results/recipe_cifar10_cpu).
SHORT_PRUNING = {"pruning.distribution": "erk"}


def short_training(epochs: int) -> dict[str, Any]:
    """Returns overrides for so few epochs that each step must count.

    Small batches make more steps of the same images, masks change every 100 steps, and
    labels have half of the say, which was best in results/recipe_cifar10_cpu: a teacher
    of few epochs is often wrong.

    Args:
        epochs: of the teacher and of each student.
    """
    return {
        "data.batch_size": 64,
        "teacher.epochs": epochs,
        "teacher.optimizer.warmup_epochs": epochs / 6,
        "student.epochs": epochs,
        "student.optimizer.warmup_epochs": epochs / 6,
        "pruning.every_steps": 100,
        "distillation.alpha": 0.5,
        "logging.tensorboard": False,
    }


def small_study(dataset: str, title: str, epochs: int, description: str) -> Study:
    """Returns the study of a data set as CIFAR-10's, with its two main rows.

    Args:
        dataset: name of the data set and of its config.
        title: what the data set is called.
        epochs: of the teacher and of each student.
        description: what is reduced besides the networks and the pixels.
    """
    rows = method_rows(fine_tuning={}, pruning=SHORT_PRUNING)
    return Study(
        name=f"{dataset}_cpu",
        title=f"{title}, reduced: the method against the plain student",
        description=(
            "Images averaged down to 16x16 pixels; networks 16 channels wide instead of"
            f" 64; {epochs} epochs in batches of 64 instead of 200 in batches of 128;"
            f" one seed. {description}"
        ),
        config=dataset,
        overrides=[
            short_training(epochs),
            {
                "data.image_size": 16,
                "data.crop_padding": 2,
                "teacher.width": 16,
                "student.width": 16,
            },
        ],
        rows={row: rows[row] for row in ("dense_ce", "joint_0.1")},
    )


def method_rows(
    fine_tuning: Mapping[str, Any],
    claim_seeds: tuple[int, ...] = (),
    pruning: Mapping[str, Any] | None = None,
) -> dict[str, Row]:
    """Returns the rows, of which those without a density of their own keep 10 %.

    Args:
        fine_tuning: what the sequential road changes when it prunes and fine-tunes the
            distilled student, such as its epochs.
        claim_seeds: of the rows that claims rest on; the study's where left out.
        pruning: overrides on all rows that prune.
    """
    dense = "student.density=1"

    def pruned(density: float = 0.1, *changes: Any) -> list[Any]:
        return [{"student.density": density}, pruning or {}, *changes]

    def long_road(question: str, structure: Mapping[str, Any]) -> Row:
        gradual = {"pruning.method": "gradual_global", "pruning.stop_fraction": 0.5}
        return Row(
            f"the long road: {question}",
            pruned(0.1, structure, gradual, fine_tuning),
            start_from="dense_kd",
        )

    return {
        "dense_ce": Row(
            "the student as it is, without teacher and pruning",
            [dense, _CE],
            claim_seeds,
        ),
        "dense_kd": Row("what the teacher adds to it", dense),
        "pruned_ce": Row("pruned without a teacher", pruned(0.1, _CE)),
        "joint_0.1": Row(
            "the method: distilled while pruned", pruned(0.1), claim_seeds
        ),
        "joint_0.075": Row(
            "the method at 30 times fewer parameters", pruned(0.075), claim_seeds
        ),
        "joint_0.05": Row("the method at half of the weights", pruned(0.05)),
        "joint_0.03": Row("the method at its limits", pruned(0.03)),
        "static": Row(
            "whether it matters that masks change", pruned(0.1, "pruning.method=static")
        ),
        "rigl": Row(
            "growth by the gradient instead of momentum",
            pruned(
                0.1,
                {
                    "pruning.method": "rigl",
                    "pruning.prune_rate": 0.3,
                    "pruning.prune_rate_end": 0.0,
                    "pruning.stop_fraction": 0.75,
                },
            ),
        ),
        "gradual": Row(
            "pruned from dense instead of from random masks",
            pruned(
                0.1,
                {"pruning.method": "gradual_global", "pruning.stop_fraction": 0.75},
            ),
        ),
        "structured_0.5": Row(
            "half of the MACs: whole heads and channels go, and no single weights",
            pruned(1.0, _structure(0.5, "gradual_global")),
        ),
        "mixed_0.5": Row(
            "half of the MACs for speed, and a tenth of the weights for bytes",
            pruned(0.1, _structure(0.5, "sparse_momentum")),
        ),
        "mixed_0.5_gradual": Row(
            "the same, pruned from dense, where nothing comes back",
            pruned(0.1, _structure(0.5, "gradual_global")),
        ),
        "mixed_0.3": Row(
            "mixed at 30 % of the MACs",
            pruned(0.1, _structure(0.3, "sparse_momentum")),
        ),
        "sequential": long_road("distil it dense, then prune, then fine-tune", {}),
        **{
            f"sequential_mixed_{macs}": long_road(
                f"mixed at {round(100 * macs)} % of the MACs",
                _structure(macs, "gradual_global"),
            )
            for macs in (0.5, 0.4, 0.3)
        },
    }


def _structure(macs: float, method: str) -> dict[str, Any]:
    """Overrides that prune heads, and the channels that they take, too."""
    return {
        "pruning.structure": "heads",
        "pruning.macs": macs,
        "pruning.method": method,
        "pruning.stop_fraction": 0.75,
    }
