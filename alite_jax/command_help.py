"""What `--help` prints: of all jobs, or of the one that is named."""

import textwrap
from collections.abc import Sequence

from absl import flags

from alite_jax.jobs import JOBS

_FIELD = "One field of the config, any number of times. The job config explains them."
_END = (
    "The same command again resumes an unfinished run. Exit status: 0 done, 2 a mistake"
    " in the command, the data or the run (one sentence says which), 130 or 143 stopped"
    " by Ctrl-C or SIGTERM, after which the same command goes on where it was."
)
_EXAMPLES = (
    ("train", "--config=digits --workdir=runs/digits"),
    ("train", "--config=cifar10:smoke --workdir=runs/smoke"),
    ("train", "--config=cifar10:density=0.05,epochs=30 --config.student.border=mask"),
    ("evaluate", "runs/digits"),
    ("export", "runs/digits --formats=onnx,safetensors"),
    ("report", "runs/digits"),
    ("prepare", "--config=cifar10 --config.data.data_dir=tensorflow_datasets"),
    ("plan", "--config=cifar10 --target=macs=0.5"),
    ("study", "digits --rows=static,rigl"),
    ("cost", "--config=cifar10 --format=markdown"),
    ("sweep", "--config=digits --sweep.student.density=0.1,0.05"),
)


def help_text(argv: Sequence[str], module: str) -> str:
    """Returns the help that a command line asks for.

    Args:
        argv: the command line. The program's name comes first; with `--job=NAME` behind
            it the help is about that job.
        module: that declares the flags.
    """
    alite = argv[0] == "alite"
    call = "alite {}" if alite else "python launch.py --job={}"
    named = [job for job in JOBS if f"--job={job}" in argv]
    jobs = named or list(JOBS)
    entries = [_job(job, JOBS[job].summary) for job in jobs]
    hidden = {flag.name for job in JOBS if job not in jobs for flag in JOBS[job].flags}
    if alite:
        hidden.add("job")
    if alite and not named:
        entries.append(_job("predict", "Classify images by what a run has exported."))
        entries += ["", "alite JOB --help: the flags of that job besides these."]
        hidden |= {flag.name for job in JOBS for flag in JOBS[job].flags}
    word = named[0] if named else "JOB"
    positional = JOBS[word].positional if named else ""
    operand = {"": "", "workdir": " [RUN]"}.get(positional, f" {positional.upper()}")
    known = flags.FLAGS.get_key_flags_for_module(module)
    shown = sorted((flag for flag in known if flag.name not in hidden), key=_name)
    lines = [f"usage: {call.format(word)}{operand} [--FLAG=VALUE ...]", "", *entries]
    lines += ["", "flags:", *map(_flag, shown)]
    lines.append(_entry("--config.SECTION.FIELD=VALUE", _FIELD))
    used = [(job, rest) for job, rest in _EXAMPLES if job in jobs]
    if used:
        lines += ["", "examples:"]
        lines += [f"  {call.format(job)} {rest}" for job, rest in used]
    return "\n".join([*lines, "", *textwrap.wrap(_END, 80)])


def _job(name: str, summary: str) -> str:
    return textwrap.fill(
        summary, 80, initial_indent=f"  {name:<9} ", subsequent_indent=" " * 12
    )


def _name(flag: flags.Flag) -> str:
    return str(flag.name)


def _flag(flag: flags.Flag) -> str:
    default = "" if flag.default in (None, False, []) else f" (default: {flag.default})"
    value = "" if flag.boolean else f"={flag.name.upper()}"
    return _entry(f"--{flag.name}{value}", " ".join(flag.help.split()) + default)


def _entry(name: str, text: str) -> str:
    return f"  {name}\n" + textwrap.indent(textwrap.fill(text, 74), " " * 6)
