"""Wheel and sdist: what is in them, and that an installation works by itself."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

import alite_jax
from alite_jax import allocator

ROOT = Path(__file__).resolve().parent.parent
BUILD = "from setuptools import build_meta; build_meta.build_{}({!r})"
TINY = (
    "--config.teacher.model=resnet18",
    "--config.teacher.epochs=1",
    "--config.student.epochs=4",
    "--config.teacher.width=4",
    "--config.student.width=4",
    "--config.data.train_split=train[:64]",
    "--config.data.eval_split=test[:20]",
    "--config.data.batch_size=32",
    "--config.teacher.optimizer.warmup_epochs=0",
    "--config.student.optimizer.warmup_epochs=0",
    "--config.logging.progress=false",
)
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in ("PYTHONPATH", allocator.VARIABLE)
} | {"JAX_PLATFORMS": "cpu"}
# Ctrl-C is ignored by what a shell starts in the background.
HEARD = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL)"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of a copy of the checkout, and the wheel made from it."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    made = {str(ROOT / name) for name in ("runs", "build", "dist")}

    def left(parent: str, names: list[str]) -> set[str]:
        """Environments, caches and runs: what git ignores."""
        hidden = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")
        return hidden(parent, names) | {n for n in names if f"{parent}/{n}" in made}

    def build(kind: str, inside: Path) -> None:
        script = BUILD.format(kind, str(folder))
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=inside, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    shutil.copytree(ROOT, source, ignore=left)
    build("sdist", source)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    build("wheel", folder / "unpacked" / sdist.name.removesuffix(".tar.gz"))
    return folder


@pytest.fixture(scope="module")
def programs(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the command lies of an environment of its own, with the wheel installed.

    What the package imports comes from this environment and is not downloaded again.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    ours = sysconfig.get_path("purelib")
    scheme = {"base": str(folder), "platbase": str(folder)}
    theirs = Path(sysconfig.get_path("purelib", "venv", scheme))
    (theirs / "dependencies.pth").write_text(ours + "\n")
    (wheel,) = built.glob("*.whl")
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, wheel], check=True)
    return folder / "bin"


@pytest.mark.processes
def test_the_wheel_has_the_package_and_its_configs_and_nothing_else(
    built: Path,
) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    kept = {path.relative_to(ROOT) for path in (ROOT / "alite_jax").rglob("*.py")}
    kept |= {
        Path("alite_jax") / path.relative_to(ROOT)
        for path in (ROOT / "configs").rglob("*.py")
    }
    others = {name for name in names if ".dist-info/" not in name}
    assert others == {path.as_posix() for path in kept}
    assert wheel.name.startswith(f"alite_jax-{alite_jax.__version__}-")


@pytest.mark.processes
def test_the_sdist_has_what_the_wheel_is_built_from(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        paths = [PurePosixPath(*PurePosixPath(m.name).parts[1:]) for m in archive]
    top = {path.parts[0] for path in paths if path.parts}
    assert {"alite_jax", "configs", "pyproject.toml", "LICENSE", "README.md"} <= top
    assert {"requirements.txt", "requirements-onnx.txt"} <= top
    assert not top & {"tests", "results", "runs", "benchmarks", "notebooks", "docs"}


@pytest.mark.processes
def test_the_command_works_in_a_folder_that_is_no_checkout(
    programs: Path, tmp_path: Path
) -> None:
    def alite(*arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [programs / "alite", *arguments],
            cwd=tmp_path,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    where = "import alite_jax; print(alite_jax.__file__)"
    found = subprocess.run(
        [programs / "python", "-c", where], cwd=tmp_path, capture_output=True, text=True
    )
    assert found.stdout.startswith(str(programs.parent)), found.stderr
    assert alite("--version") == f"alite {alite_jax.__version__}\n"
    assert alite("--help").startswith("usage: alite JOB")
    assert "did you mean 'train'" in alite("trian", status=2)
    assert "unknown study 'digts'" in alite("study", "digts", status=2)
    alite("train", "--config=digits", *TINY)
    run = tmp_path / "runs" / "digits"
    assert (run / "summary.json").is_file()
    alite("report", "runs/digits")
    assert (run / "report" / "index.html").is_file()
    alite("export", "runs/digits")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "photo.png")
    said = alite("predict", "runs/digits/export", "photo.png")
    assert said.startswith("photo.png: ")


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_is_started_again_and_stops_at_a_signal(
    programs: Path, tmp_path: Path, number: int
) -> None:
    own = [str(programs / "alite"), "train", "--config=digits", "--workdir=run", *TINY]
    own.append("--config.student.epochs=900")
    script = f"{HEARD}; os.execv(sys.argv[1], sys.argv[1:])"
    with subprocess.Popen(
        [programs / "python", "-c", script, *own],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            record = tmp_path / "run" / "metrics.jsonl"
            while not (record.is_file() and '"student"' in record.read_text()):
                assert process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(0.1)
            # The process is the same one, and its new settings are seen from here.
            tuned = allocator.tuned_environment(ENVIRONMENT) is not None
            environ = Path("/proc", str(process.pid), "environ").read_text()
            assert (f"{allocator.VARIABLE}=" in environ) == tuned
            process.send_signal(number)
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 128 + number, said
    assert "student: stopped by" in said and "goes on" in said
