"""The job `prepare`: a data set, downloaded and written as TFDS files."""

from alite_jax.data.prepare import prepare
from alite_jax.jobs.command import Command


def run(command: Command) -> None:
    """Prepares the configuration's data set and prints its folder."""
    data = command.config().data
    print(f"{data.name} is ready in {prepare(data)}")
