"""What a network is to the rest of the project: two methods, as linen has them."""

from collections.abc import Mapping
from typing import Any, Protocol

Variables = Mapping[str, Any]


class Model(Protocol):
    """A network from images to logits, without its numbers.

    A linen module whose one argument besides the images is `train` is one as it is;
    `foreign` makes one of any other module.
    """

    def init(self, *args: Any, **kwargs: Any) -> Any:
        """Draws the numbers: `init(key, images, train=False)`.

        Returns:
            `params`, which are trained, and `batch_stats`, whatever else the forward
            pass records; the latter may be left out where there is nothing.
        """

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass: `apply(variables, images, train=, mutable=, rngs=)`.

        Of the variables `params` and `batch_stats` are read. Images are normalised,
        float32 `[batch, height, width, channels]`. In training there are dropout and
        the batch's own statistics, and `rngs` is `{"params": key}`, from which every
        layer that draws has its own. With `mutable`, a list, these of the collections
        `"batch_stats"` and `"intermediates"` are returned, too.

        Returns:
            logits float32 `[batch, classes]`, or a pair of them and the collections.
        """
