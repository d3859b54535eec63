"""The joint loss: cross-entropy with the labels, divergence from a teacher's logits.

    joint = (1 - alpha) * cross_entropy + alpha * T**2 * KL(teacher_T || student_T)

with both softened by the temperature T (arXiv 1503.02531). T**2 keeps the size of the
second term's gradients independent of T. Instead of KL, the decoupled form of it may be
taken (arXiv 2203.08679); besides, `feature_loss` compares the networks within.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from alite_jax.errors import ConfigError, nearest
from alite_jax.registry import Given, Registry

_SMALLEST_NORM = 1e-6  # below it a vector counts as 0, and has no gradient


class Losses(NamedTuple):
    """Batch means, float32 scalars.

    Attributes:
        loss: what is differentiated.
        task_loss: cross-entropy with the labels.
        distillation_loss: `T**2` times the divergence; 0 without a teacher.
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
    logits: jax.Array, teacher_logits: jax.Array, temperature: jax.Array | float
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


def decoupled_loss(
    logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    temperature: jax.Array | float,
    alpha_dkd: float,
    beta_dkd: float,
) -> jax.Array:
    """`T**2 * (alpha_dkd * TCKD + beta_dkd * NCKD)` in nats, the mean over the batch.

    Decoupled distillation (arXiv 2203.08679): TCKD is the KL between (probability of
    the label, that of all other classes together), NCKD the KL between the
    probabilities of the other classes, normalised among themselves. With `alpha_dkd` 1
    and, for each example, `beta_dkd` the teacher's probability of the other classes, it
    is `distillation_loss`.

    Args:
        logits: the student's, `[batch, classes]`, float32.
        teacher_logits: the same for the teacher; no gradient flows into them.
        labels: `[batch]`, integer.
        temperature: T, above 0.
        alpha_dkd: weight of TCKD.
        beta_dkd: weight of NCKD.
    """
    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    target = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)

    def log_probabilities(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of label and not label, `[batch, 2]`, and of each class that is not."""
        logits = logits / temperature
        both = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        others = jax.nn.logsumexp(logits, axis=-1, keepdims=True, where=~target)
        label = jnp.sum(logits, axis=-1, keepdims=True, where=target)
        pair = jnp.concatenate([label, others], axis=-1) - both
        # The same for student and teacher at the label, where nothing is compared.
        return pair, jnp.where(target, 0.0, logits - others)

    student, teacher = log_probabilities(logits), log_probabilities(teacher_logits)
    target_class, other_classes = (
        optax.losses.kl_divergence_with_log_targets(*pair)
        for pair in zip(student, teacher, strict=True)
    )
    divergence = alpha_dkd * target_class + beta_dkd * other_classes
    return temperature**2 * jnp.mean(divergence)


def feature_loss(
    features: Sequence[jax.Array], teacher_features: Sequence[jax.Array]
) -> jax.Array:
    """How far attention maps are from the teacher's, the mean over the batch.

    The attention map of a layer is the sum of its squared activations over the
    channels, divided by its Euclidean norm over the pixels (arXiv 1612.03928). The
    distance is the norm of the difference of two maps, between 0 and the square root of
    2; those of all layers are summed.

    Args:
        features: the student's, for each layer `[batch, height, width, channels]`.
        teacher_features: the same for the teacher, with any number of channels; no
            gradient flows into them.
    """
    distances = [
        _norm(_attention_map(ours) - _attention_map(jax.lax.stop_gradient(theirs)))
        for ours, theirs in zip(features, teacher_features, strict=True)
    ]
    return jnp.mean(sum(distances))


def _attention_map(features: jax.Array) -> jax.Array:
    energy = jnp.sum(jnp.square(features.astype(jnp.float32)), axis=-1)
    energy = energy.reshape(len(energy), -1)
    return energy / _norm(energy)


def _norm(vectors: jax.Array) -> jax.Array:
    """Euclidean norms `[batch, 1]`, whose gradient is finite at zero, too."""
    return optax.safe_norm(vectors, _SMALLEST_NORM, axis=-1, keepdims=True)


def _kd(
    logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    temperature: jax.Array | float,
) -> jax.Array:
    return distillation_loss(logits, teacher_logits, temperature)


# Called with (logits, teacher_logits, labels, temperature), of the shapes of
# `decoupled_loss`, whose weights come besides.
LOSSES: Registry[Callable[..., jax.Array]] = Registry(
    "loss", "alite_jax.losses", {"kd": _kd, "dkd": decoupled_loss}
)


def register_loss(name: str) -> Callable[[Given], Given]:
    """A decorator that registers a distillation loss for `distillation.loss`.

    What is decorated is a function `(logits, teacher_logits, labels, temperature)` that
    is traced: float32 `[batch, classes]` twice, integers `[batch]`, and a scalar. It
    returns the mean over the batch, a scalar that stands in the place of
    `distillation_loss` and should, as that, have its factor `temperature**2`. No
    gradient flows into the teacher's logits.

    Args:
        name: by which a configuration knows the loss.

    Raises:
        ConfigError: something else has the name.

    Example:
        >>> @alite_jax.register_loss("logit_mse")
        ... def logit_mse(logits, teacher_logits, labels, temperature):
        ...     return jnp.mean((logits - teacher_logits) ** 2)
        >>> changed = alite_jax.override(config, "distillation.loss=logit_mse")
        >>> changed.distillation.loss
        'logit_mse'
    """
    return LOSSES.register(name)


def joint_loss(
    logits: jax.Array,
    labels: jax.Array,
    teacher_logits: jax.Array | None,
    *,
    alpha: jax.Array | float,
    temperature: jax.Array | float,
    label_smoothing: float = 0.0,
    loss: str = "kd",
    alpha_dkd: float = 1.0,
    beta_dkd: float = 8.0,
) -> Losses:
    """The joint loss and its parts; see the module's docstring.

    Args:
        logits: the student's, `[batch, classes]`, float32.
        labels: `[batch]`, integer.
        teacher_logits: `[batch, classes]`, or None to train on the labels alone.
        alpha: weight of the distillation, in [0, 1]; may be traced.
        temperature: T, above 0; may be traced.
        label_smoothing: see `task_loss`.
        loss: `"kd"` for `distillation_loss`, `"dkd"` for `decoupled_loss`, or what
            `register_loss` has.
        alpha_dkd: see `decoupled_loss`.
        beta_dkd: see `decoupled_loss`.

    Raises:
        ConfigError: if there is no such loss, or it is not a scalar.
        AssertionError: shapes do not fit, when the call is traced.
    """
    if loss not in LOSSES:
        raise ConfigError(f"distillation.loss is {loss!r}; {nearest(loss, LOSSES)}")
    chex.assert_rank([logits, labels], [2, 1])
    chex.assert_equal_shape_prefix([logits, labels], 1)
    task = task_loss(logits, labels, label_smoothing)
    if teacher_logits is None:
        return Losses(task, task, jnp.zeros_like(task))
    chex.assert_equal_shape([logits, teacher_logits])
    weights = {"alpha_dkd": alpha_dkd, "beta_dkd": beta_dkd} if loss == "dkd" else {}
    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    distillation = LOSSES[loss](logits, teacher_logits, labels, temperature, **weights)
    if jnp.shape(distillation) != ():
        raise ConfigError(
            f"distillation.loss = {loss!r} gives an array of shape"
            f" {jnp.shape(distillation)}, not one number: the mean over the batch"
        )
    return Losses((1 - alpha) * task + alpha * distillation, task, distillation)
