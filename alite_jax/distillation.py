"""The joint loss: cross-entropy with the labels, divergence from a teacher's logits.

    joint = (1 - alpha) * cross_entropy + alpha * T**2 * KL(teacher_T || student_T)

with both softened by the temperature T (arXiv 1503.02531). T**2 keeps the size of the
second term's gradients independent of T.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class Losses(NamedTuple):
    """Batch means, float32 scalars.

    Attributes:
        loss: what is differentiated.
        task_loss: cross-entropy with the labels.
        distillation_loss: `T**2 * KL`; 0 without a teacher.
    """

    loss: jax.Array
    task_loss: jax.Array
    distillation_loss: jax.Array


def task_loss(
    logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    """Cross-entropy in nats, the mean over the batch.

    Args:
        logits: `[batch, classes]`, float32.
        labels: `[batch]`, integer.
        label_smoothing: the mass that the target spreads evenly over all classes.
    """
    targets = optax.losses.smooth_labels(
        jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), label_smoothing
    )
    return jnp.mean(optax.losses.softmax_cross_entropy(logits, targets))


def distillation_loss(
    logits: jax.Array, teacher_logits: jax.Array, temperature: float
) -> jax.Array:
    """`T**2 * KL(teacher_T || student_T)` in nats, the mean over the batch.

    Args:
        logits: the student's, `[batch, classes]`, float32.
        teacher_logits: the same for the teacher; no gradient flows into them.
        temperature: T, above 0.
    """
    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    divergence = optax.losses.kl_divergence_with_log_targets(
        jax.nn.log_softmax(logits / temperature),
        jax.nn.log_softmax(teacher_logits / temperature),
    )
    return temperature**2 * jnp.mean(divergence)


def joint_loss(
    logits: jax.Array,
    labels: jax.Array,
    teacher_logits: jax.Array | None,
    *,
    alpha: float,
    temperature: float,
    label_smoothing: float = 0.0,
) -> Losses:
    """The joint loss and its parts; see the module's docstring.

    Args:
        logits: the student's, `[batch, classes]`, float32.
        labels: `[batch]`, integer.
        teacher_logits: `[batch, classes]`, or None to train on the labels alone.
        alpha: weight of the distillation, in [0, 1].
        temperature: T, above 0.
        label_smoothing: see `task_loss`.
    """
    task = task_loss(logits, labels, label_smoothing)
    if teacher_logits is None:
        return Losses(task, task, jnp.zeros_like(task))
    distillation = distillation_loss(logits, teacher_logits, temperature)
    return Losses((1 - alpha) * task + alpha * distillation, task, distillation)
