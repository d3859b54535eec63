"""The job `profile`: a short run of its own, of which some steps are traced."""

from ml_collections import ConfigDict

from alite_jax.compiled_programs import keep_compiled_programs
from alite_jax.config import override
from alite_jax.jobs.command import Command
from alite_jax.jobs.train import train
from alite_jax.runs.trace import WARM_STEPS


def run(command: Command) -> None:
    """Trains the short run and says where its traces are."""
    keep_compiled_programs()
    train(profile_config(command.config()), command.workdir)
    print(f"traces of both networks are in {command.workdir}/profile")


def profile_config(config: ConfigDict) -> ConfigDict:
    """Returns a configuration of one short epoch each, in which steps are traced.

    Args:
        config: from `alite_jax.get_config`; `logging.profile_steps` of 0 becomes 10.
    """
    steps = config.logging.profile_steps or 10
    images = (WARM_STEPS + steps + 1) * config.data.batch_size
    return override(
        config,
        {
            "data.train_split": f"train[:{images}]",
            "teacher.epochs": 1,
            "teacher.optimizer.schedule": "cosine",
            "teacher.optimizer.warmup_epochs": 0,
            "student.epochs": 1,
            "student.optimizer.schedule": "cosine",
            "student.optimizer.warmup_epochs": 0,
            "pruning.every_steps": max(1, steps // 2),
            "logging.profile_steps": steps,
            "logging.tensorboard": False,
        },
    )
