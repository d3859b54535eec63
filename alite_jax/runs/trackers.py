"""Services that follow runs, Weights & Biases and Trackio, for those who ask for them.

Each phase is a run of its own there, in a group that is called like the run's folder.
They get the metrics and the configuration without its files and folders, and nothing
of the machine, the command or the surroundings. What fails there does not stop a
training: it is said once, and the training goes on without the service.
"""

import importlib
import json
import os
import re
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alite_jax.config import flatten
from alite_jax.config.run_config import OTHER_RUNS, PLACES
from alite_jax.errors import ConfigError
from alite_jax.runs.processes import by_first

_FILE = "trackers.json"  # The names of this run's phases there, to go on with.
_PROJECT = "alite_jax"


def _start_wandb(wandb: ModuleType, name: str, folder: Path, options: Any) -> Any:
    # By itself it would send the command, paths, packages and what is printed.
    settings = wandb.Settings(
        console="off",
        silent=True,
        host="unnamed",
        disable_code=True,
        disable_git=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    return wandb.init(
        id=name, dir=str(folder), resume="allow", settings=settings, **options
    )


def _start_trackio(trackio: ModuleType, name: str, folder: Path, options: Any) -> Any:
    return trackio.init(
        resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False, **options
    )


_STARTS: dict[str, Callable[[ModuleType, str, Path, Any], Any]] = {
    "wandb": _start_wandb,
    "trackio": _start_trackio,
}


def names_of(config: ConfigDict) -> list[str]:
    """The services that `logging.trackers` names."""
    return [name for name in dict.fromkeys(config.logging.trackers.split(",")) if name]


@by_first
def check_trackers(config: ConfigDict) -> None:
    """Loads what `logging.trackers` names, before any work is done.

    Raises:
        ConfigError: it is not installed.
    """
    for name in names_of(config):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"logging.trackers is {config.logging.trackers!r}, but {name} cannot be"
                f" imported ({error}); run: pip install {name}"
            ) from error


def open_trackers(config: ConfigDict, folder: Path) -> list["Tracker"]:
    """The services that `logging.trackers` names, for the run in a folder."""
    return [Tracker(name, config, folder) for name in names_of(config)]


class Tracker:
    """Sends the metrics of a run to one service.

    Args:
        service: a key of `_STARTS`.
        config: of the run.
        folder: of the run.
    """

    def __init__(self, service: str, config: ConfigDict, folder: Path) -> None:
        self._service = service
        self._config = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in flatten(config).items()
            if name not in (*PLACES, *OTHER_RUNS)
        }
        self._folder = Path(os.path.abspath(folder))  # `.` has no name.
        self._failed = False
        self._run: Any = None
        self._sent: set[tuple[int, str]] = set()

    def rewind(
        self, phase: str, step: int, dropped: Sequence[Mapping[str, Any]]
    ) -> None:
        """Starts, or goes on with, the run of a phase.

        What is trained again gives the same numbers again, and what the service had of
        them is not sent a second time.
        """
        self.close()
        self._run = self._attempt(lambda: self._start(phase, dropped))

    def _start(self, phase: str, dropped: Sequence[Mapping[str, Any]]) -> Any:
        path = self._folder / _FILE
        names = json.loads(path.read_text()) if path.exists() else {}
        key = f"{self._service}/{phase}"
        self._sent = set()
        if key in names:
            self._sent = {(line["step"], name) for line in dropped for name in line}
        else:
            # An identity there has not all characters that a folder's name may have.
            folder = re.sub(r"[^\w.=-]", "_", self._folder.name)
            names[key] = f"{folder}-{phase}-{uuid.uuid4().hex[:8]}"
            # Not `write_whole`, which all processes call: only the first has trackers.
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(names, indent=2) + "\n")
            temporary.replace(path)
        options = {
            "project": os.environ.get("WANDB_PROJECT", _PROJECT),
            "group": self._folder.name,
            "name": names[key],
            "config": self._config,
        }
        module = importlib.import_module(self._service)
        return _STARTS[self._service](module, names[key], self._folder, options)

    def write(self, phase: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Sends the metrics of a step that were not sent before."""
        new = {n: float(v) for n, v in metrics.items() if (step, n) not in self._sent}
        if self._run is not None and new:
            self._attempt(lambda: self._run.log(new, step=step))

    def show_masks(
        self, phase: str, step: int, matrices: Mapping[str, np.ndarray]
    ) -> None:
        """Sends none."""

    def close(self) -> None:
        """Ends the run of the phase, and waits until all of it was sent."""
        if self._run is not None:
            self._attempt(lambda: self._run.finish())
            self._run = None

    def _attempt(self, action: Callable[[], Any]) -> Any:
        if self._failed:
            return None
        try:
            return action()
        # Whatever it is, a training is worth more.
        except Exception as error:
            self._failed, self._run = True, None
            said = " ".join(f"{type(error).__name__}: {error}".split())
            print(
                f"{self._service} failed ({said}); the training goes on without it, and"
                " metrics.jsonl has everything",
                file=sys.stderr,
            )
            return None
