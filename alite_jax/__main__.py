"""The command `alite`, also `python -m alite_jax`."""

import sys

from alite_jax.allocator import restart_tuned


def main() -> None:
    """Runs the command line of this process, and ends it."""
    if sys.argv[1:2] == ["predict"]:
        # What was exported is used where not even the flags' library is installed.
        from alite_jax import predict

        sys.exit(predict.main(sys.argv[2:], "alite predict"))
    if not {"--help", "-h", "--version"} & set(sys.argv):  # Which show at once.
        restart_tuned()
    from alite_jax.command_line import start_alite

    start_alite()


if __name__ == "__main__":
    main()
