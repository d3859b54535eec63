"""What the command line can do: an entry for each job, with its flags.

`alite NAME` and `launch.py --job=NAME` are `run(command)` of the module
`alite_jax.jobs.NAME`, which is loaded when it is asked for. Flags are declared here,
beside their job and not in its module, since help and mistakes in a command line must
show at once, and JAX takes seconds to load.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

from alite_jax.deploy.formats import FORMATS as WRITTEN
from alite_jax.deploy.header import VALUES
from alite_jax.pages.table import FORMATS, TABLES


class Flag(NamedTuple):
    """A flag of one job.

    Attributes:
        name: of the flag.
        default: its type is that of the value; whole numbers are positive, and a tuple
            collects the flag's occurrences.
        help: what it means.
        choices: the values that there are, if they are names.
    """

    name: str
    default: Any
    help: str
    choices: Collection[str] = ()


class Job(NamedTuple):
    """A value of `--job`.

    Attributes:
        summary: what it does, in a sentence.
        flags: those that no other job has.
        folder: where `--workdir` lies if it is left out.
        positional: a flag that may be given by its value alone, as in `alite report
            RUN`; of one whose default is a tuple there may be several values.
    """

    summary: str
    flags: tuple[Flag, ...] = ()
    folder: str = "runs"
    positional: str = ""


JOBS: dict[str, Job] = {
    "train": Job("Train teacher and student, compare them in WORKDIR/summary.json."),
    "evaluate": Job(
        "Measure the networks of a finished run on the evaluation split.",
        positional="workdir",
    ),
    "export": Job(
        "Write the student of a finished run to WORKDIR/export, to be used elsewhere.",
        (
            Flag(
                "values",
                "int8",
                "How --job=export stores weights: int8, float16 or float32.",
                VALUES,
            ),
            Flag("multiple", 1, "Of the widths that compaction leaves --job=export."),
            Flag(
                "formats",
                [],
                f"What --job=export writes besides: any of {', '.join(WRITTEN)},"
                " separated by commas. tflite:64 is a program for 64 images at a time.",
            ),
        ),
        positional="workdir",
    ),
    "report": Job(
        "Write one page about a finished run, WORKDIR/report/index.html.",
        positional="workdir",
    ),
    "compare": Job(
        "Print a table of runs and what differs in them; write both as a page.",
        (
            Flag("runs", (), "Folder of a run for --job=compare; once for each run."),
            Flag("page", "runs/compare/index.html", "Where --job=compare writes."),
        ),
        positional="runs",
    ),
    "profile": Job(
        "Trace some steps of both networks into WORKDIR/profile; a run of its own.",
        folder="runs/profiles",
    ),
    "prepare": Job(
        "Download the data set and write it as TFDS files; needs no workdir."
    ),
    "views": Job(
        "Write the training images, for a table of a teacher's logits; needs no run.",
        (
            Flag("views", 4, "Fixed views of each image that --job=views writes."),
            Flag("out", None, "Folder of the views. Left out: WORKDIR/views."),
        ),
    ),
    "cost": Job(
        "Count parameters, MACs and bytes of both networks; needs no data, no workdir.",
        (
            Flag(
                "table",
                "networks",
                "What --job=cost counts. networks: the two of the config, layer by"
                " layer. paper: the teacher and every student of the paper's size,"
                " whatever the config.",
                TABLES,
            ),
            Flag(
                "format",
                "table",
                f"How --job=cost prints: {', '.join(FORMATS)}.",
                FORMATS,
            ),
        ),
    ),
    "plan": Job(
        "Print which fields bring the student to --target; needs no data, no workdir.",
        (
            Flag(
                "target",
                None,
                "What --job=plan shall reach: parameters=NUMBER, bytes=NUMBER,"
                " macs=NUMBER or FRACTION, milliseconds=NUMBER.",
            ),
            Flag("batch", 1, "Images in a batch, for --target=milliseconds."),
        ),
    ),
    "study": Job(
        "Train the runs of --study, with tables and plots of what they found.",
        (
            Flag("study", None, "Study: a name or file in configs/studies."),
            Flag("rows", [], "Rows of the study to train now. Left out: all."),
            Flag(
                "results",
                None,
                "Folder of a study's results. Left out: results/NAME.",
            ),
        ),
        folder="runs/studies",
        positional="study",
    ),
    "sweep": Job(
        "Train a run for each combination of the values that --sweep flags give.",
        (
            Flag(
                "sweep",
                (),
                "FIELD=VALUES for --job=sweep, more often written --sweep.FIELD=VALUES:"
                " the values of a field, separated by commas. --sweep.shard=i/n makes"
                " every n-th run only, from the i-th, counted from 0.",
            ),
        ),
        folder="runs/sweeps",
    ),
    "config": Job(
        "Print every field with its meaning and default, then what this config changes."
    ),
}
