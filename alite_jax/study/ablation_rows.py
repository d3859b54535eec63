"""The rows that take the method apart, for studies of any data and size."""

from collections.abc import Mapping
from typing import Any

from alite_jax.study.declaration import Row

Fields = Mapping[str, Any]

_DENSE = {"student.density": 1}
_LABELS_ALONE = {"distillation.alpha": 0}
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


def method_rows(
    fine_tuning: Fields,
    claim_seeds: tuple[int, ...] = (),
    pruning: Fields | None = None,
) -> dict[str, Row]:
    """Returns the rows, of which those without a density of their own keep 10 %.

    Args:
        fine_tuning: what the sequential pipeline changes when it prunes and fine-tunes
            the distilled student, such as its epochs.
        claim_seeds: of the rows that claims rest on; the study's where left out.
        pruning: overrides on all rows that prune.
    """

    def pruned(
        question: str, *changes: Fields, density: float = 0.1, **options: Any
    ) -> Row:
        overrides = [{"student.density": density}, pruning or {}, *changes]
        return Row(question, overrides, **options)

    def sequential(question: str, structure: Fields) -> Row:
        return pruned(
            f"the sequential pipeline: {question}",
            *(structure, _method("gradual_global", 0.5), fine_tuning),
            start_from="dense_kd",
        )

    return {
        "dense_ce": Row(
            "the student as it is, without teacher and pruning",
            [_DENSE, _LABELS_ALONE],
            claim_seeds,
        ),
        "dense_kd": Row("what the teacher adds to it", _DENSE),
        "pruned_ce": pruned("pruned without a teacher", _LABELS_ALONE),
        "joint_0.1": pruned("the method: distilled while pruned", seeds=claim_seeds),
        "joint_0.075": pruned(
            "the method at 30 times fewer parameters", density=0.075, seeds=claim_seeds
        ),
        "joint_0.05": pruned("the method at half of the weights", density=0.05),
        "joint_0.03": pruned("the method at its limits", density=0.03),
        "static": pruned(
            "whether it matters that masks change", {"pruning.method": "static"}
        ),
        "rigl": pruned(
            "growth by the gradient instead of momentum",
            _method("rigl", 0.75),
            {"pruning.prune_rate": 0.3, "pruning.prune_rate_end": 0.0},
        ),
        "gradual": pruned(
            "pruned from dense instead of from random masks",
            _method("gradual_global", 0.75),
        ),
        "structured_0.5": pruned(
            "half of the MACs: whole heads and channels go, and no single weights",
            _structure(0.5, "gradual_global"),
            density=1.0,
        ),
        "mixed_0.5": pruned(
            "half of the MACs for speed, and a tenth of the weights for bytes",
            _structure(0.5, "sparse_momentum"),
        ),
        "mixed_0.5_gradual": pruned(
            "the same, pruned from dense, where nothing comes back",
            _structure(0.5, "gradual_global"),
        ),
        "mixed_0.3": pruned(
            "mixed at 30 % of the MACs", _structure(0.3, "sparse_momentum")
        ),
        "sequential": sequential("distil it dense, then prune, then fine-tune", {}),
        **{
            f"sequential_mixed_{macs}": sequential(
                f"mixed at {round(100 * macs)} % of the MACs",
                _structure(macs, "gradual_global"),
            )
            for macs in (0.5, 0.4, 0.3)
        },
    }


def _method(name: str, stop_fraction: float) -> Fields:
    return {"pruning.method": name, "pruning.stop_fraction": stop_fraction}


def _structure(macs: float, method: str) -> Fields:
    """Overrides that prune heads, and the channels that they take, too."""
    structure = {"pruning.structure": "heads", "pruning.macs": macs}
    return {**structure, **_method(method, 0.75)}
