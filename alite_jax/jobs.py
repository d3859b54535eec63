"""What the command line can do: a function for each value of `--job`.

Each is little more than the call that a notebook would make; JAX is loaded when it is
called, so that a mistake in a command line shows before.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import alite_jax
from alite_jax import run_config
from alite_jax.config import describe_difference, get_config, override
from alite_jax.config_files import config_directory
from alite_jax.errors import ConfigError
from alite_jax.paths import user_path


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
        """The configuration, loaded now.

        Raises:
            ConfigError: something about it is wrong.
        """
        return load_config(self.config_name, self.workdir, self.overrides)


def train(command: Command) -> None:
    """Train teacher and student, compare them in WORKDIR/summary.json."""
    keep_compiled_programs()
    alite_jax.train(command.config(), command.workdir)


def evaluate(command: Command) -> None:
    """Measure the networks of a finished run on the evaluation split."""
    keep_compiled_programs()
    alite_jax.evaluate(command.config(), command.workdir)


def profile(command: Command) -> None:
    """Trace some steps of both networks into WORKDIR/profile; a run of its own."""
    from alite_jax.training.profile import profile_config

    keep_compiled_programs()
    alite_jax.train(profile_config(command.config()), command.workdir)
    print(f"traces of both networks are in {command.workdir}/profile")


def export(command: Command) -> None:
    """Write the student of a finished run to WORKDIR/export, to be used elsewhere."""
    keep_compiled_programs()
    flags = command.flags
    how = flags.values, flags.multiple, flags.tflite
    alite_jax.export(command.config(), command.workdir, *how)
    print((command.workdir / "export" / "card.md").read_text())


def report(command: Command) -> None:
    """Write one page about a finished run, WORKDIR/report/index.html."""
    keep_compiled_programs()
    print(f"written to {alite_jax.report(command.config(), command.workdir)}")


def prepare(command: Command) -> None:
    """Download the data set and write it as TFDS files; needs no workdir."""
    from alite_jax.data.prepare import prepare as prepare_data

    data = command.config().data
    print(f"{data.name} is ready in {prepare_data(data)}")


def cost(command: Command) -> None:
    """Count parameters, MACs and bytes of both networks; needs no data, no workdir."""
    from alite_jax.analysis.cost_table import matrix_table, networks_table
    from alite_jax.analysis.networks import configured_costs, paper_matrix

    layout = command.flags.format
    if command.flags.table == "paper":
        print(matrix_table(paper_matrix(), layout))
    else:
        print(networks_table(*configured_costs(command.config()), layout))


def plan(command: Command) -> None:
    """Print which fields bring the student to --target; needs no data, no workdir."""
    from alite_jax.planning import plan_text

    kind, _, text = (command.flags.target or "").partition("=")
    try:
        value = float(text)
    except ValueError as error:
        raise ConfigError(
            "--job=plan needs --target=KIND=NUMBER, such as --target=bytes=90000"
        ) from error
    planned = alite_jax.plan(command.config(), kind, value, command.flags.batch)
    print(plan_text(kind, value, planned))


def study(command: Command) -> None:
    """Train the runs of --study, with tables and plots of what they found."""
    from alite_jax.study.declaration import get_study

    flags = command.flags
    if flags.study is None or flags.config is not None:
        raise ConfigError(
            "--job=study needs --study=configs/studies/NAME.py, which names the config,"
            " and no --config"
        )
    declared = get_study(flags.study, command.overrides)
    keep_compiled_programs()
    alite_jax.run_study(declared, command.workdir, flags.results, rows=flags.rows)


def sweep(command: Command) -> None:
    """Train a run for each combination of the values that --sweep flags give."""
    from alite_jax.study.sweep import sweep_table

    fields = dict(text.split("=", 1) for text in command.flags.sweep)
    shard = fields.pop("shard", "0/1")
    # Values that have commas themselves are separated by semicolons.
    grid = {
        field: text.split(";" if ";" in text else ",") for field, text in fields.items()
    }
    keep_compiled_programs()
    config, workdir = command.config(), command.workdir
    print(sweep_table(alite_jax.sweep(config, grid, workdir, shard=shard)))


def show_config(command: Command) -> None:
    """Print every field with its meaning and default, then what this config changes."""
    config = command.config()
    print((config_directory() / "default.py").read_text())
    for field, (_, value) in describe_difference(config).items():
        print(f"config.{field} = {value!r}")


JOBS: dict[str, Callable[[Command], None]] = {
    "train": train,
    "evaluate": evaluate,
    "export": export,
    "report": report,
    "profile": profile,
    "prepare": prepare,
    "cost": cost,
    "plan": plan,
    "study": study,
    "sweep": sweep,
    "config": show_config,
}


def keep_compiled_programs() -> None:
    """Lets JAX keep what it compiles in the user's cache folder, for the next start.

    A folder that the user gave JAX stays, and one that cannot be written is left alone.
    An entry that is damaged costs a warning and a compilation.
    """
    import jax

    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    try:
        folder = user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
        folder = folder / "alite_jax"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ConfigError):  # The latter where there is no home.
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))


def load_config(
    name: str | None, workdir: Path, overrides: Sequence[str]
) -> ConfigDict:
    """Returns the named config, else that of the run in `workdir`, else digits."""
    if name is not None or not (workdir / run_config.FILE).exists():
        return get_config(name or "digits", overrides)
    return override(run_config.read_config(workdir), overrides)
