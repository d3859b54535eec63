"""Names of one kind of thing: this project's own, and those registered from outside.

What another package adds is found by its name once the package is imported; or, without
that, by an entry point of the kind's group, which is looked for only where a name is
not otherwise known.
"""

import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TypeVar

from alite_jax.errors import AliteError, ConfigError

T = TypeVar("T")
Given = TypeVar("Given")


class _Registered(NamedTuple):
    given: object
    value: Any
    package: str


def _function(given: Any) -> Any:
    if not callable(given):
        raise ConfigError(f"it is {given!r}, not a function")
    return given


class Registry(Mapping[str, T]):
    """A table of names that other packages may add to.

    As a mapping it has all names; only a name that nobody has registered makes it look
    for an entry point.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        own: Mapping[str, T],
        convert: Callable[[Any], T] = _function,
    ) -> None:
        """Begins with what this project has.

        Args:
            kind: what errors call such a thing, such as `"loss"`.
            group: of entry points.
            own: this project's names.
            convert: makes an entry of what is registered, or raises a ConfigError whose
                sentence goes on from "cannot be registered: ". By default, functions
                are taken as they are.
        """
        self.kind, self.group = kind, group
        self._own, self._convert = own, convert
        self._registered: dict[str, _Registered] = {}

    def register(self, name: str) -> Callable[[Given], Given]:
        """Returns a decorator that registers what it is given, and returns that.

        Args:
            name: for the configuration. It is recorded with the package that calls
                this.

        Raises:
            ConfigError: the name is taken by something else, or what is given cannot be
                registered. A function that is defined again takes its own place.
        """
        if not isinstance(name, str):
            raise ConfigError(
                f'a {self.kind} is registered under a name, as with ("my_name")'
                " behind the decorator"
            )
        package = _calling_package()

        def decorate(given: Given) -> Given:
            self._add(name, given, package)
            return given

        return decorate

    def package(self, name: str) -> str:
        """The package that registered a name: a distribution, or a module, or a file.

        Empty for this project's own names and for those that nobody has registered.
        """
        if name in self._own or name not in self:
            return ""
        package = self._registered[name].package
        distributions = importlib.metadata.packages_distributions()
        return distributions.get(package, [package])[0]

    def __getitem__(self, name: str) -> T:
        if name in self._own:
            return self._own[name]
        if name not in self._registered:
            self._load(name)
        value: T = self._registered[name].value
        return value

    def __iter__(self) -> Iterator[str]:
        entries = importlib.metadata.entry_points(group=self.group)
        names = [*self._own, *self._registered, *(entry.name for entry in entries)]
        return iter(dict.fromkeys(names))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _add(self, name: str, given: object, package: str) -> None:
        taken = self._registered.get(name)
        if name in self._own or (taken and not _is_again(given, taken.given)):
            owner = taken.package if taken else "alite_jax"
            raise ConfigError(
                f"{self.kind} {name!r} is taken by {owner}; register yours under"
                " another name"
            )
        try:
            value = self._convert(given)
        except ConfigError as error:
            raise ConfigError(
                f"{self.kind} {name!r} cannot be registered: {error}"
            ) from error
        self._registered[name] = _Registered(given, value, package)

    def _load(self, name: str) -> None:
        for entry in importlib.metadata.entry_points(group=self.group):
            if entry.name != name:
                continue
            package = entry.dist.name if entry.dist else entry.module
            try:
                given = entry.load()
            except AliteError:
                raise
            except Exception as error:  # Whatever importing a package leads to.
                raise ConfigError(
                    f"{self.kind} {name!r} is an entry point of {package}, which cannot"
                    f" be loaded ({error}); repair or remove that package"
                ) from error
            # A module registers by its own decorators, and may do so for a function.
            if name not in self._registered:
                self._add(name, given, package)


def _is_again(given: object, before: object) -> bool:
    """Whether this is the same, or defined once more, as where a cell is run again."""
    names = ("__module__", "__qualname__")
    return given is before or all(
        getattr(given, name, None) == getattr(before, name, given) for name in names
    )


def _calling_package() -> str:
    """The package from which this one was called, or the file that is run."""
    frame: FrameType | None = sys._getframe()
    package = "alite_jax"
    while frame and package == "alite_jax":
        package = frame.f_globals.get("__name__", "__main__").partition(".")[0]
        frame = frame.f_back
    if package == "__main__":
        file = getattr(sys.modules[package], "__file__", "a Python session")
        return Path(file).name
    return package
