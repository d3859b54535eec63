"""The joint step, read from top to bottom: what one training step does to one device.

Views of the images, the teacher's forward pass, the student's, the loss, its gradient,
the update, the masks. Everything is pure, works on one device's shard of a batch under
a mapped axis named `AXIS`, and reduces over it; `runs.parallel` maps it over devices.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from alite_jax.data.augment import Augmentation, normalize
from alite_jax.data.specs import DatasetSpec
from alite_jax.distillation import feature_loss, joint_loss
from alite_jax.models.model import Model
from alite_jax.sparsity.masked import masked
from alite_jax.sparsity.masks import apply_masks
from alite_jax.training.microbatches import in_microbatches
from alite_jax.training.objective import Objective
from alite_jax.training.state import TrainState, Variables

AXIS = "batch"

# With fewer classes, being among the five likeliest ones says little.
TOP5_CLASSES = 50

# What the key of a step is for, folded into it; another use needs another number.
_VIEWS, _LAYERS = 0, 1

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
EvalStep = Callable[[Variables, Batch], Metrics]


class Answers(NamedTuple):
    """What a teacher says of some images.

    Attributes:
        logits: `[batch, classes]`, or None where the loss does not ask for them.
        features: the outputs of its stages, none where the loss does not ask for them.
    """

    logits: jax.Array | None
    features: list[jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class JointStep:
    """The joint step: distillation, task loss and pruning in one pass.

    `batch` has `image`, uint8 `[batch, height, width, channels]`, and `label`, int32
    `[batch]`, in every method. With `teacher_logits`, float32 `[batch, classes]`, it
    brings the teacher's answers, too.

    Attributes:
        model: the network that is trained; its BatchNorm may reduce over `AXIS`.
        teacher: a frozen network of the same logits, or None.
        optimizer: the optax chain.
        objective: the loss.
        dataset: gives the normalisation constants.
        augment: makes views of the images; see `create_augmentation`.
        key: PRNG key; the step is folded into it.
        microbatches: in which a shard goes through the networks, each an equal part of
            it. Gradients, metrics and the updated running statistics are means over
            them; BatchNorm normalises each by its own statistics (on all devices), so
            that more than one is not quite the same training. Views do not depend on
            it.
        total_steps: of the training, in whose course the objective may change; needed
            only where it does.
    """

    model: Model
    teacher: Model | None
    optimizer: optax.GradientTransformation
    objective: Objective
    dataset: DatasetSpec
    augment: Augmentation
    key: chex.PRNGKey
    microbatches: int = 1
    total_steps: int = 0

    def train_step(
        self, state: TrainState, teacher_variables: Variables, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        """The whole step.

        Returns:
            The state after it, and metrics: float32 scalars, means over all devices;
            their names are `objective.metrics`.
        """
        views = self.views(state.step, batch)
        gradient = in_microbatches(jax.grad(self.loss, has_aux=True), self.microbatches)
        gradients, (metrics, batch_stats) = jax.lax.pmean(
            gradient(state.params, state, teacher_variables, views), AXIS
        )
        # Momentum is as dense as the gradients; only the weights are masked.
        updates, after = masked(self.optimizer).update(
            gradients, state.pruning, state.params
        )
        params = optax.apply_updates(state.params, updates)
        state = dataclasses.replace(
            state,
            step=after.step,
            # They are masked by now. Said once more, XLA adds and masks in one pass.
            params=apply_masks(after.masks, params),
            batch_stats=batch_stats,
            opt_state=after.inner,
        )
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        return state, metrics

    def views(self, step: jax.Array, batch: Batch) -> Batch:
        """Crops and mirrors the images of a step, uint8 as they came.

        What is drawn is drawn for the whole batch, so that the number of devices does
        not change it. `place` is where an image has its place in that.
        """
        images = self.augment(
            jax.random.fold_in(jax.random.fold_in(self.key, step), _VIEWS),
            batch["image"],
            shard=jax.lax.axis_index(AXIS),
            num_shards=jax.lax.axis_size(AXIS),
        )
        shard = jax.lax.axis_index(AXIS) * len(images)
        return {**batch, "image": images, "place": shard + jnp.arange(len(images))}

    def layers_key(self, step: jax.Array, places: jax.Array) -> chex.PRNGKey:
        """The key of layers that draw, such as dropout, for a part of a batch.

        Args:
            step: of the training.
            places: int32 `[part]`, of the images in the whole batch.
        """
        key = jax.random.fold_in(jax.random.fold_in(self.key, step), _LAYERS)
        return jax.random.fold_in(key, places[0])

    def loss(
        self,
        params: chex.ArrayTree,
        state: TrainState,
        teacher_variables: Variables,
        views: Batch,
    ) -> tuple[jax.Array, tuple[Metrics, chex.ArrayTree]]:
        """Both forward passes and the loss.

        Args:
            params: what the loss is differentiated by: those of the state, whose absent
                weights are zero. These have gradients too, by which the rewiring finds
                the ones to grow.
            state: before the step.
            teacher_variables: `params` and `batch_stats`, unless there is no teacher.
            views: a batch, augmented.

        Returns:
            The loss, and beside it the metrics and the updated running statistics.
        """
        objective, labels = self.objective, views["label"]
        images = normalize(views["image"], self.dataset.mean, self.dataset.std)
        known = views.get("teacher_logits")
        answers = self.ask_teacher(teacher_variables, images, known)
        compares_features = self.teacher is not None and objective.feature_weight > 0
        collections = ["intermediates"] if compares_features else []
        logits, updates = self.model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats", *collections],
            rngs={"params": self.layers_key(state.step, views["place"])},
        )
        alpha, temperature = objective.weights(state.step, self.total_steps)
        metrics = joint_loss(
            logits,
            labels,
            answers.logits,
            alpha=alpha,
            temperature=temperature,
            label_smoothing=objective.label_smoothing,
            loss=objective.loss,
            alpha_dkd=objective.alpha_dkd,
            beta_dkd=objective.beta_dkd,
        )._asdict()
        if objective.feature_weight > 0:
            features = jax.tree.leaves(updates.get("intermediates"))
            metrics["feature_loss"] = feature_loss(features, answers.features)
            metrics["loss"] += objective.feature_weight / 2 * metrics["feature_loss"]
        metrics["accuracy"] = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
        return metrics["loss"], (metrics, updates.get("batch_stats", {}))

    def ask_teacher(
        self, variables: Variables, images: jax.Array, known: jax.Array | None
    ) -> Answers:
        """The teacher's forward pass, in evaluation mode, as far as it is needed.

        Args:
            variables: of the teacher.
            images: normalised.
            known: its logits, where they come with the batch.
        """
        if known is not None and self.objective.needs_teacher:
            return Answers(known, [])
        if self.teacher is None or not self.objective.needs_teacher:
            return Answers(None, [])
        if self.objective.feature_weight == 0:
            return Answers(apply(self.teacher, variables, images), [])
        logits, updates = self.teacher.apply(
            variables, images, train=False, mutable=["intermediates"]
        )
        features = jax.tree.leaves(updates["intermediates"])
        return Answers(logits if self.objective.needs_logits else None, features)

    def gradients(
        self, state: TrainState, teacher_variables: Variables, batch: Batch
    ) -> chex.ArrayTree:
        """Those by which a step would go, means over all devices, dense."""
        views = self.views(state.step, batch)
        gradient = in_microbatches(jax.grad(self.loss, has_aux=True), self.microbatches)
        found, _ = gradient(state.params, state, teacher_variables, views)
        gradients: chex.ArrayTree = jax.lax.pmean(found, AXIS)
        return gradients


def apply(model: Model, variables: Variables, images: jax.Array) -> jax.Array:
    """Logits `[batch, classes]` of a network in evaluation mode."""
    logits: jax.Array = model.apply(variables, images, train=False)
    return logits


def make_eval_step(model: Model, dataset: DatasetSpec) -> EvalStep:
    """Builds the evaluation of one batch.

    Of logits that are equal, that of the lower label counts as the larger.

    Returns:
        `eval_step(variables, batch) -> sums`, float32, over all devices, each weighted
        by the batch's `weight`, float32 `[batch]`, which is 0 at padding: by class,
        `[classes]`, the images (`count`) and those whose largest logit is that of their
        class (`correct`); `loss`, a scalar; and with at least `TOP5_CLASSES` classes
        `top5`, a scalar, the images with their class's logit among the five largest.
    """

    def eval_step(variables: Variables, batch: Batch) -> Metrics:
        images = normalize(batch["image"], dataset.mean, dataset.std)
        logits = apply(model, variables, images)
        labels, weight = batch["label"], batch["weight"]
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
        correct = jnp.argmax(logits, axis=-1) == labels
        classes = logits.shape[-1]
        sums = {
            "count": jax.ops.segment_sum(weight, labels, classes),
            "correct": jax.ops.segment_sum(weight * correct, labels, classes),
            "loss": jnp.sum(weight * losses),
        }
        if classes >= TOP5_CLASSES:
            _, likeliest = jax.lax.top_k(logits, 5)
            found = jnp.any(likeliest == labels[:, None], axis=-1)
            sums["top5"] = jnp.sum(weight * found)
        return jax.lax.psum(sums, AXIS)

    return eval_step
