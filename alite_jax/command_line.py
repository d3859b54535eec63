"""The program behind `alite` and `launch.py`: flags, mistakes, exit status.

`alite JOB` is `python launch.py --job=JOB`; both take their jobs from one table. JAX is
loaded by the job that needs it, since help and mistakes must show at once. Exit status:
0 done, 2 a mistake in the command, the data or the run (one sentence says which), 130
or 143 stopped by Ctrl-C or SIGTERM, 141 nobody reads what is printed.
"""

import importlib
import io
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging

import alite_jax
from alite_jax.command_help import help_text
from alite_jax.config import ARGUMENTS, config_names, default_config, flatten
from alite_jax.errors import AliteError, ConfigError, StoppedError, nearest
from alite_jax.jobs import JOBS, Flag
from alite_jax.jobs.command import Command
from alite_jax.paths import user_path

FLAGS = flags.FLAGS
# Flags also behind arguments without a name.
FLAGS.set_gnu_getopt(True)

flags.DEFINE_string(
    "config",
    None,
    f"Config: one of {', '.join(config_names())}, or the path of a config file. "
    "After a colon: the PATH of folder and folder_cpu, the NAME of tfds, and of all "
    f"smoke, or NAME=VALUE for {', '.join(ARGUMENTS)}, separated by commas. Left out: "
    "the config.json of WORKDIR, or else digits.",
)
flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run. Left out: runs/NAME of the config, with its arguments if any, "
    "such as runs/digits or runs/cifar10_smoke; runs/studies/NAME of a study.",
)
flags.DEFINE_string(
    "job",
    "train",
    "What to do, one of the above.",
)


def define(flag: Flag) -> None:
    """Makes a job's flag one of the command line."""
    match flag.default:
        case bool():
            flags.DEFINE_bool(*flag[:3])
        case int():
            flags.DEFINE_integer(*flag[:3], lower_bound=1)
        case list():
            flags.DEFINE_list(*flag[:3])
        case tuple():
            flags.DEFINE_multi_string(*flag[:3])
        case _:
            flags.DEFINE_string(*flag[:3])


for _job in JOBS.values():
    for _flag in _job.flags:
        define(_flag)

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


def parse(argv: list[str]) -> list[str]:
    """Parses the command line into `FLAGS`.

    Args:
        argv: the command line with the program's name first.

    Returns:
        The `section.field=value` texts of all `--config.section.field=value`.

    Raises:
        SystemExit: after printing the help or the version (0), or one sentence about a
            mistake (2).
    """
    if {"--help", "-h"} & set(argv[1:]):
        try:
            print(help_text(argv, __name__), flush=True)
        except BrokenPipeError:
            sys.exit(_nobody_reads())
        sys.exit(0)
    if "--version" in argv[1:]:
        print(f"alite {alite_jax.__version__}")
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
    if FLAGS.job not in JOBS:
        raise ConfigError(f"unknown job {FLAGS.job!r}; {nearest(FLAGS.job, JOBS)}")
    if extra:
        _take_positional(argv[0], extra)
    for given in FLAGS.get_key_flags_for_module(__name__):
        values = given.value if isinstance(given.value, list) else [given.value]
        # What a variable that is not set leaves would mean the default.
        if given.present and "" in values:
            raise ConfigError(
                f"--{given.name} is empty; give it a value, or leave it out"
            )
    for job, described in JOBS.items():
        for flag in described.flags:
            value = FLAGS[flag.name].value
            if flag.choices and value not in flag.choices:
                close = nearest(str(value), flag.choices)
                raise ConfigError(f"unknown {flag.name} {value!r}; {close}")
            if FLAGS[flag.name].present and job != FLAGS.job:
                raise ConfigError(
                    f"--{flag.name} is for --job={job}, found --job={FLAGS.job}"
                )


def _take_positional(program: str, extra: Sequence[str]) -> None:
    """Gives the job's positional flag the arguments that have no name."""
    name = JOBS[FLAGS.job].positional
    if not name:
        raise ConfigError(
            f"unexpected argument {extra[0]!r}, every setting is written --name=value"
        )
    if FLAGS[name].present:
        raise ConfigError(f"unexpected argument {extra[0]!r}, --{name} is given, too")
    if len(extra) > 1 and not isinstance(FLAGS[name].default, list):
        raise ConfigError(f"unexpected argument {extra[1]!r} after {extra[0]!r}")
    FLAGS([program, *(f"--{name}={value}" for value in extra)])


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
    workdir = FLAGS.workdir or default_workdir(FLAGS.job, FLAGS.study or name)
    try:
        join_processes()
        command = Command(name, overrides, user_path(workdir), FLAGS)
        importlib.import_module(f"alite_jax.jobs.{FLAGS.job}").run(command)
        print(end="", flush=True)
    except StoppedError as error:
        print(error, file=sys.stderr)
        return 128 + error.signal
    except AliteError as error:
        return _report(error)
    except BrokenPipeError:
        return _nobody_reads()
    except OSError as error:
        if error.filename is None:
            raise
        place = f"cannot use {error.filename} ({error.strerror})"
        return _report(ConfigError(f"{place}; check that path, and who may use it"))
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
        from alite_jax.runs.processes import connect

        connect(**manual)


def default_workdir(job: str, name: str | None) -> str:
    """Returns `runs/cifar10_smoke` for `configs/cifar10.py:smoke`, to be trained."""
    path, _, argument = (name or "digits").partition(":")
    folder = "_".join(filter(None, [Path(path).stem, argument.replace(",", "_")]))
    return str(Path(JOBS[job].folder) / re.sub(r"[^\w.=-]", "_", folder))


def _report(error: AliteError) -> int:
    # One line; but what stands in it to be pasted keeps its spaces.
    print("error: " + re.sub(r"\s*\n\s*", " ", str(error).strip()), file=sys.stderr)
    return 2


def _nobody_reads() -> int:
    # `alite cost | head` ends as other programs do, without a word: what is still to be
    # written when Python ends goes nowhere.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 128 + signal.SIGPIPE


def start() -> None:
    """Runs this process as `python launch.py`, and ends it."""
    _open_output()
    app.run(main, flags_parser=parse)


def start_alite() -> None:
    """Runs this process as `alite`, and ends it."""
    _open_output()
    try:
        argv = with_job_flag(sys.argv[1:])
    except AliteError as error:
        sys.exit(_report(error))
    app.run(main, argv=["alite", *argv], flags_parser=parse)


def _open_output() -> None:
    """Makes the output take all that is printed, names of files that are no text too.

    A daemon's may be closed.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def with_job_flag(arguments: Sequence[str]) -> list[str]:
    """Returns `--job=train --workdir=x` for `train --workdir=x`.

    Args:
        arguments: what follows `alite`.

    Raises:
        ConfigError: no job comes first, or another one is named besides.
    """
    if {"--help", "-h", "--version"} & set(arguments[:1]):
        return list(arguments)
    names = [*JOBS, "predict"]
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError(
            f"the job comes first, as in `alite train`: {', '.join(names)}"
        )
    job, *others = arguments
    if job not in JOBS:
        raise ConfigError(f"unknown job {job!r}; {nearest(job, names)}")
    if again := [text for text in others if re.match(r"--?job(=|$)", text)]:
        raise ConfigError(f"unexpected argument {again[0]!r}, the job is {job}")
    return [f"--job={job}", *others]
