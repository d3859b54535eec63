"""The plan of the house: what may import what, and how large a room may be."""

import ast
import importlib
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "alite_jax"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
        ".__init__"
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
LARGEST = 320  # lines
# What only a format of `--formats` needs.
OPTIONAL = {"ai_edge_litert", "jax2onnx", "litert_converter", "onnx", "onnxruntime"}
OPTIONAL |= {"pillow_heif"}  # For HEIC.

# What each part of the package may import from the others; none that is missing here.
ALLOWED = {
    # What everything stands on.
    "allocator": set(),
    "errors": set(),
    "paths": {"errors"},
    "provenance": {"paths"},
    "registry": {"errors"},
    "schedules": set(),
    "trees": set(),
    "imports": {"errors", "paths"},
    # The method: operators, masks, losses, images, networks, what these cost.
    "ops": {"errors"},
    "sparsity": {"errors", "registry", "schedules", "trees"},
    "distillation": {"errors", "registry"},
    "data": {"errors", "paths", "registry"},
    "models": {"data", "errors", "imports", "ops", "paths", "registry", "trees"},
    "counting": {"data", "models", "sparsity", "trees"},
    "structure": {"counting", "errors", "models", "sparsity", "trees"},
    # The names that a field may hold come from the tables themselves.
    "config": {
        *("data", "distillation", "errors", "models", "ops", "paths", "registry"),
        *("schedules", "sparsity", "structure"),
    },
    "compiled_programs": {"errors", "paths"},
    "jax_settings": {"allocator", "config"},
    # The pure steps, and the runs that they are made in.
    "training": {
        *("data", "distillation", "errors", "models", "schedules", "sparsity"),
        *("structure", "trees"),
    },
    "runs": {
        *("config", "counting", "data", "errors", "imports", "jax_settings", "models"),
        *("paths", "provenance", "sparsity", "structure", "training", "trees"),
    },
    # What comes out of them.
    "pages": {"counting", "data", "errors", "models", "ops"},
    "deploy": {
        *("data", "errors", "models", "ops", "pages", "paths", "provenance"),
        *("structure", "trees"),
    },
    "predict": {"compiled_programs", "data", "deploy", "errors", "paths"},
    "study": {"config", "errors", "paths", "runs"},
    # What the command line and the public functions do with all of it.
    "jobs": {
        *("compiled_programs", "config", "counting", "data", "deploy", "errors"),
        *("jax_settings", "models", "pages", "paths", "provenance", "runs"),
        "sparsity",
        *("structure", "study", "training", "trees"),
    },
    "command_help": {"jobs"},
    "command_line": {
        *("__init__", "command_help", "config", "errors", "jobs", "paths", "runs"),
    },
    "__main__": {"__init__", "allocator", "command_line", "predict"},
    "__init__": {
        *("config", "data", "distillation", "jobs", "models", "runs", "sparsity"),
        "study",
    },
}


def imports(path: Path) -> set[str]:
    """The dotted names that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            # `from alite_jax import config` imports a module, too.
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(module: str) -> str:
    """`data` for `alite_jax.data.sources`; `__init__` for `alite_jax` itself."""
    return (module.split(".") + ["__init__"])[1]


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards_only(module: str) -> None:
    used = {
        part(name) for name in imports(MODULES[module]) if name.startswith("alite_jax.")
    }
    assert used - {part(module)} <= ALLOWED[part(module)]


def test_no_part_imports_itself_in_a_circle() -> None:
    order: list[str] = []
    while len(order) < len(ALLOWED):
        ready = [p for p in ALLOWED if p not in order and ALLOWED[p] <= set(order)]
        assert ready, f"a circle among {set(ALLOWED) - set(order)}"
        order += ready


def test_a_forbidden_import_would_be_noticed(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        "def f():\n    from alite_jax.runs import fit\n"
        "import alite_jax.models.resnet\nfrom alite_jax import config\n"
    )
    assert {part(name) for name in imports(file)} == {"runs", "models", "config"}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_small_documented_and_importable(module: str) -> None:
    path = MODULES[module]
    text = path.read_text()
    assert len(text.splitlines()) <= LARGEST
    assert path.name not in ("utils.py", "util.py", "helpers.py", "misc.py")
    if text:  # The file that makes a folder a package may be empty.
        assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
    importlib.import_module(module)


def test_every_folder_of_the_package_is_a_package() -> None:
    for path in MODULES.values():
        assert (path.parent / "__init__.py").exists()


def test_no_file_is_a_box_of_odds_and_ends() -> None:
    names = {
        path.name
        for folder in ("configs", "configs/studies", "tests")
        for path in folder_of(folder)
    }
    assert not names & {"utils.py", "util.py", "helpers.py", "misc.py"}


def folder_of(name: str) -> list[Path]:
    return sorted((ROOT / name).glob("*.py"))


def required(file: str) -> set[str]:
    """Names of the distributions in a requirements file, as pip compares them."""
    lines = (ROOT / file).read_text().splitlines()
    found = set()
    for line in lines:
        line = line.partition("#")[0].strip()
        if line.startswith("-r "):
            found |= required(line[3:])
        elif match := re.match(r"[A-Za-z0-9._-]+", line):
            found.add(normal(match[0]))
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_import_is_in_the_requirements() -> None:
    distributions = metadata.packages_distributions()
    own = {"alite_jax", *sys.stdlib_module_names}

    def distributions_of(paths: list[Path]) -> set[str]:
        tops = {name.split(".")[0] for path in paths for name in imports(path)}
        return {normal(distributions[top][0]) for top in tops - own - OPTIONAL}

    program = [*MODULES.values(), *folder_of("configs"), *folder_of("configs/studies")]
    program.append(ROOT / "launch.py")
    needed = distributions_of(program)
    assert needed <= required("requirements.txt")
    tests = [path for path in folder_of("tests") if path.stem.startswith("test_")]
    own |= {path.stem for path in folder_of("tests")} | {"launch", "benchmarks", "docs"}
    assert distributions_of(tests) <= required("requirements-dev.txt")


def test_what_an_optional_format_needs_is_in_its_requirements() -> None:
    # The first comes by itself; the others ask for what the project cannot have, and
    # are installed behind it.
    alone = {"pillow_heif", "jax2onnx", "litert_converter"}
    known = {normal(top) for top in OPTIONAL - alone}
    files = ("requirements-onnx.txt", "requirements-tflite.txt")
    assert known | {"onnx-ir"} == set().union(*map(required, files))
    for path in MODULES.values():
        # Whoever does without imports the module, too.
        above = [
            n
            for n in ast.parse(path.read_text()).body
            if isinstance(n, ast.Import | ast.ImportFrom)
        ]
        names = {alias.name for n in above for alias in n.names} | {
            n.module or "" for n in above if isinstance(n, ast.ImportFrom)
        }
        assert not {name.split(".")[0] for name in names} & OPTIONAL


def test_reading_a_configuration_loads_no_jax() -> None:
    """So that a mistake in a command line shows at once."""
    script = (
        "import sys, alite_jax, alite_jax.allocator, alite_jax.config\n"
        "alite_jax.config.default_config()\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'jax', 'flax',"
        " 'optax', 'orbax', 'tensorflow_datasets', 'numpy'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "[]\n", done.stderr
