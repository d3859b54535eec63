"""By what two runs know that they saw the same images."""

import hashlib

import numpy as np

from alite_jax.data.sources import Data, Split

# Images of a split that are looked at: reading all would take hours where they do not
# fit into memory, and a digest must not depend on whether they do.
_IMAGES = 1024


def data_digest(data: Data) -> str:
    """Returns the SHA-256 of a data set, as the networks see it, in hexadecimal.

    It covers the names of the classes, and of each split the number of examples and the
    shape, and of at most 1,024 examples, spread evenly over it, images and labels. So
    it tells other resizing, splits or decoders, and not a change of single images.
    """
    digest = hashlib.sha256("\n".join(data.spec.class_names).encode())
    for split in (data.train, data.evaluation):
        _add(digest, split)
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", split: Split) -> None:
    digest.update(repr((len(split), split.images.shape[1:])).encode())
    count = min(len(split), _IMAGES)
    chosen = np.arange(count) * len(split) // count
    for start in range(0, count, 64):
        part = chosen[start : start + 64]
        digest.update(np.ascontiguousarray(split.images[part], np.uint8).data)
        digest.update(np.ascontiguousarray(split.labels[part], np.int32).data)
