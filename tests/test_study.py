"""Studies: their declaration, their runs, what is published, what goes wrong."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from fitting import Stop, failing
from tiny import SETTINGS, TINY, run_command

import alite_jax
from alite_jax.config import describe_difference, flatten
from alite_jax.config.files import config_directory, load_config_file, study_names
from alite_jax.config.run_config import from_json
from alite_jax.errors import CheckpointError, ConfigError, TrainingError
from alite_jax.jobs import study as study_job
from alite_jax.runs.metrics import read_metrics
from alite_jax.study.declaration import Row, study_runs
from alite_jax.study.record import make_record, read_record, record_file

pytestmark = pytest.mark.usefixtures("models")

# Teacher and `joint` compile to the programs of `finished_run`, most of `again` too.
STUDY = dataclasses.replace(
    TINY,
    overrides=SETTINGS,
    rows={
        "joint": Row("sparse"),
        "again": Row(
            "sparse later",
            {"pruning.method": "gradual", "student.epochs": 2},
            start_from="joint",
        ),
    },
)


@pytest.fixture(scope="module")
def finished(models: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a study that was stopped on its way; what it returned."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        # When `joint` is trained, but not published yet.
        patch.setattr(study_job, "make_record", failing(make_record, 1))
        with pytest.raises(Stop):
            alite_jax.run_study(STUDY, folder / "work", folder / "out")
    kept = (folder / "work/teacher/seed0/metrics.jsonl").read_bytes()
    assert published(folder / "out") == ["teacher/seed0.json"]
    assert "Not run yet: joint, again." in (folder / "out/README.md").read_text()
    found = alite_jax.run_study(STUDY, folder / "work", folder / "out")
    assert (folder / "work/teacher/seed0/metrics.jsonl").read_bytes() == kept
    return folder, found


def published(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.json"))


def without(calls: str) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        raise AssertionError(f"{calls} was called")

    return call


@pytest.mark.processes
def test_a_study_resumes_and_publishes_every_run(finished: Any) -> None:
    folder, found = finished
    assert published(folder / "out") == [
        *("again/seed0.json", "joint/seed0.json", "teacher/seed0.json"),
    ]
    assert list(found) == ["teacher", "joint", "again"]
    for name, records in found.items():
        stored = json.loads((folder / "out" / name / "seed0.json").read_text())
        assert [stored] == json.loads(json.dumps(records))
    teachers = [found[name][0]["summary"]["teacher"] for name in found]
    assert teachers == [teachers[0]] * 3
    images = {path.name for path in (folder / "out").glob("*.png")}
    assert images == {
        *("accuracy_by_density.png", "accuracy_by_macs.png", "learning_curves.png"),
        *("layers_over_time.png", "layers_at_the_end.png"),
    }


@pytest.mark.processes
def test_nothing_of_the_machine_is_published(finished: Any) -> None:
    folder = finished[0]
    for path in (folder / "out").rglob("*"):
        if path.is_file():
            assert str(folder).encode() not in path.read_bytes()
            assert not re.search(rb"/(tmp|home|root|work)/", path.read_bytes())


@pytest.mark.processes
def test_curves_are_means_over_epochs(finished: Any) -> None:
    folder, found = finished
    record = found["again"][0]
    curves = record["curves"]["student"]
    lines = [line for line in read_metrics(folder / "work/again/seed0")]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 8  # one a step
    wanted = [sum(losses[:4]) / 4, sum(losses[4:]) / 4]
    assert curves["loss"] == pytest.approx(wanted, abs=1e-5)
    accuracies = [line["eval_accuracy"] for line in lines if "eval_accuracy" in line]
    assert curves["eval_accuracy"] == pytest.approx(accuracies, abs=1e-5)
    assert curves["eval_accuracy"][-1] == record["summary"]["student"]["accuracy"]
    assert curves["density"] == pytest.approx([1.0, 0.25], abs=1e-3)
    assert record["layers"]["stem"] == [0.25, 0.25]  # after its one change
    assert found["teacher"][0]["layers"] == {}
    assert set(found["teacher"][0]["curves"]) == {"teacher"}


@pytest.mark.processes
def test_the_page_has_each_row_its_command_and_the_sequential_sums(
    finished: Any,
) -> None:
    page = (finished[0] / "out/README.md").read_text()
    rows = {
        cells[1]: cells
        for line in page.splitlines()
        if len(cells := [cell.strip() for cell in line.split("|")]) == 12
    }
    assert rows["again"][3] == "3 + 2"
    assert re.fullmatch(r"\d+ \+ \d+", rows["again"][10])
    assert rows["joint"][2:4] == ["0", "3"]
    for name in STUDY.rows:
        assert f"`{STUDY.command} --rows={name}`" in page
    assert "Not run yet" not in page


@pytest.mark.processes
def test_finished_runs_are_not_trained_again_and_a_torn_result_is_mended(
    finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, found = finished
    path = folder / "out/again/seed0.json"
    whole = path.read_text()
    path.write_text(whole[:100])
    # Not by a run that does not make it anew.
    with pytest.raises(ConfigError, match="again/seed0.json is no record of a run"):
        alite_jax.run_study(STUDY, folder / "work", folder / "out", rows=["joint"])
    monkeypatch.setattr("alite_jax.jobs.train.fit", without("fit"))
    monkeypatch.setattr("alite_jax.pages.study_plots.study_plots", lambda rows: {})
    again = alite_jax.run_study(STUDY, folder / "work", folder / "out", rows=["again"])
    assert path.read_text() == whole
    assert json.dumps(again) == json.dumps(found)


@pytest.mark.processes
def test_a_result_of_other_settings_is_refused(finished: Any, tmp_path: Path) -> None:
    folder = finished[0]
    changed = dataclasses.replace(
        STUDY, rows={**STUDY.rows, "again": Row("denser", "student.density=0.5")}
    )
    with pytest.raises(ConfigError) as caught:
        alite_jax.run_study(changed, tmp_path, folder / "out", rows=["joint"])
    message = str(caught.value)
    assert "student.density (was 0.25, is 0.5)" in message
    assert "pruning.method (was 'gradual', is 'sparse_momentum')" in message
    assert "run row 'again' again" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.processes
def test_an_export_is_part_of_the_record(finished: Any) -> None:
    folder, found = finished
    run = study_runs(STUDY, folder / "work")[1]
    card = run.folder / "export" / "card.json"
    card.parent.mkdir()
    card.write_text('{"accuracy": 0.5}')
    assert make_record(run) == found["joint"][0] | {"export": {"accuracy": 0.5}}
    card.write_text("{")
    with pytest.raises(CheckpointError, match=r"card.json is not .* run --job=export"):
        make_record(run)
    shutil.rmtree(card.parent)
    assert make_record(run) == found["joint"][0]


def test_a_run_without_a_result_has_no_record(tmp_path: Path) -> None:
    run = study_runs(TINY, tmp_path)[0]
    with pytest.raises(ConfigError, match="holds no finished run; train it first"):
        make_record(run)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ConfigError, match="list.json is no record"):
        read_record(tmp_path / "list.json", run)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs in the order of their training, which only pretends."""
    made: list[str] = []

    def pretend(config: Any, workdir: Path) -> None:
        made.append(f"{workdir.parent.name}/{workdir.name}")
        if config.student.density == 1:
            raise TrainingError("the loss is nan at step 3")

    for name in ("train", "train_teacher"):
        monkeypatch.setattr(study_job, name, pretend)
    for name in ("make_record", "write_record", "publish", "_results"):
        monkeypatch.setattr(study_job, name, lambda *arguments: [])
    return made


def test_rows_bring_what_they_need(calls: list[str], tmp_path: Path) -> None:
    study = dataclasses.replace(
        TINY, rows={**TINY.rows, "joint": Row("sparse", seeds=(0, 1))}
    )
    alite_jax.run_study(study, tmp_path, rows=["joint"])
    assert calls == ["teacher/seed0", "joint/seed0", "teacher/seed1", "joint/seed1"]


def test_a_run_that_fails_does_not_keep_the_others(
    calls: list[str], tmp_path: Path
) -> None:
    study = dataclasses.replace(TINY, rows={**TINY.rows, "joint": Row("sparse")})
    with pytest.raises(TrainingError) as caught:
        alite_jax.run_study(study, tmp_path)
    assert calls == ["teacher/seed0", "dense/seed0", "joint/seed0"]
    assert str(caught.value) == (
        "2 of 4 runs failed: dense, seed 0: the loss is nan at step 3; again, seed 0:"
        " what it starts from failed"
    )


def test_a_folder_of_a_run_is_no_folder_of_a_study(
    calls: list[str], tmp_path: Path
) -> None:
    (tmp_path / "config.json").touch()
    with pytest.raises(ConfigError, match="holds a run of its own; use another"):
        alite_jax.run_study(TINY, tmp_path)
    assert calls == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"teacher": Row("")}, "row 'teacher' .* is not 'teacher', which every study"),
        ({"a/b": Row("")}, "row 'a/b' of study 'tiny': a name is made of"),
        ({"a": Row("", start_from="b"), "b": Row("")}, "'b', which is no row before"),
        (
            {"a": Row("", seeds=(0,)), "b": Row("", seeds=(0, 1), start_from="a")},
            "starts from 'a', which has no seed 1",
        ),
        ({"a": Row("", "teacher.width=9")}, "row 'a' .*: it sets teacher.width, but"),
        ({"a": Row("", "seed=9")}, "row 'a' of study 'tiny': it sets seed, but all"),
        (
            {"a": Row("", "student.densty=9")},
            "row 'a' .*unknown field 'student.densty'",
        ),
        (
            {"a": Row(""), "b": Row("", "student.epochs=3")},
            r"the same student.epochs, found \{'a': 2, 'b': 3\}",
        ),
    ],
)
def test_a_mistake_in_a_row(rows: dict[str, Row], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        study_runs(dataclasses.replace(TINY, rows=rows), tmp_path)


def test_seeds_are_not_overrides(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set seed, which is that of each run; set"):
        study_runs(dataclasses.replace(TINY, overrides="seed=3"), tmp_path)


def test_a_teacher_that_is_given_needs_no_run_of_its_own(tmp_path: Path) -> None:
    study = dataclasses.replace(TINY, overrides=[SETTINGS, {"teacher.module": "a:b"}])
    runs = study_runs(study, tmp_path)
    assert [(run.name, run.needs) for run in runs] == [
        ("dense", ()),
        ("again", ("dense",)),
    ]
    assert {run.config.teacher.workdir for run in runs} == {""}
    assert runs[1].config.student.init_workdir == str(runs[0].folder)
    study = dataclasses.replace(TINY, overrides=[SETTINGS, {"teacher.logits": "a"}])
    with pytest.raises(ConfigError, match="'tiny' compares its rows with their teach"):
        study_runs(study, tmp_path)


@pytest.mark.parametrize("field", ["teacher.weights", "teacher.workdir"])
def test_rows_of_the_paper_s_size_go_on_from_a_teacher_s_file_or_folder(
    field: str,
) -> None:
    study = alite_jax.get_study("cifar10:short", [f"{field}=teachers/one"])
    runs = {run.name: run for run in study_runs(study, Path("runs"))}
    assert list(runs) == list(study.rows)
    for run in runs.values():
        assert flatten(run.config)[field] == "teachers/one"
    needed = {name: run.needs for name, run in runs.items() if run.needs}
    assert needed == {"sequential": ("dense_kd",)}
    assert runs["mixed_0.35_gradual"].config.pruning.macs == 0.35


@pytest.mark.parametrize("gpu", ["h100", "h200"])
def test_what_gpus_have_trained_is_a_row_of_the_paper_s_size(gpu: str) -> None:
    runs = study_runs(alite_jax.get_study("cifar10:short"), Path("runs"))
    row = next(run.config for run in runs if run.name == "joint_0.1")
    file = config_directory().parent / "results" / f"{gpu}_cifar10" / "config.json"
    trained = from_json(file.read_text())
    differing = describe_difference(row, trained)
    assert set(differing) == {"compute.dtype", "teacher.workdir"}
    assert differing["compute.dtype"] == ("bfloat16", "auto")


STUDIES = [
    *("cifar100_cpu.py", "cifar10_cpu.py", "digits.py", "tiny_imagenet_cpu.py"),
    *(f"epochs_cifar10_cpu.py:{epochs}" for epochs in ("3,6", "6,6", "6,12", "30,30")),
    *("recipe_cifar10_cpu.py", "recipe_cifar10_cpu.py:combined"),
    *("photographs_cpu.py", "cifar10.py", "cifar10.py:short"),
    "cifar10_cpu_runtimes.py",
]
WAITING = ("cifar10", "cifar10_short")


def test_a_study_with_formats_exports_its_students_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[str] = []

    def export(config: Any, folder: Path, formats: tuple[str, ...]) -> None:
        exported.append(f"{folder.parent.name} {' '.join(formats)}")
        (folder / "export").mkdir()
        (folder / "export" / "card.json").write_text('{"formats": {"mlir": {}}}')

    def train(config: Any, folder: Path) -> dict[str, Any]:
        folder.mkdir(parents=True, exist_ok=True)
        return {}

    for name in ("train", "train_teacher"):
        monkeypatch.setattr(study_job, name, train)
    monkeypatch.setattr(study_job, "export", export)
    monkeypatch.setattr(study_job, "make_record", lambda run: {})
    monkeypatch.setattr(study_job, "write_record", lambda *_: None)
    monkeypatch.setattr(study_job, "publish", lambda *_: None)
    monkeypatch.setattr(study_job, "_results", lambda *_: [])
    study = dataclasses.replace(STUDY, formats=("mlir",))
    for _ in range(2):
        alite_jax.run_study(study, tmp_path / "runs", tmp_path / "results")
    students = [run for run in study_runs(study, tmp_path) if run.name != "teacher"]
    assert exported == [f"{run.name} mlir" for run in students]
    with pytest.raises(ConfigError, match="unknown format 'onx'"):
        alite_jax.run_study(
            dataclasses.replace(STUDY, formats=("onx",)), tmp_path / "runs"
        )


def test_these_are_all_studies_of_the_project() -> None:
    assert study_names() == sorted({name.partition(".py")[0] for name in STUDIES})


@pytest.mark.parametrize("name", STUDIES)
def test_the_studies_of_the_project(name: str) -> None:
    """Their results, too: what is published is what the row is declared to be now."""
    study = alite_jax.get_study(f"configs/studies/{name}", ["student.width=16"])
    assert study.name == re.sub(r"\W+", "_", name.replace(".py", ""))
    command = f"python launch.py --job=study --study=configs/studies/{name}"
    assert study.command == f"{command} --config.student.width=16"
    runs = study_runs(study, Path("runs"))
    assert len(runs) > len(study.rows)
    path = config_directory() / "studies" / name.partition(":")[0]
    assert command.partition(":")[0] in str(load_config_file(path).__doc__)
    if name.startswith("recipe"):
        for run in runs:
            assert "test" not in run.config.data.eval_split != ""
    results = path.parents[2] / "results" / study.name
    declared = {record_file(results, run): run for run in runs}
    records = set(results.glob("*/*.json"))
    assert records <= set(declared)
    for file in records:
        assert read_record(file, declared[file])["row"] == declared[file].name
    assert bool(records) == (study.name not in WAITING)
    if not records:
        return
    page = (results / "README.md").read_text()
    for row in {declared[file].name for file in records}:
        assert f"`{command} --rows={row}`" in page


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits:6", "takes no argument, found '6'"),
        ("epochs_cifar10_cpu", "as in epochs_cifar10_cpu:6,12; found '', valid names"),
        ("epochs_cifar10_cpu:6,13", "found '6,13', did you mean '6,12'"),
        ("cifar10:long", "the one argument is 'short', found 'long'"),
        ("recipe_cifar10_cpu:all", "the one argument is 'combined', found 'all'"),
        ("gone:6", "unknown study 'gone'"),
    ],
)
def test_a_wrong_argument(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        alite_jax.get_study(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "defines no function get_study"),
        ("def get_study():\n    return 1", "must return a Study, found int"),
        ("def get_study():\n    return x", "line 2 fails: NameError"),
    ],
)
def test_a_wrong_study_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        alite_jax.get_study(str(tmp_path / "mine.py"))


def test_the_command_line(
    calls: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    study = ("--job=study", "--study=configs/studies/digits.py")
    assert (
        run_command(*study, "--rows=joint_0.1,static", "--config.student.width=8") == 0
    )
    assert calls == ["teacher/seed0", "joint_0.1/seed0", "static/seed0"]
    assert run_command(*study, "--rows=jiont_0.1") == 2
    sentence = "error: study 'digits' has no row 'jiont_0.1'; did you mean 'joint_0.1'"
    assert sentence in capsys.readouterr().err
    with pytest.raises(ConfigError, match="rows is the text 'static', but must be a"):
        alite_jax.run_study(alite_jax.get_study("digits"), tmp_path, rows="static")
    assert run_command(*study, "--config=digits") == 2
    assert "which names the config, and no --config" in capsys.readouterr().err
