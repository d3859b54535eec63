"""A state as a flat mapping from tree paths to arrays, as which it is stored."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from alite_jax.trees import named_leaves


def named_arrays(tree: Any, read: Any = np.asarray) -> dict[str, np.ndarray]:
    """Returns `{tree path: read(leaf)}` in the order of the leaves."""
    named = named_leaves(tree)
    flat = {path: read(leaf) for path, leaf in named}
    if len(flat) != len(named):
        raise ValueError("two leaves of the state have the same tree path")
    return flat


def describe(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the dtype, shape and SHA-256 of every array, for a JSON document."""
    return {
        name: {
            "dtype": str(array.dtype),
            "shape": list(array.shape),
            "sha256": hashlib.sha256(
                np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            ).hexdigest(),
        }
        for name, array in flat.items()
    }


def blank(leaf: Any) -> np.ndarray:
    """Returns an array of the leaf's shape and dtype, its values undefined."""
    if not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    return np.empty(leaf.shape, leaf.dtype)


def like(template: Any, array: np.ndarray) -> Any:
    """Returns a stored array as the kind of leaf that the template has."""
    if isinstance(template, np.generic):
        return array[()]
    return array if hasattr(template, "dtype") else type(template)(array)


def as_json(value: Any) -> Any:
    """Returns `value` as it comes back from JSON; numpy scalars become numbers."""
    return json.loads(json.dumps(value, default=lambda number: number.item()))


def digest(document: Any) -> str:
    """Returns the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
