"""The command line: what it passes on, its sentences, its exit status."""

import importlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from absl.testing import flagsaver

import alite_jax
from alite_jax import command_line
from alite_jax.config import get_config, override
from alite_jax.config.run_config import to_json
from alite_jax.counting import comparison
from alite_jax.errors import ConfigError, TrainingError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def fresh_flags():
    with flagsaver.flagsaver():
        yield
    command_line.FLAGS.unparse_flags()


@pytest.fixture
def calls(monkeypatch):
    """Replaces what the jobs call; holds (job, config, workdir) of each call."""
    made = []
    for name in ("train", "evaluate"):
        module = importlib.import_module(f"alite_jax.jobs.{name}")
        monkeypatch.setattr(
            module,
            name,
            lambda config, workdir, job=name: made.append((job, config, str(workdir))),
        )

    def prepare_data(data):
        made.append(("prepare", data, None))
        return "some/folder"

    module = importlib.import_module("alite_jax.jobs.prepare")
    monkeypatch.setattr(module, "prepare", prepare_data)
    return made


def run(*arguments):
    """Runs the command line in this process and returns the exit status."""
    try:
        return command_line.main(command_line.parse(["launch.py", *arguments]))
    except SystemExit as stop:
        return stop.code


def test_train_is_the_default(calls):
    assert run("--config=cifar10:smoke", "--workdir=w") == 0
    assert calls == [("train", get_config("cifar10:smoke"), "w")]


def test_every_field_is_printed_with_its_meaning_and_what_changes(capsys):
    assert run("--job=config", "--config=digits:density=0.25") == 0
    printed = capsys.readouterr().out
    meaning = (
        "    # Fraction of the prunable weights that is kept, in (0, 1]; 1 keeps all"
    )
    assert meaning in printed and "    student.density = 0.1\n" in printed
    assert "\nconfig.student.density = 0.25\n" in printed
    assert "\nconfig.data.name = 'digits'\n" in printed


def test_a_workdir_may_begin_at_home(calls, monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/mine")
    assert run("--config=digits", "--workdir=~/runs/x") == 0
    assert calls[0][2] == "/home/of/mine/runs/x"


def test_overrides_mean_the_same_as_in_python(calls):
    status = run(
        "--config=configs/digits.py:density=0.25",
        "--config.student.epochs=1e2",
        "--workdir=w",
        "--config.student.optimizer.step_epochs=8,9",
        "--config.data.train_split",
        "train[:90%]",
        "-config.distillation.alpha=.5",
        "--job=evaluate",
    )
    expected = get_config(
        "digits:density=0.25",
        {
            "student": {"epochs": 100, "optimizer.step_epochs": (8, 9)},
            "data.train_split": "train[:90%]",
            "distillation.alpha": 0.5,
        },
    )
    assert status == 0
    assert calls == [("evaluate", expected, "w")]


def test_prepare_passes_the_data_section(calls, capsys):
    assert run("--config=cifar100", "--job=prepare") == 0
    assert calls == [("prepare", get_config("cifar100").data, None)]
    assert capsys.readouterr().out == "cifar100 is ready in some/folder\n"


def test_cost_counts_both_networks_and_leaves_nothing(calls, capsys, tmp_path):
    workdir = tmp_path / "w"
    status = run("--config=digits:stem=attention", "--job=cost", f"--workdir={workdir}")
    assert status == 0
    output = capsys.readouterr().out
    assert "teacher: resnet50 at density 100 %" in output
    assert "student: resnet26_attention at density 7.5 %" in output
    assert "stem/value" in output
    assert calls == [] and not workdir.exists()


def test_cost_of_the_paper_s_networks_as_json(calls, capsys, monkeypatch):
    for name, values in (
        ("PAPER_DATASETS", ("cifar100",)),
        ("PAPER_FAMILIES", ("attention",)),
        ("PAPER_KERNEL_SIZES", (3,)),
    ):
        monkeypatch.setattr(comparison, name, values)
    assert run("--job=cost", "--table=paper", "--format=json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 1 + 3 * 4


@pytest.mark.parametrize(
    ("config", "workdir"),
    [
        ("digits", "runs/digits"),
        ("configs/cifar10.py", "runs/cifar10"),
        ("cifar10:smoke,density=0.05", "runs/cifar10_smoke_density=0.05"),
        ("some/where/mine.py:a=../b", "runs/mine_a=.._b"),
    ],
)
def test_default_workdir(config, workdir):
    assert command_line.default_workdir("train", config) == workdir


def test_without_a_config_the_run_s_own_is_used(calls, tmp_path):
    recorded = get_config("cifar10:smoke", {"seed": 3})
    (tmp_path / "config.json").write_text(to_json(recorded))
    expected = override(recorded, "logging.progress=false")
    workdir = f"--workdir={tmp_path}"
    assert run(workdir, "--job=evaluate", "--config.logging.progress=0") == 0
    assert run(workdir, "--config=digits") == 0
    assert run(f"--workdir={tmp_path / 'new'}", "--noconfig") == 2
    assert run(f"--workdir={tmp_path / 'new'}") == 0
    assert [config for _, config, _ in calls] == [
        expected,
        get_config("digits"),
        get_config("digits"),
    ]


def test_a_damaged_config_of_a_run(calls, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{")
    assert run(f"--workdir={tmp_path}") == 2
    assert "config.json cannot be used: the config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--job=trian"], "unknown job 'trian'; did you mean 'train'?"),
        (["--job=x"], "unknown job 'x'; valid names: compare, config, cost, evaluate,"),
        (["--format=jsn"], "unknown format 'jsn'; did you mean 'json'?"),
        (["--format=x"], "unknown format 'x'; valid names: json, markdown, table"),
        (["--table=papr"], "unknown table 'papr'; did you mean 'paper'?"),
        (["--values=int4"], "unknown values 'int4'; did you mean 'int8'?"),
        (["--config="], "--config is empty; give it a value, or leave it out"),
        (["--job=evaluate", ""], "--workdir is empty; give it a value"),
        (["--job=compare", "a", ""], "--runs is empty; give it a value"),
        (["--wrkdir=x"], "unknown flag --wrkdir; did you mean 'workdir'?"),
        (
            ["--zzz"],
            "unknown flag --zzz; valid names: batch, config, coordinator_address",
        ),
        (["--rows=joint"], "--rows is for --job=study, found --job=train"),
        (["--format=json"], "--format is for --job=cost, found"),
        (["--job=study"], "--job=study needs --study=configs/studies/NAME.py"),
        (["--job=plan"], "--job=plan needs --target=KIND=NUMBER"),
        (["--target=macs=1"], "--target is for --job=plan, found --job=train"),
        (["--job=study", "--study=digts"], "unknown study 'digts'; did you mean 'dig"),
        (
            ["--student.density=1"],
            "unknown flag --student.density; did you mean 'config.student.density'",
        ),
        (["--workdir"], "Missing value for flag --workdir"),
        (
            ["cifar10"],
            "unexpected argument 'cifar10', every setting is written --name=",
        ),
        (["--config=cifr10"], "unknown config 'cifr10'; did you mean 'cifar10'"),
        (["--config=digits:densty=1"], "unknown config argument 'densty=1'; did you"),
        (["--config.student.densty=1"], "unknown field 'student.densty'; did you mean"),
        (["--config.student.density=0"], "student.density must be above 0"),
        (["--config.student.epochs=3.5"], "student.epochs must be a whole number"),
        (
            ["--config.student.epochs", "--job=train"],
            "epochs needs a value, as in --config.student.epochs=VALUE",
        ),
        (["--config.student.epochs"], "--config.student.epochs needs a value"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(calls, capsys, arguments, message):
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert calls == []


def test_an_error_of_the_run_is_one_sentence(calls, capsys, monkeypatch):
    def fail(config, workdir):
        raise TrainingError("the loss is nan at step 3,\nlast checkpoint at step 2")

    monkeypatch.setattr("alite_jax.jobs.train.train", fail)
    assert run("--workdir=w") == 2
    expected = "error: the loss is nan at step 3, last checkpoint at step 2\n"
    assert capsys.readouterr().err == expected


def test_interruption_says_how_to_resume(calls, capsys, monkeypatch):
    def interrupt(config, workdir):
        raise KeyboardInterrupt

    monkeypatch.setattr("alite_jax.jobs.train.train", interrupt)
    assert run("--workdir=w") == 130
    assert "the same command again resumes" in capsys.readouterr().err


def test_any_other_exception_is_a_defect_and_keeps_its_traceback(calls, monkeypatch):
    def fail(config, workdir):
        raise ZeroDivisionError

    monkeypatch.setattr("alite_jax.jobs.train.train", fail)
    with pytest.raises(ZeroDivisionError):
        run("--workdir=w")


def test_a_file_that_is_not_for_this_user_is_a_mistake(calls, capsys, monkeypatch):
    def fail(config, workdir):
        raise PermissionError(13, "Permission denied", "w/summary.json")

    monkeypatch.setattr("alite_jax.jobs.train.train", fail)
    assert run("--workdir=w") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: cannot use w/summary.json (Permission denied); ")
    assert said.count("\n") == 1


def test_output_takes_names_that_are_no_text_and_may_be_closed(monkeypatch):
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", printed)
    monkeypatch.setattr(sys, "stderr", None)
    command_line._open_output()
    print(os.fsdecode(b"n\xe9"), flush=True)
    assert printed.buffer.getvalue() == b"n\\udce9\n"
    with sys.stderr as opened:
        assert not opened.isatty()
        print("nowhere", file=opened, flush=True)


@pytest.mark.parametrize("word", ["config", "--help"])
def test_output_that_nobody_reads_ends_the_command_without_a_word(word):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "alite_jax", word],
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ("train --config=digits", "--job=train --config=digits"),
        ("evaluate runs/x", "--job=evaluate runs/x"),
        ("--help", "--help"),
        ("--version", "--version"),
    ],
)
def test_a_job_may_come_first(words, flags):
    assert command_line.with_job_flag(words.split()) == flags.split()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("trian", "unknown job 'trian'; did you mean 'train'"),
        ("predikt m", "unknown job 'predikt'; did you mean 'predict'"),
        ("", "the job comes first, as in `alite train`: train, evaluate"),
        ("--config=digits", "the job comes first"),
        ("train --job=export", "unexpected argument '--job=export', the job is train"),
    ],
)
def test_a_mistake_about_the_job_that_comes_first(words, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        command_line.with_job_flag(words.split())


def test_a_run_may_be_given_without_its_flag_s_name(calls):
    for place in ("runs/x", "--workdir=runs/x"):
        assert run("--job=evaluate", place, "--config=digits") == 0
    assert calls[0] == calls[1] == ("evaluate", get_config("digits"), "runs/x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b"], "unexpected argument 'b' after 'a'"),
        (["a", "--workdir=b"], "unexpected argument 'a', --workdir is given, too"),
    ],
)
def test_a_run_is_given_once(calls, capsys, arguments, message):
    assert run("--job=evaluate", *arguments) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert calls == []


def test_a_job_may_take_several_values_without_a_name(monkeypatch, capsys):
    # `sweep` is a flag of which there may be several.
    job = command_line.JOBS["sweep"]._replace(positional="sweep")
    monkeypatch.setitem(command_line.JOBS, "sweep", job)
    argv = command_line.with_job_flag(["sweep", "a=1", "--config=digits", "b=2,3"])
    command_line.parse(["alite", *argv])
    assert command_line.FLAGS.sweep == ["a=1", "b=2,3"]
    assert command_line.FLAGS.config == "digits"


def test_help_of_one_job_has_its_flags_and_no_others(capsys):
    with pytest.raises(SystemExit) as stop:
        command_line.parse(["alite", "--job=export", "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and text.startswith("usage: alite export [RUN]")
    assert "--formats" in text and "--target" not in text and "--job" in text


@pytest.mark.parametrize(
    ("arguments", "status", "start"),
    [
        (["--version"], 0, f"alite {alite_jax.__version__}\n"),
        (["--help"], 0, "usage: alite JOB"),
        (["plan", "--help"], 0, "usage: alite plan [--FLAG=VALUE ...]"),
        (["predict", "--help"], 0, "usage: alite predict"),
        (["trian"], 2, ""),
    ],
)
def test_the_command_answers_before_jax_is_loaded(tmp_path, arguments, status, start):
    script = (
        "import sys, runpy\n"
        "sys.modules['jax'] = None\n"  # Importing it fails.
        "runpy.run_module('alite_jax', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "ALITE_MALLOC": "system"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done.stderr
    assert done.stdout.startswith(start)
    assert bool(done.stderr) == (status == 2)


def test_split_overrides_keeps_the_rest_in_order():
    argv = ["p", "--a=1", "--config.seed=2", "--config=x", "--config.seed", "-1"]
    others, overrides = command_line.split_overrides(argv)
    assert others == ["p", "--a=1", "--config=x"]
    assert overrides == ["seed=2", "seed=-1"]
    with pytest.raises(ConfigError, match="needs a value"):
        command_line.split_overrides(["p", "--config.seed"])


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_jobs_configs_and_arguments(capsys, flag):
    assert run(flag) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "--workdir",
        *command_line.JOBS,
        "tiny_imagenet",
        "kernel_size",
        "smoke",
    ):
        assert part in text
    assert "--config.SECTION.FIELD=VALUE" in text


def test_a_real_process_exits_with_2_before_loading_jax(tmp_path):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / "launch.py", "--job=trian"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    imports = [line for line in done.stderr.splitlines() if line.startswith("import ")]
    rest = [line for line in done.stderr.splitlines() if line not in imports]
    assert done.returncode == 2
    assert rest == ["error: unknown job 'trian'; did you mean 'train'?"]
    assert not any(line.split("|")[-1].strip() == "jax" for line in imports)
    assert done.stdout == ""


@pytest.fixture
def compilation_cache(monkeypatch, tmp_path):
    """Where JAX keeps compiled programs, as nobody has set it; put back at the end."""
    kept = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield lambda: jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", kept)


@pytest.mark.parametrize("job", ["train", "evaluate"])
def test_compiled_programs_go_into_the_user_s_cache(
    calls, compilation_cache, tmp_path, job
):
    assert run(f"--job={job}", f"--workdir={tmp_path}") == 0
    assert compilation_cache() == str(tmp_path / "cache" / "alite_jax")
    assert (tmp_path / "cache" / "alite_jax").is_dir()
    assert len(calls) == 1


def test_without_xdg_the_cache_is_in_the_home(
    calls, compilation_cache, tmp_path, monkeypatch
):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(f"--workdir={tmp_path}") == 0
    assert compilation_cache() == str(tmp_path / ".cache" / "alite_jax")


def test_another_place_for_compiled_programs_stays(calls, compilation_cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", "mine")
    assert run(f"--workdir={tmp_path}") == 0
    assert compilation_cache() == "mine"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("reason", ["a file in the way", "no permission"])
def test_a_cache_that_cannot_be_written_stops_nothing(
    calls, compilation_cache, tmp_path, monkeypatch, reason
):
    if reason == "a file in the way":
        (tmp_path / "cache").write_text("")
    else:
        # Not by the file's mode, which does not bind the superuser.
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert run(f"--workdir={tmp_path}") == 0
    assert compilation_cache() is None
    assert len(calls) == 1


CACHING = """
import jax
from alite_jax.compiled_programs import keep_compiled_programs

keep_compiled_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
print(float(jax.jit(lambda x: 3 * x)(14.0)))
print([event.rsplit("/")[-1] for event in events if event.endswith(("hits", "misses"))])
"""


@pytest.mark.processes
def test_a_second_process_finds_the_programs_and_a_damaged_one_is_no_obstacle(tmp_path):
    names = ("JAX_COMPILATION_CACHE_DIR", "PYTHONWARNINGS")
    environment = {k: v for k, v in os.environ.items() if k not in names}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}

    def start():
        return subprocess.run(
            [sys.executable, "-c", CACHING],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    first, second = start(), start()
    assert first.stdout == "42.0\n['cache_misses']\n", first.stderr
    assert second.stdout == "42.0\n['cache_hits']\n", second.stderr
    assert first.stderr == second.stderr == ""
    (entry,) = (tmp_path / "alite_jax").iterdir()
    entry.write_bytes(entry.read_bytes()[:100])
    third = start()
    assert third.stdout == "42.0\n['cache_misses']\n", third.stderr
    assert third.returncode == 0
    assert "Error reading persistent compilation cache entry" in third.stderr
