"""A command line, as a job receives it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alite_jax.config import get_config, override, run_config


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        config_name: what `--config` says, or stands for where it says nothing.
        overrides: texts `section.field=value`.
        workdir: the folder.
        flags: all flags, as attributes.
    """

    config_name: str | None
    overrides: Sequence[str]
    workdir: Path
    flags: Any

    def config(self) -> ConfigDict:
        """The named configuration, else that of the run in `workdir`, else digits.

        Raises:
            ConfigError: something about it is wrong.
        """
        if self.config_name is None and (self.workdir / run_config.FILE).exists():
            return override(run_config.read_config(self.workdir), self.overrides)
        return get_config(self.config_name or "digits", self.overrides)
