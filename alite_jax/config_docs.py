"""Every field of the configuration with its meaning, read from `configs/default.py`."""

import ast
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from alite_jax.analysis.table import aligned, markdown
from alite_jax.config import default_config, flatten
from alite_jax.config_files import config_directory


class Field(NamedTuple):
    """One field.

    Attributes:
        name: dotted.
        type: of its values, such as `float`.
        value: in the configuration that was asked for.
        meaning: the comment above it, or above the fields that it stands with.
    """

    name: str
    type: str
    value: Any
    meaning: str


def config_fields(config: Mapping[str, Any] | None = None) -> list[Field]:
    """Returns all fields in the order of `configs/default.py`.

    Args:
        config: whose values to give; the defaults when left out.
    """
    values = flatten(default_config() if config is None else config)
    return [
        Field(name, type(values[name]).__name__, values[name], meaning)
        for name, meaning in _meanings().items()
    ]


def config_page(config: Mapping[str, Any] | None = None, format: str = "table") -> str:
    """Returns all fields as text.

    Args:
        config: as for `config_fields`.
        format: `"table"` for a terminal (no meanings), `"markdown"`, or `"json"`.
    """
    fields = config_fields(config)
    if format == "json":
        return json.dumps([field._asdict() for field in fields], indent=2)
    if format == "table":
        return "\n".join(
            aligned([[f.name, f.type, _shown(f.value)] for f in fields], 3)
        )
    rows = [["field", "type", "value", "meaning"]]
    # A bar would end the cell.
    rows += [
        [f"`{f.name}`", f.type, f"`{_shown(f.value)}`", f.meaning.replace("|", "\\|")]
        for f in fields
    ]
    return "\n".join(markdown(rows, left=4))


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else str(value)


def _meanings() -> dict[str, str]:
    """The comment of each field; fields below one another share the one above them."""
    text = (config_directory() / "default.py").read_text()
    lines = text.splitlines()
    functions = {
        node.name: node
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
    }

    def comment(line: int) -> str:
        """What stands right above a line, counted from 1."""
        above: list[str] = []
        while (found := lines[line - 2].strip()).startswith("#"):
            above.insert(0, found.lstrip("# "))
            line -= 1
        return " ".join(above)

    def fields_of(function: ast.FunctionDef, section: str) -> dict[str, str]:
        found: dict[str, str] = {}
        meaning = ""
        for node in function.body:
            if not isinstance(node, ast.Assign):
                continue
            target = node.targets[0]
            if not isinstance(target, ast.Attribute):
                continue
            owner = ast.unparse(target.value)
            prefix = section or ("" if owner == "config" else owner)
            name = f"{prefix}.{target.attr}".lstrip(".")
            meaning = comment(node.lineno) or meaning
            if not isinstance(node.value, ast.Call):
                found[name] = meaning
            elif isinstance(node.value.func, ast.Name) and (
                shared := functions.get(node.value.func.id)
            ):
                found |= fields_of(shared, name)
        return found

    return fields_of(functions["get_config"], "")
