"""Leaves of a pytree with their names."""

from collections.abc import Mapping
from typing import Any

import jax


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict of `{"stem/kernel": array}`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *folders, name = path.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = leaf
    return tree


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """The leaves with their paths, such as `("stem/kernel", array)`, in their order."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
