"""A Vision Transformer of twenty lines as the student, any function as the teacher.

    python -m examples.vit digits
    python -m examples.vit cifar10    # reduced to 16x16 pixels

A convolutional teacher is trained first, by this project; the student sees nothing of
it but a function of (variables, images) to logits, as it would of any other teacher.
Each row is a run of `alite_jax.train` with AdamW; the table compares them.
"""

import argparse
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import alite_jax


class ViT(nn.Module):
    """4x4 patches, a class token, positions, and blocks of attention and an MLP."""

    num_classes: int
    features: int = 64
    depth: int = 4

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps `[batch, height, width, channels]` to logits `[batch, num_classes]`."""
        side = (images.shape[1] // 4, images.shape[2] // 4)
        x = nn.Conv(self.features, side, strides=side, name="patches")(images)
        x = x.reshape(len(x), -1, self.features)
        token = self.param("token", nn.initializers.zeros, (1, 1, self.features))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
        normal = nn.initializers.normal(0.02)
        x = x + self.param("pos_embedding", normal, (1, *x.shape[1:]))
        for _ in range(self.depth):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=4)(y, y)
            y = nn.gelu(nn.Dense(2 * self.features)(nn.LayerNorm()(x)))
            y = nn.Dropout(0.1, deterministic=not train)(y)
            x = x + nn.Dense(self.features)(y)
        return nn.Dense(self.num_classes, name="classifier")(nn.LayerNorm()(x)[:, 0])


# What all runs have in common, by data set: the configuration, and what differs.
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "digits": ("digits", {"student.epochs": 200}),
    "cifar10": (
        "cifar10_cpu",
        {"teacher.model": "resnet26", "teacher.epochs": 3, "student.epochs": 8},
    ),
}
ADAMW = {
    "student.optimizer.name": "adamw",
    "student.optimizer.learning_rate": 2e-3,
    "student.optimizer.weight_decay": 0.05,
    "student.density": 0.1,
}
LABELS = {"distillation.alpha": 0.0}
ROWS: dict[str, dict[str, Any]] = {
    "joint": {},  # distilled while it is pruned
    "pruned_ce": LABELS,  # pruned, without the teacher
    "dense_ce": LABELS | {"student.density": 1.0},  # neither
}


def main() -> None:
    """Trains the teacher and a student for each row, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", choices=RECIPES)
    parser.add_argument("--epochs", type=int, help="of each student")
    parser.add_argument("--rows", default=",".join(ROWS), help="some of %(default)s")
    parser.add_argument("--workdir", type=Path, default=Path("runs/vit"))
    arguments = parser.parse_args()
    name, changes = RECIPES[arguments.dataset]
    if arguments.epochs:
        changes = changes | {"student.epochs": arguments.epochs}
    config = alite_jax.get_config(name, changes | ADAMW)
    folder = arguments.workdir / arguments.dataset

    # Without the student's fields, so that another student finds it again.
    of_teacher = {k: v for k, v in changes.items() if k.startswith("teacher.")}
    alone = alite_jax.get_config(name, of_teacher)
    alite_jax.train_teacher(alone, folder / "teacher")
    network, variables = alite_jax.restore(alone, folder / "teacher")["teacher"]

    def teacher(variables: Any, images: jax.Array) -> jax.Array:
        return network.apply(variables, images, train=False)

    print("| row | teacher | student | kept | non-zero parameters | MACs | non-zero |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in arguments.rows.split(","):
        summary = alite_jax.train(
            alite_jax.override(config, ROWS[row]),
            folder / row,
            student=ViT,
            teacher=(teacher, variables),
        )
        theirs, ours = summary["teacher"], summary["student"]
        print(
            f"| {row} | {theirs['accuracy']:.2%} | {ours['accuracy']:.2%} |"
            f" {ours['density']:.1%} | {ours['nonzero_parameters']:,} |"
            f" {ours['macs']:,} | {ours['nonzero_macs']:,} |"
        )


if __name__ == "__main__":
    main()
