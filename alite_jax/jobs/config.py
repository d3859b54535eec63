"""The job `config`: all that can be set, and what is set."""

from alite_jax.config import describe_difference
from alite_jax.config.files import config_directory
from alite_jax.jobs.command import Command


def run(command: Command) -> None:
    """Prints the file that explains every field, then what the config changes in it."""
    config = command.config()
    print((config_directory() / "default.py").read_text())
    for field, (_, value) in describe_difference(config).items():
        print(f"config.{field} = {value!r}")
