"""Writes docs/api.md from the docstrings of the public names.

    python docs/make_api.py

or `make docs`. Of a docstring in Google's form it takes all, of the source the
signature; `tests/test_api.py` runs the examples, and finds a page that is out of date.
"""

import ast
import inspect
import re
import sys
import textwrap
from pathlib import Path
from pkgutil import resolve_name

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from alite_jax.sparsity import masks

PAGE = Path(__file__).resolve().parent / "api.md"
WIDTH, CODE_WIDTH = 120, 88  # columns

# All of `alite_jax.__all__`, in the order of the page, and what people use beside it.
GROUPS = {
    "Configurations": ["alite_jax.get_config", "alite_jax.override"],
    "Runs": [
        "alite_jax.train",
        "alite_jax.train_teacher",
        "alite_jax.write_views",
        "alite_jax.evaluate",
        "alite_jax.restore",
        "alite_jax.export",
        "alite_jax.report",
        "alite_jax.compare",
        "alite_jax.plan",
        "alite_jax.sweep",
        "alite_jax.get_study",
        "alite_jax.run_study",
        "alite_jax.study.declaration.Study",
        "alite_jax.study.declaration.Row",
    ],
    "Pruning": [
        "alite_jax.Pruner",
        "alite_jax.Pruner.wrap",
        "alite_jax.Pruner.init_masks",
        "alite_jax.Pruner.masks",
        "alite_jax.Pruner.density",
        "alite_jax.Pruner.to_dense",
        "alite_jax.RewiringSteps",
        "alite_jax.apply_masks",
        "alite_jax.RULES",
        "alite_jax.sparsity.masks.is_prunable",
    ],
    "Extending": [
        "alite_jax.register_loss",
        "alite_jax.register_method",
        "alite_jax.register_model",
        "alite_jax.register_dataset",
    ],
    "Using an exported network": [
        "alite_jax.deploy.artefact.load",
        "alite_jax.deploy.artefact.Artefact",
        "alite_jax.deploy.artefact.Artefact.logits",
        "alite_jax.deploy.artefact.Artefact.read_image",
        "alite_jax.deploy.artefact.Artefact.classify",
        "alite_jax.deploy.networks.read_network",
    ],
}
# A constant has no docstring: the comment above it says what it is. Its example is that
# of the function below it.
CONSTANT, ITS_MODULE = "alite_jax.RULES", masks

HEAD = """\
Written from the docstrings by `make docs`; the tests run each example. In the examples
`config` is a small configuration of digits, `workdir` the folder of its finished run,
made by `alite_jax.train(config, workdir)`, and `params` is `{"kernel": float32 [10,
20], "bias": float32 [20]}`. `alite_jax`, `jax`, `optax`, `os`, NumPy as `np`,
`jax.numpy` as `jnp` and `flax.linen` as `nn` are imported. The examples follow each
other in one Python session.

`ConfigDict` is that of `ml_collections`, `Overrides` are what `override` takes.
`Params` and `Masks` are pytrees of one structure: a mask is a bool array where the
parameter is pruned, and the scalar True where it stays dense.

What is wrong with an argument, a file or a network is raised as an
`alite_jax.errors.AliteError` with one sentence; `ConfigError`, `DataError` and the
other errors below are kinds of it. The fields of a configuration are in
[configs/default.py](../configs/default.py).
"""

# The parts of a docstring, in the order of the page; the first is what comes before.
PARTS = ("", "Args", "Returns", "Raises", "Attributes", "Example")


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page())


def page() -> str:
    """Returns the whole page."""
    contents, entries = [], []
    for title, names in GROUPS.items():
        links = (f"[{_short(name)}](#{_anchor(name)})" for name in names)
        contents.append(_filled(f"- {title}: {', '.join(links)}", "  "))
        entries += [f"## {title}", *map(entry, names)]
    head = ["# The public names", *map(_filled, HEAD.split("\n\n"))]
    return "\n\n".join([*head, "\n".join(contents), *entries]) + "\n"


def entry(name: str) -> str:
    """Returns what the page says about one name, in Markdown."""
    heading = f"### {name}"
    if name == CONSTANT:
        comment, value = constant(_short(name))
        return "\n\n".join([heading, _code("python", value), _filled(comment)])
    parts = sections(name)
    told = [heading, _code("python", signature(name))]
    for part in PARTS:
        text = parts.get(part)
        if not text:
            continue
        if part == "Example":
            told.append(_code("pycon", text))
        elif part in ("Args", "Attributes", "Raises"):
            title = {"Args": "Arguments"}.get(part, part)
            told += [f"{title}:", "\n".join(map(_item, _items(text)))]
        else:
            paragraphs = text.split("\n\n")
            paragraphs[0] = f"{part}: {paragraphs[0]}".removeprefix(": ")
            told += map(_filled, paragraphs)
    return "\n\n".join(told)


def sections(name: str) -> dict[str, str]:
    """Returns the parts of a docstring by title, `""` for what comes before them.

    A class's arguments are in the docstring of its `__init__`, if it has one.
    """
    thing = resolve_name(name)
    found = _sections(inspect.getdoc(thing) or "")
    if inspect.isclass(thing) and "__init__" in vars(thing):
        of_init = _sections(inspect.getdoc(thing.__init__) or "")
        found = {**of_init, **found}
    return found


def _sections(text: str) -> dict[str, str]:
    titles = "|".join(PARTS[1:])
    first, *rest = re.split(rf"^({titles}):\n", text, flags=re.MULTILINE)
    bodies = {
        title: textwrap.dedent(body).strip()
        for title, body in zip(rest[::2], rest[1::2], strict=True)
    }
    return {"": first.strip(), **bodies}


def signature(name: str) -> str:
    """Returns how to call it, with types as in the source, in at most 88 columns."""
    thing = resolve_name(name)
    source = textwrap.dedent(inspect.getsource(thing))
    node = ast.parse(source).body[0]
    result = ""
    if isinstance(node, ast.ClassDef):
        methods = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
        if "__init__" in methods:
            parameters = _parameters(source, methods["__init__"].args)
        else:  # A dataclass.
            fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
            parameters = [str(ast.get_source_segment(source, n)) for n in fields]
    else:
        assert isinstance(node, ast.FunctionDef) and node.returns is not None
        parameters = _parameters(source, node.args)
        result = f" -> {ast.get_source_segment(source, node.returns)}"
    shown = _short(name)
    line = f"{shown}({', '.join(parameters)}){result}"
    if len(line) <= CODE_WIDTH:
        return line
    lines = "".join(f"    {parameter},\n" for parameter in parameters)
    return f"{shown}(\n{lines}){result}"


def _parameters(source: str, args: ast.arguments) -> list[str]:
    """Each parameter as it is written, with its type and default."""

    def texts(nodes: list[ast.arg], defaults: list[ast.expr | None]) -> list[str]:
        found = []
        for node, default in zip(nodes, defaults, strict=True):
            text = str(ast.get_source_segment(source, node))
            if default is not None:
                text += f" = {ast.get_source_segment(source, default)}"
            found.append(text)
        return found

    missing = len(args.args) - len(args.defaults)
    found = texts(args.args, [*[None] * missing, *args.defaults])
    if args.kwonlyargs:
        found += ["*", *texts(args.kwonlyargs, args.kw_defaults)]
    return [text for text in found if text != "self"]


def constant(name: str) -> tuple[str, str]:
    """Returns the comment above a constant and its assignment."""
    source = inspect.getsource(ITS_MODULE)
    pattern = rf"((?:^# .*\n)+)(^{name}\b.*?^\)\n)"
    found = re.search(pattern, source, re.MULTILINE | re.DOTALL)
    assert found, f"{ITS_MODULE.__name__} has no {name} with a comment above it"
    return re.sub(r"^# ", "", found[1], flags=re.MULTILINE), found[2]


def _items(text: str) -> list[tuple[str, str]]:
    """Pairs of name and description, of lines `name: description`."""
    items = re.split(r"\n(?=\S)", text)
    return [(name, rest) for name, _, rest in (i.partition(": ") for i in items)]


def _item(item: tuple[str, str]) -> str:
    name, text = item
    return _filled(f"- `{name}`: {text}", "  ")


def _filled(text: str, indent: str = "") -> str:
    words = " ".join(text.split())
    return textwrap.fill(
        words,
        WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text.strip()}\n```"


def _short(name: str) -> str:
    """`Pruner.wrap` of its full name."""
    parts = name.split(".")
    start = next((i for i, part in enumerate(parts) if part[0].isupper()), -1)
    return ".".join(parts[start:])


def _anchor(name: str) -> str:
    return name.lower().replace(".", "")


if __name__ == "__main__":
    main()
