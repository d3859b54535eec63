"""Looking into traced programs."""

from collections.abc import Iterator
from typing import Any


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr and of those nested in it."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)  # a closed jaxpr holds an open one
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from equations(inner)


def primitives(jaxpr: Any) -> set[str]:
    """The names of all operations in a jaxpr."""
    return {equation.primitive.name for equation in equations(jaxpr)}
