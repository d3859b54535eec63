"""The configuration that a run records in its folder, whole wherever that is moved.

A path means what it says where the command was typed. In `config.json` it must mean the
same to whoever reads it later, from any folder: folders of other runs are written as
seen from the run's own, so that they may move together, and folders of data whole. A
name that another package has registered is written with that package.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from alite_jax.config import default_config, flatten, override
from alite_jax.config.validation import registries
from alite_jax.errors import ConfigError
from alite_jax.paths import is_url, user_path

FILE = "config.json"
# Fields of before, and the one value that a run of today has in their place; None where
# the field had no part in a run's result but for rounding.
RETIRED = {
    "data.on_device": None,
    "compute.steps_per_dispatch": None,
    "student.embedding_scale": 1.0,
    "student.norm_momentum": 0.9,
}
# What runs from before a field existed did in its place, where that is not its default.
_BEFORE = {"compute.dtype": "float32"}
_LAST_VERSION = "01aceb7"  # The commit that still read them all.

OTHER_RUNS = ("teacher.workdir", "student.init_workdir")
_FILES = (
    *("data.data_dir", "data.manual_dir", "data.folder"),
    *("teacher.weights", "teacher.logits"),
)
# What may be a file of Python, with a name in it behind a colon.
_MODULES = ("teacher.module", "student.module")
PLACES = (*_FILES, *_MODULES)


def to_json(config: ConfigDict) -> str:
    """Returns the text of `config.json`: sorted keys, tuples as lists.

    Where names are used that other packages have registered, `packages` says which:
    `{"distillation.loss=my_kd": "my-package"}`.
    """
    values, fields = config.to_dict(), flatten(config)
    uses = {
        f"{field}={fields[field]}": names.package(fields[field])
        for field, names in registries().items()
    }
    if packages := {use: package for use, package in uses.items() if package}:
        values["packages"] = packages
    return json.dumps(values, sort_keys=True, indent=2) + "\n"


def from_json(text: str) -> ConfigDict:
    """Reads what `to_json` wrote.

    Args:
        text: a JSON object; a field that it lacks takes what runs did before the field
            existed, as a rule its default, and one of `RETIRED` is left out.

    Returns:
        A locked, validated configuration.

    Raises:
        ConfigError: the text is not JSON, or not a valid configuration, or needs a
            package that has not registered what is used of it.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"the configuration is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"the configuration must be a JSON object, found {type(values).__name__}"
        )
    packages = values.pop("packages", {})
    if not isinstance(packages, dict):
        raise ConfigError(f"packages must be a JSON object, found {packages!r}")
    for use, package in packages.items():
        field, _, name = use.partition("=")
        names = registries().get(field)
        if names is not None and name not in names:
            raise ConfigError(
                f"{field} is {name!r}, a {names.kind} that {package} has registered and"
                " that is not there now; install that package, or import it before"
            )
    fields = flatten(values)
    for name, value in RETIRED.items():
        found = fields.pop(name, value)
        if value is not None and found != value:
            raise ConfigError(
                f"{name} is {found!r}, but no longer a field: what was trained with"
                f" anything but {value!r} is read by commit {_LAST_VERSION} of this"
                " project"
            )
    return override(default_config(), _BEFORE | fields)


def recorded(config: ConfigDict, folder: Path) -> ConfigDict:
    """Returns a configuration as the run in `folder` records it."""
    start = os.path.abspath(folder)
    return _replaced(
        absolute(config), OTHER_RUNS, lambda text: os.path.relpath(text, start)
    )


def _whole_file(text: str) -> str:
    file, colon, name = text.rpartition(":")
    if not file.endswith(".py"):
        return text
    return f"{os.path.abspath(user_path(file))}{colon}{name}"


def absolute(config: ConfigDict) -> ConfigDict:
    """Returns a configuration that names all files and folders from the root on."""
    paths = (*OTHER_RUNS, *_FILES)
    seen = _replaced(config, paths, lambda text: os.path.abspath(user_path(text)))
    return _replaced(seen, _MODULES, _whole_file)


def read_config(folder: Path) -> ConfigDict:
    """Returns the configuration that a run has recorded, for use from here.

    Args:
        folder: of the run.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    path = folder / FILE
    try:
        config = from_json(path.read_text())
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"{path} cannot be used: {error}") from error
    return _replaced(config, OTHER_RUNS, lambda text: _found(text, folder))


def _found(text: str, folder: Path) -> str:
    """Where a recorded folder is, as a path from here."""
    seen = os.path.normpath(os.path.join(folder, user_path(text)))
    if os.path.isdir(seen) or text.startswith(os.pardir):
        return seen
    # Earlier versions recorded what was typed: as seen from where one stood, which is
    # as a rule above the run's folder.
    for above in (*Path(os.path.abspath(folder)).parents, Path.cwd()):
        if (above / text).is_dir():
            return str(above / text)
    return seen


def _replaced(
    config: ConfigDict, fields: tuple[str, ...], change: Callable[[str], str]
) -> ConfigDict:
    given = {name: text for name, text in flatten(config).items() if name in fields}
    paths = {name: text for name, text in given.items() if text and not is_url(text)}
    return override(config, {name: change(text) for name, text in paths.items()})
