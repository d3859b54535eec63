"""Where config files lie, and how one is loaded."""

import importlib.util
import traceback
from pathlib import Path
from types import ModuleType

from alite_jax.errors import ConfigError, nearest
from alite_jax.paths import user_path


def config_directory() -> Path:
    """Returns the folder of the config files: in a checkout or in an installation."""
    package = Path(__file__).resolve().parent
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
    return sorted(path.stem for path in config_directory().glob("[!_]*.py"))


def find_config(name: str) -> Path:
    """Finds a config file.

    Args:
        name: a name of `config_names`, or the path of a Python file.

    Returns:
        The path of the file, which exists.

    Raises:
        ConfigError: there is no such name or file.
    """
    path = user_path(name)
    if path.suffix != ".py":
        if name not in config_names():
            raise ConfigError(
                f"unknown config {name!r}; {nearest(name, config_names())}"
            )
        return config_directory() / f"{name}.py"
    if path.is_file():
        return path
    # `configs/cifar10.py` also means the project's own file from another folder.
    if path.parent == Path("configs") and path.stem in config_names():
        return config_directory() / path.name
    raise ConfigError(
        f"config file {name} does not exist, give a path or one of the names "
        + ", ".join(config_names())
    )


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
        raise failure(path, error) from error
    return module


def failure(path: Path, error: Exception) -> ConfigError:
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
