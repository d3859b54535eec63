"""Where config and study files lie, and how one is loaded."""

import importlib.util
import inspect
import traceback
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from alite_jax.errors import ConfigError, nearest
from alite_jax.paths import user_path

Result = TypeVar("Result")


def config_directory() -> Path:
    """Returns the folder of the config files: in a checkout or in an installation."""
    package = Path(__file__).resolve().parent.parent
    # The installed place first: beside an installed package lie other people's folders.
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "default.py").is_file():
            return folder
    raise ConfigError(
        f"no config files found beside {package}, reinstall alite_jax or run from a "
        "complete checkout"
    )


def config_names() -> list[str]:
    """Returns the names that `get_config` finds without a path."""
    return _names(config_directory())


def study_names() -> list[str]:
    """Returns the names that `get_study` finds without a path."""
    return _names(config_directory() / "studies")


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("[!_]*.py"))


def find_file(kind: str, name: str) -> Path:
    """Finds a config file or a study file.

    Args:
        kind: `"config"` or `"study"`.
        name: a name of `config_names` or `study_names`, or the path of a Python file.

    Returns:
        The path of the file, which exists.

    Raises:
        ConfigError: there is no such name or file.
    """
    below = Path("studies" if kind == "study" else "")
    folder = config_directory() / below
    names, path = _names(folder), user_path(name)
    if path.suffix != ".py":
        if name not in names:
            raise ConfigError(f"unknown {kind} {name!r}; {nearest(name, names)}")
        return folder / f"{name}.py"
    if path.is_file():
        return path
    # `configs/cifar10.py` also means the project's own file from another folder.
    if path.parent == "configs" / below and path.stem in names:
        return folder / path.name
    raise ConfigError(
        f"{kind} file {name} does not exist, give a path or one of the names "
        + ", ".join(names)
    )


def call_file(kind: str, name: str, argument: str, wanted: type[Result]) -> Result:
    """Calls the function `get_config` or `get_study` of a file.

    Args:
        kind: `"config"` or `"study"`.
        name: as for `find_file`.
        argument: handed on, `""` for none.
        wanted: the class of what it must return.

    Raises:
        ConfigError: the file is not there, is wrong, or fails.
    """
    path = find_file(kind, name)
    function = getattr(load_config_file(path), f"get_{kind}", None)
    if function is None:
        raise ConfigError(f"{kind} file {path} defines no function get_{kind}()")
    takes_argument = bool(inspect.signature(function).parameters)
    if argument and not takes_argument:
        raise ConfigError(f"{kind} file {path} takes no argument, found {argument!r}")
    try:
        result = function(argument) if takes_argument else function()
    except ConfigError:
        raise
    except Exception as error:
        raise _failure(path, error) from error
    if not isinstance(result, wanted):
        raise ConfigError(
            f"get_{kind} in {path} must return a {wanted.__name__}, found"
            f" {type(result).__name__}"
        )
    return result


def load_config_file(path: Path) -> ModuleType:
    """Runs a config file.

    Args:
        path: a Python file.

    Returns:
        Its module.

    Raises:
        ConfigError: the file fails; the sentence gives the line.
    """
    spec = importlib.util.spec_from_file_location(f"alite_jax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"config file {path} cannot be read as Python")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ConfigError:
        raise
    except Exception as error:
        raise _failure(path, error) from error
    return module


def _failure(path: Path, error: Exception) -> ConfigError:
    """Turns any mistake in a config file into one sentence with its line."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) == path
    ]
    line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
    place = f", line {line}" if line else ""
    message = " ".join(str(error).split())
    return ConfigError(
        f"config file {path}{place} fails: {type(error).__name__}: {message}"
    )
