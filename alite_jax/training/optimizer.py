"""The optimizer as an optax chain, and its schedule."""

import chex
import jax
import optax
from ml_collections import ConfigDict

from alite_jax.errors import ConfigError
from alite_jax.sparsity.masks import is_prunable
from alite_jax.trees import named_leaves


def learning_rate_schedule(
    config: ConfigDict, steps_per_epoch: int, epochs: int
) -> optax.Schedule:
    """Linear warm-up from 0, then cosine to 0 or steps.

    Args:
        config: the fields of an optimizer; see `configs/default.py`.
        steps_per_epoch: optimizer steps in an epoch.
        epochs: of the whole training, warm-up included.

    Returns:
        A function from the step to the learning rate.
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    rest = max(1, epochs * steps_per_epoch - warmup)
    if config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(config.learning_rate, rest)
    else:
        boundaries = {
            epoch * steps_per_epoch - warmup: config.step_factor
            for epoch in config.step_epochs
        }
        decay = optax.piecewise_constant_schedule(config.learning_rate, boundaries)
    ramp = optax.linear_schedule(0.0, config.learning_rate, max(1, warmup))
    # Step 0 of a ramp has rate 0 and would be wasted, so the ramp starts at its step 1.
    return optax.join_schedules([lambda step: ramp(step + 1), decay], [warmup])


def create_optimizer(
    config: ConfigDict, steps_per_epoch: int, epochs: int
) -> optax.GradientTransformation:
    """The optimizer of a network: SGD with momentum, or AdamW.

    Clipping comes first, then for SGD the weight decay of kernels and the momentum,
    for AdamW the moments and the decay, and last the learning rate. The momentum is
    dense: absent weights have one too, by which `alite_jax.sparsity.rewiring` decides
    what to grow.

    Args:
        config: the fields of an optimizer; see `configs/default.py`.
        steps_per_epoch: optimizer steps in an epoch.
        epochs: of the whole training.

    Raises:
        ConfigError: it was handed to `train` by a program.
    """
    if config.name == "python":
        raise ConfigError(
            "optimizer.name is 'python': a program gave the optimizer of this run, and"
            " must give it again to go on, as train(..., optimizer=...)"
        )
    decay = optax.add_decayed_weights(config.weight_decay, mask=kernels)
    if config.name == "adamw":
        directions = [optax.scale_by_adam(config.momentum, config.beta2), decay]
    else:
        directions = [decay, optax.trace(config.momentum, nesterov=config.nesterov)]
    if config.clip_norm > 0:
        directions.insert(0, optax.clip_by_global_norm(config.clip_norm))
    schedule = learning_rate_schedule(config, steps_per_epoch, epochs)
    return optax.chain(*directions, optax.scale_by_learning_rate(schedule))


def kernels(params: chex.ArrayTree) -> chex.ArrayTree:
    """A tree like `params`: True at what decays, which is what could be pruned."""
    decays = [is_prunable(path, leaf) for path, leaf in named_leaves(params)]
    return jax.tree.unflatten(jax.tree.structure(params), decays)
