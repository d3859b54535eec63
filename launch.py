"""Trains a teacher, then distils and prunes a self-attention student in one pass.

The command `alite` as a program of a checkout, where nothing needs to be installed:

    python launch.py --config=configs/NAME.py[:ARGUMENTS] --workdir=FOLDER
                     [--job=JOB] [--config.SECTION.FIELD=VALUE ...]
"""

from alite_jax.allocator import restart_tuned

if __name__ == "__main__":
    restart_tuned()
    from alite_jax.command_line import start

    start()
