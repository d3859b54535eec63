"""The pure functions of training: the joint step, the rewiring, the evaluation step.

Each works on one device's share of a batch, under a mapped axis named `AXIS`, and
reduces over it. How they are spread over devices is `parallel`'s business.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from alite_jax.data.augment import augment, normalize
from alite_jax.data.specs import DatasetSpec
from alite_jax.distillation import joint_loss, task_loss
from alite_jax.sparsity.masks import apply_masks
from alite_jax.sparsity.rewiring import rewire
from alite_jax.sparsity.schedules import prune_rate
from alite_jax.training.accumulation import mean_over_parts
from alite_jax.training.state import TrainState, Variables

AXIS = "batch"

# What a training step measures.
METRICS = ("loss", "task_loss", "distillation_loss", "accuracy", "gradient_norm")

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Variables, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[Variables, Batch], Metrics]
RewireStep = Callable[[TrainState], TrainState]


@dataclass(frozen=True)
class Objective:
    """What a network is trained for.

    Attributes:
        alpha: weight of the distillation; 0 needs no teacher.
        temperature: of the distillation.
        label_smoothing: of the cross-entropy.
    """

    alpha: float = 0.0
    temperature: float = 1.0
    label_smoothing: float = 0.0

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher has any part in the loss."""
        return self.alpha > 0


def make_train_step(
    model: nn.Module,
    teacher: nn.Module | None,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    dataset: DatasetSpec,
    *,
    crop_padding: int,
    flip: bool,
    key: jax.Array,
    accumulation: int = 1,
) -> TrainStep:
    """Builds the joint step: teacher forward, student forward and backward, update.

    Gradients are taken with respect to the stored parameters, whose absent weights are
    zero, and are dense: absent weights have gradients and momentum too, by which the
    rewiring finds the ones to grow. Masks are applied after the update.

    Args:
        model: the network that is trained; its BatchNorm reduces over `AXIS`.
        teacher: a frozen network of the same logits, or None.
        optimizer: the optax chain.
        objective: the loss.
        dataset: gives the normalisation constants.
        crop_padding: see `augment`.
        flip: see `augment`.
        key: PRNG key; the step and the device are folded into it.
        accumulation: passes in which a device's share of a batch goes through the
            networks, each with an equal part. Gradients, metrics and the updated
            running statistics are means over the parts; BatchNorm normalises each
            part by the statistics of this part (on all devices), so that more than
            one pass is not quite the same training. Views do not depend on it.

    Returns:
        `step(state, teacher_variables, batch) -> (state, metrics)`. `batch` has
        `image`, uint8 `[batch, height, width, channels]`, and `label`, int32
        `[batch]`. Metrics are float32 scalars, means over all devices; their names are
        `METRICS`.
    """

    def forward_and_backward(
        state: TrainState, teacher_variables: Variables, part: Batch
    ) -> tuple[Any, Metrics, Any]:
        images = normalize(part["image"], dataset.mean, dataset.std)
        teacher_logits = None
        if teacher is not None and objective.needs_teacher:
            teacher_logits = apply(teacher, teacher_variables, images)

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updates = model.apply(
                variables, images, train=True, mutable=["batch_stats"]
            )
            losses = joint_loss(
                logits,
                part["label"],
                teacher_logits,
                alpha=objective.alpha,
                temperature=objective.temperature,
                label_smoothing=objective.label_smoothing,
            )
            return losses.loss, (losses, logits, updates["batch_stats"])

        gradients, (losses, logits, batch_stats) = jax.grad(loss_fn, has_aux=True)(
            state.params
        )
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == part["label"])
        return gradients, {**losses._asdict(), "accuracy": accuracy}, batch_stats

    def train_step(
        state: TrainState, teacher_variables: Variables, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(key, state.step)
        device_key = jax.random.fold_in(step_key, jax.lax.axis_index(AXIS))
        images = augment(
            device_key, batch["image"], crop_padding=crop_padding, flip=flip
        )
        gradients, metrics, batch_stats = mean_over_parts(
            partial(forward_and_backward, state, teacher_variables),
            {"image": images, "label": batch["label"]},
            accumulation,
        )
        gradients = jax.lax.pmean(gradients, AXIS)
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


def make_rewire_step(config: Any, total_steps: int, key: jax.Array) -> RewireStep:
    """Builds the rewiring that ends an epoch.

    Args:
        config: the `pruning` fields of `configs/default.py`.
        total_steps: of the training, over which the prune rate decays.
        key: PRNG key; the step is folded into it.

    Returns:
        `rewire_step(state) -> state` with new masks, applied to the parameters. The
        optimizer's state is read and left as it is: a weight that went out keeps its
        momentum and may come back.
    """

    def rewire_step(state: TrainState) -> TrainState:
        rate = prune_rate(
            state.step / total_steps,
            config.prune_rate,
            config.prune_rate_end,
            config.prune_rate_schedule,
        )
        masks = rewire(
            state.params,
            optax.tree_utils.tree_get(state.opt_state, "trace"),
            state.masks,
            rate,
            jax.random.fold_in(key, state.step),
            config.method,
        )
        params = apply_masks(masks, state.params)
        return dataclasses.replace(state, masks=masks, params=params)

    return rewire_step


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
