"""Networks of the full size and what tracing them tells, each traced only once."""

import functools

import jax
import jax.numpy as jnp

from alite_jax.models.resnet import create_model


@functools.cache
def network(name, classes=10, *, kernel_size=7, width=64, stem="conv"):
    """A model and the shapes of its parameters, which no image size changes."""
    model = create_model(
        name, num_classes=classes, kernel_size=kernel_size, width=width, stem=stem
    )
    init = functools.partial(model.init, train=False)
    images = jnp.zeros((1, 1, 1, 3))
    return model, jax.eval_shape(init, jax.random.key(0), images)["params"]
