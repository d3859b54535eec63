"""The pure functions of training: the joint step and the evaluation step.

Each works on one device's share of a batch, under a mapped axis named `AXIS`, and
reduces over it. How they are spread over devices is `parallel`'s business.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from alite_jax.data.augment import augment, normalize
from alite_jax.data.specs import DatasetSpec
from alite_jax.distillation import feature_loss, joint_loss, task_loss
from alite_jax.sparsity.masks import apply_masks
from alite_jax.training.accumulation import mean_over_parts
from alite_jax.training.objective import Objective
from alite_jax.training.state import TrainState, Variables

AXIS = "batch"

# What the key of a step is for, folded into it; another use needs another number.
_VIEWS = 0

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Variables, Batch], tuple[TrainState, Metrics]]
Gradients = Callable[[TrainState, Variables, Batch], tuple[Any, Metrics, Any]]
EvalStep = Callable[[Variables, Batch], Metrics]


def make_gradients(
    model: nn.Module,
    teacher: nn.Module | None,
    objective: Objective,
    dataset: DatasetSpec,
    *,
    crop_padding: int,
    flip: bool,
    key: jax.Array,
    accumulation: int = 1,
    total_steps: int = 0,
) -> Gradients:
    """Builds the first half of the joint step: both forward passes, one backward.

    Gradients are taken with respect to the stored parameters, whose absent weights are
    zero, and are dense: absent weights have gradients too, by which the rewiring finds
    the ones to grow.

    Args:
        model: the network that is trained; its BatchNorm may reduce over `AXIS`.
        teacher: a frozen network of the same logits, or None.
        objective: the loss.
        dataset: gives the normalisation constants.
        crop_padding: see `augment`.
        flip: see `augment`.
        key: PRNG key; the step is folded into it. What is drawn is drawn for the whole
            batch, so that the number of devices does not change it.
        accumulation: passes in which a device's share of a batch goes through the
            networks, each with an equal part. Gradients, metrics and the updated
            running statistics are means over the parts; BatchNorm normalises each
            part by the statistics of this part (on all devices), so that more than
            one pass is not quite the same training. Views do not depend on it.
        total_steps: of the training, in whose course the objective may change; needed
            only where it does.

    Returns:
        `gradients(state, teacher_variables, batch)`: means over all devices of the
        gradients, over this one of the metrics, and over all of the updated running
        statistics. `batch` is as for `make_train_step`.
    """
    distils = teacher is not None and objective.needs_teacher
    compares_features = teacher is not None and objective.feature_weight > 0
    collections = ["intermediates"] if compares_features else []

    def ask_teacher(
        variables: Variables, images: jax.Array
    ) -> tuple[jax.Array | None, list[jax.Array]]:
        if not distils:
            return None, []
        assert teacher is not None
        if not compares_features:
            return apply(teacher, variables, images), []
        logits, updates = teacher.apply(
            variables, images, train=False, mutable=collections
        )
        features = jax.tree.leaves(updates["intermediates"])
        return logits if objective.needs_logits else None, features

    def forward_and_backward(
        state: TrainState, teacher_variables: Variables, part: Batch
    ) -> tuple[Any, Metrics, Any]:
        images = normalize(part["image"], dataset.mean, dataset.std)
        teacher_logits, teacher_features = ask_teacher(teacher_variables, images)
        alpha, temperature = objective.weights(state.step, total_steps)

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updates = model.apply(
                variables, images, train=True, mutable=["batch_stats", *collections]
            )
            losses = joint_loss(
                logits,
                part["label"],
                teacher_logits,
                alpha=alpha,
                temperature=temperature,
                label_smoothing=objective.label_smoothing,
                loss=objective.loss,
                alpha_dkd=objective.alpha_dkd,
                beta_dkd=objective.beta_dkd,
            )._asdict()
            if objective.feature_weight > 0:
                features = jax.tree.leaves(updates.get("intermediates"))
                distance = feature_loss(features, teacher_features)
                losses["feature_loss"] = distance
                losses["loss"] += objective.feature_weight / 2 * distance
            return losses["loss"], (losses, logits, updates["batch_stats"])

        gradients, (losses, logits, batch_stats) = jax.grad(loss_fn, has_aux=True)(
            state.params
        )
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == part["label"])
        return gradients, {**losses, "accuracy": accuracy}, batch_stats

    def gradients(
        state: TrainState, teacher_variables: Variables, batch: Batch
    ) -> tuple[Any, Metrics, Any]:
        step_key = jax.random.fold_in(key, state.step)
        images = augment(
            jax.random.fold_in(step_key, _VIEWS),
            batch["image"],
            crop_padding=crop_padding,
            flip=flip,
            share=jax.lax.axis_index(AXIS),
            num_shares=jax.lax.axis_size(AXIS),
        )
        gradients, metrics, batch_stats = mean_over_parts(
            partial(forward_and_backward, state, teacher_variables),
            {"image": images, "label": batch["label"]},
            accumulation,
        )
        gradients, batch_stats = jax.lax.pmean((gradients, batch_stats), AXIS)
        return gradients, metrics, batch_stats

    return gradients


def make_train_step(
    model: nn.Module,
    teacher: nn.Module | None,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    dataset: DatasetSpec,
    **settings: Any,
) -> TrainStep:
    """Builds the joint step: teacher forward, student forward and backward, update.

    Gradients and momentum are dense; masks are applied after the update.

    Args:
        model: the network that is trained; its BatchNorm may reduce over `AXIS`.
        teacher: a frozen network of the same logits, or None.
        optimizer: the optax chain.
        objective: the loss.
        dataset: gives the normalisation constants.
        settings: the keywords of `make_gradients`.

    Returns:
        `step(state, teacher_variables, batch) -> (state, metrics)`. `batch` has
        `image`, uint8 `[batch, height, width, channels]`, and `label`, int32
        `[batch]`. Metrics are float32 scalars, means over all devices; their names are
        `objective.metrics`.
    """
    take_gradients = make_gradients(model, teacher, objective, dataset, **settings)

    def train_step(
        state: TrainState, teacher_variables: Variables, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        gradients, metrics, batch_stats = take_gradients(
            state, teacher_variables, batch
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=apply_masks(state.masks, params),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        metrics = jax.lax.pmean(metrics, AXIS)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        return state, metrics

    return train_step


def apply(model: nn.Module, variables: Variables, images: jax.Array) -> jax.Array:
    """Logits `[batch, classes]` of a network in evaluation mode."""
    logits: jax.Array = model.apply(variables, images, train=False)  # type: ignore[assignment]
    return logits


def make_eval_step(model: nn.Module, dataset: DatasetSpec) -> EvalStep:
    """Builds the evaluation of one batch.

    Returns:
        `eval_step(variables, batch) -> sums`, float32 scalars over all devices:
        `correct`, `loss` and `count`, each weighted by the batch's `weight`, float32
        `[batch]`, which is 0 at padding.
    """

    def eval_step(variables: Variables, batch: Batch) -> Metrics:
        images = normalize(batch["image"], dataset.mean, dataset.std)
        logits = apply(model, variables, images)
        losses = jax.vmap(task_loss)(logits[:, None], batch["label"][:, None])
        correct = jnp.argmax(logits, axis=-1) == batch["label"]
        weight = batch["weight"]
        sums = {
            "correct": jnp.sum(weight * correct),
            "loss": jnp.sum(weight * losses),
            "count": jnp.sum(weight),
        }
        return jax.lax.psum(sums, AXIS)

    return eval_step
