"""Which code made a result, when, on what: as sentences and as a table."""

from collections.abc import Mapping
from typing import Any


def provenance(environment: Mapping[str, Any]) -> str:
    """Says when, by which version and by which command a run was made.

    Args:
        environment: of `summary.json`; what runs from before lack is not said.
    """
    parts = {
        "date": "{}",
        "version": "with alite_jax {}",
        "commit": "(commit {})",
        "device": "on {},",
        "jax": "jax {},",
        "command": "by `{}`",
    }
    said = [
        text.format(environment[name])
        for name, text in parts.items()
        if environment.get(name)
    ]
    return " ".join(["Trained", *said]).rstrip(",") + "."


def environment_rows(environment: Mapping[str, Any]) -> list[list[str]]:
    """Everything that is recorded of it, a line for each name; [] if nothing is."""
    lines = [[name.replace("_", " "), str(environment[name])] for name in environment]
    return [["", "value"], *lines] if lines else []
