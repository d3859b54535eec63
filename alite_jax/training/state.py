"""The training state of one network, teacher or student alike."""

from collections.abc import Callable
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import optax

from alite_jax.models.model import Model
from alite_jax.sparsity.masked import PrunerState
from alite_jax.sparsity.masks import apply_masks

Variables = dict[str, Any]


@flax.struct.dataclass
class TrainState:
    """Everything that changes during training.

    Random numbers are not here: every key derives from the seed and the step.

    Attributes:
        step: int32 scalar, optimizer steps done.
        params: the parameters, absent weights zero.
        batch_stats: BatchNorm's running means and variances.
        opt_state: of the optax chain; its momentum is dense.
        masks: of the structure of `params`; see `alite_jax.sparsity.masks`.
    """

    step: jax.Array
    params: chex.ArrayTree
    batch_stats: chex.ArrayTree
    opt_state: optax.OptState
    masks: chex.ArrayTree

    @property
    def pruning(self) -> PrunerState:
        """The part that a pruned optimizer has as its state."""
        return PrunerState(self.step, self.masks, self.opt_state)

    @property
    def variables(self) -> Variables:
        """The network itself, without what only its training needs.

        `params`, `batch_stats` and `masks`: a Flax variable dict, of which modules read
        the first two.
        """
        return {
            "params": self.params,
            "batch_stats": self.batch_stats,
            "masks": self.masks,
        }


def create_state(
    key: chex.PRNGKey,
    model: Model,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    make_masks: Callable[[chex.PRNGKey, chex.ArrayTree], chex.ArrayTree],
    start: Variables | None = None,
) -> TrainState:
    """Draws a network and its masks.

    Args:
        key: PRNG key.
        model: called with images `[1, *image_shape]` and `train=False`.
        optimizer: the optax chain.
        image_shape: (height, width, channels).
        make_masks: from a key and the parameters to the masks.
        start: `params` and `batch_stats` to begin with instead of drawn ones.
    """
    params_key, masks_key = jax.random.split(key)
    images = jnp.zeros((1, *image_shape), jnp.float32)
    variables = start or model.init(params_key, images, train=False)
    masks = make_masks(masks_key, variables["params"])
    params = apply_masks(masks, variables["params"])
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        masks=masks,
    )
