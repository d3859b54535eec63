"""Finding an object of other people's code by a text such as `package.module:name`."""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from alite_jax.errors import ConfigError, nearest
from alite_jax.paths import user_path

FROM_PYTHON = "python"  # In the place of a module: what no text can find again.


def find_object(text: str, field: str) -> Any:
    """Returns what a text names, once its module is loaded.

    Args:
        text: `"package.module:name"`, which is looked for where Python looks and in the
            current folder, or `"file.py:name"`.
        field: of the configuration that has the text, for errors.

    Raises:
        ConfigError: there is no such module or name, or the module fails.
    """
    place, colon, name = text.rpartition(":")
    if place == FROM_PYTHON:
        raise ConfigError(
            f"{field} is {text!r}: a program gave it to this run, and must give it"
            f" again, as {field.partition('.')[0]}={name}; 'package.module:function'"
            " would be found by itself"
        )
    if not (colon and place and name):
        raise ConfigError(
            f"{field} is {text!r}, but must be 'package.module:function' or"
            " 'file.py:function'"
        )
    try:
        module = _load(place)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{field} is {text!r}, but there is no module {error.name!r}; install the"
            " package that has it, put its folder into PYTHONPATH, or name a file"
        ) from error
    except FileNotFoundError as error:
        raise ConfigError(
            f"{field} is {text!r}, but there is no file {place}"
        ) from error
    except Exception as error:
        message = " ".join(str(error).split())
        raise ConfigError(
            f"{field} is {text!r}, but loading {place} fails: {type(error).__name__}:"
            f" {message}"
        ) from error
    if not hasattr(module, name):
        names = [each for each in vars(module) if not each.startswith("_")]
        raise ConfigError(
            f"{field} is {text!r}, but {place} has no {name!r}; {nearest(name, names)}"
        )
    return getattr(module, name)


def _load(place: str) -> Any:
    if place.endswith(".py"):
        path = user_path(place).resolve()
        # Under a name of its own, by which its classes can be found again.
        name = f"alite_jax_file_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
        return module
    sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(place)
    finally:
        sys.path.pop()
