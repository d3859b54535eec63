"""Trains a teacher, then distils and prunes a self-attention student in one pass.

    python launch.py --config=configs/NAME.py[:ARGUMENTS] --workdir=FOLDER
                     [--job=JOB] [--config.SECTION.FIELD=VALUE ...]
                     [--table=TABLE] [--format=FORMAT]

The same command again resumes an unfinished run. Exit status: 0 done, 2 a mistake in
the command, the data or the run (one sentence says which), 130 or 143 stopped by Ctrl-C
or SIGTERM, after which the same command goes on where it was.
"""

import re
import sys
from collections.abc import Collection
from pathlib import Path

from absl import app, flags, logging

from alite_jax.allocator import restart_tuned
from alite_jax.analysis.table import FORMATS, TABLES
from alite_jax.config import ARGUMENTS, config_names, default_config, flatten
from alite_jax.errors import AliteError, ConfigError, StoppedError, nearest
from alite_jax.jobs import JOBS, Command
from alite_jax.paths import user_path

FLAGS = flags.FLAGS


flags.DEFINE_string(
    "config",
    None,
    f"Config: one of {', '.join(config_names())}, or the path of a config file. "
    f"After a colon: smoke, or NAME=VALUE for {', '.join(ARGUMENTS)}, separated by "
    "commas. Left out: the config.json of WORKDIR, or else digits.",
)
flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run. Left out: runs/NAME of the config, with its arguments if any, "
    "such as runs/digits or runs/cifar10_smoke; runs/studies/NAME of a study.",
)
flags.DEFINE_multi_string(
    "sweep",
    [],
    "FIELD=VALUES for --job=sweep, more often written --sweep.FIELD=VALUES: the values "
    "of a field, separated by commas. --sweep.shard=i/n makes every n-th run only, "
    "from the i-th, counted from 0.",
)
flags.DEFINE_string("study", None, "Study: a name or file in configs/studies.")
flags.DEFINE_list("rows", [], "Rows of the study to train now. Left out: all.")
flags.DEFINE_string(
    "results", None, "Folder of a study's results. Left out: results/NAME."
)
flags.DEFINE_string(
    "job",
    "train",
    "What to do. " + " ".join(f"{name}: {job.__doc__}" for name, job in JOBS.items()),
)

flags.DEFINE_string(
    "table",
    "networks",
    "What --job=cost counts. networks: the two of the config, layer by layer. paper: "
    "the teacher and every student of the paper's size, whatever the config.",
)
flags.DEFINE_string("format", "table", f"How --job=cost prints: {', '.join(FORMATS)}.")

flags.DEFINE_string(
    "values", "int8", "How --job=export stores weights: int8, float16 or float32."
)
flags.DEFINE_integer(
    "multiple", 1, "Of the widths that compaction leaves --job=export.", lower_bound=1
)
flags.DEFINE_bool(
    "tflite",
    False,
    "Whether --job=export writes a program for LiteRT, too; needs "
    "requirements-tflite.txt.",
)
flags.DEFINE_string(
    "target",
    None,
    "What --job=plan shall reach: parameters=NUMBER, bytes=NUMBER, macs=NUMBER or "
    "FRACTION, milliseconds=NUMBER.",
)
flags.DEFINE_integer(
    "batch", 1, "Images in a batch, for --target=milliseconds.", lower_bound=1
)
flags.DEFINE_bool(
    "distributed",
    False,
    "One of several processes that train one model: start the same command on every "
    "host. JAX finds the others by itself on TPU pods and under Slurm or MPI; "
    "elsewhere the three flags below say where they are.",
)
flags.DEFINE_string("coordinator_address", None, "HOST:PORT of the first process.")
flags.DEFINE_integer("num_processes", None, "Number of processes.")
flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0.")
MANUAL = ("coordinator_address", "num_processes", "process_id")

# Flags that mean something to some jobs only.
OF_SOME_JOBS = {
    "table": ("cost",),
    "format": ("cost",),
    **dict.fromkeys(("study", "rows", "results"), ("study",)),
    "sweep": ("sweep",),
    **dict.fromkeys(("values", "multiple", "tflite"), ("export",)),
    **dict.fromkeys(("target", "batch"), ("plan",)),
}
CHOICES: dict[str, Collection[str]] = {"job": JOBS, "table": TABLES, "format": FORMATS}

EPILOGUE = """
  --config.SECTION.FIELD=VALUE: One field of the config, any number of times.
    configs/default.py explains them all.

examples:
  python launch.py --config=configs/digits.py --workdir=runs/digits
  python launch.py --config=configs/cifar10.py:smoke --workdir=runs/smoke
  python launch.py --config=configs/cifar10.py:density=0.05,epochs=30 \\
      --config.data.data_dir=tensorflow_datasets --config.student.border=mask
  python launch.py --config=configs/cifar10.py --job=prepare
  python launch.py --config=configs/cifar10.py --job=plan --target=macs=0.5
  python launch.py --job=study --study=configs/studies/digits.py --rows=static,rigl
  python launch.py --config=configs/cifar10.py --job=cost --format=markdown
  python launch.py --config=configs/digits.py --job=sweep \\
      --sweep.student.density=0.1,0.05 --sweep.distillation.alpha=0,0.5,0.9

--helpfull lists the flags of the libraries too."""


def parse(argv: list[str]) -> list[str]:
    """Parses the command line into `FLAGS`.

    Args:
        argv: the command line with the program's name first.

    Returns:
        The `section.field=value` texts of all `--config.section.field=value`.

    Raises:
        SystemExit: after printing the help (0) or one sentence about a mistake (2).
    """
    if {"--help", "-h"} & set(argv[1:]):
        # absl starts this text with the module's name, which is of no use here.
        described = FLAGS.module_help(sys.modules[__name__]).split("\n", 2)[2]
        print(f"{__doc__}\nflags:\n{described}{EPILOGUE}")
        sys.exit(0)
    try:
        arguments, overrides = split_overrides(argv, "config")
        arguments, swept = split_overrides(arguments, "sweep")
        _parse_flags([*arguments, *(f"--sweep={text}" for text in swept)])
    except AliteError as error:
        sys.exit(_report(error))
    return overrides


def split_overrides(
    argv: list[str], flag: str = "config"
) -> tuple[list[str], list[str]]:
    """Takes `--config.section.field=value` out of a command line.

    Args:
        argv: the command line; a value may also follow as the next argument.
        flag: another name in the place of `config`.

    Returns:
        The other arguments, and the overrides as `section.field=value`.

    Raises:
        ConfigError: a field has no value.
    """
    others, overrides = [], []
    arguments = iter(argv)
    for argument in arguments:
        match = re.match(rf"--?{flag}\.(.*)", argument, re.DOTALL)
        if not match:
            others.append(argument)
            continue
        text = match[1]
        if "=" not in text:
            value = next(arguments, "--")
            if value.startswith("--"):
                raise ConfigError(f"{argument} needs a value, as in {argument}=VALUE")
            text = f"{text}={value}"
        overrides.append(text)
    return others, overrides


def _parse_flags(argv: list[str]) -> None:
    try:
        extra = FLAGS(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        fields = [f"config.{name}" for name in flatten(default_config())]
        own = [flag.name for flag in FLAGS.get_key_flags_for_module(__name__)]
        valid = fields if "." in error.flagname else own
        raise ConfigError(
            f"unknown flag --{error.flagname}; {nearest(error.flagname, valid)}"
        ) from error
    except flags.Error as error:
        raise ConfigError(str(error)) from error
    if extra:
        raise ConfigError(
            f"unexpected argument {extra[0]!r}, every setting is written --name=value"
        )
    for name, choices in CHOICES.items():
        value = str(FLAGS[name].value)
        if value not in choices:
            raise ConfigError(f"unknown {name} {value!r}; {nearest(value, choices)}")
    for name, jobs in OF_SOME_JOBS.items():
        if FLAGS[name].present and FLAGS.job not in jobs:
            wanted = " and ".join(f"--job={job}" for job in jobs)
            raise ConfigError(f"--{name} is for {wanted}, found --job={FLAGS.job}")


def main(overrides: list[str]) -> int:
    """Runs the job that the flags ask for.

    Args:
        overrides: what `parse` returned.

    Returns:
        The exit status.
    """
    # absl's runner turns on INFO, which TFDS, JAX and Orbax use for their own news.
    logging.set_verbosity(logging.WARNING)
    name = FLAGS.config or ("default" if FLAGS.job == "config" else None)
    workdir = FLAGS.workdir or default_workdir(name or "digits")
    if FLAGS.job in ("sweep", "profile") and not FLAGS.workdir:
        workdir = str(Path("runs") / f"{FLAGS.job}s" / Path(workdir).name)
    if FLAGS.study and not FLAGS.workdir:
        workdir = f"runs/studies/{Path(FLAGS.study).stem}"
    try:
        join_processes()
        JOBS[FLAGS.job](Command(name, overrides, user_path(workdir), FLAGS))
    except StoppedError as error:
        print(error, file=sys.stderr)
        return 128 + error.signal
    except AliteError as error:
        return _report(error)
    except KeyboardInterrupt:
        print(
            f"interrupted: the same command again resumes from the last checkpoint in "
            f"{workdir}",
            file=sys.stderr,
        )
        return 130
    return 0


def join_processes() -> None:
    """Makes this process one of several, if a flag says so."""
    manual = {name: FLAGS[name].value for name in MANUAL}
    if FLAGS.distributed or any(FLAGS[name].present for name in MANUAL):
        from alite_jax.training.processes import connect

        connect(**manual)


def default_workdir(name: str) -> str:
    """Returns `runs/cifar10_smoke` for `configs/cifar10.py:smoke`."""
    path, _, argument = name.partition(":")
    folder = "_".join(filter(None, [Path(path).stem, argument.replace(",", "_")]))
    return str(Path("runs") / re.sub(r"[^\w.=-]", "_", folder))


def _report(error: AliteError) -> int:
    # One line; but what stands in it to be pasted keeps its spaces.
    print("error: " + re.sub(r"\s*\n\s*", " ", str(error).strip()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    restart_tuned()
    app.run(main, flags_parser=parse)
