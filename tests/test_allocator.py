"""The allocator's settings: where they are of use, and how a process gets them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alite_jax import allocator
from alite_jax.allocator import VARIABLE, restart_tuned, tuned_environment

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("environ", "libc", "accelerator", "tuned"),
    [
        pytest.param({}, "glibc", False, True, id="a CPU"),
        pytest.param({"JAX_PLATFORMS": "cpu"}, "glibc", False, True, id="told: CPU"),
        pytest.param(
            {"JAX_PLATFORMS": "cpu"}, "glibc", True, True, id="CPU despite GPU"
        ),
        pytest.param({"JAX_PLATFORMS": ""}, "glibc", False, True, id="empty"),
        pytest.param({}, "glibc", True, False, id="a GPU"),
        pytest.param({"JAX_PLATFORMS": "cuda"}, "glibc", False, False, id="told: GPU"),
        pytest.param(
            {"JAX_PLATFORMS": "tpu,cpu"}, "glibc", False, False, id="TPU first"
        ),
        pytest.param({}, "", False, False, id="musl or macOS"),
        pytest.param({VARIABLE: ""}, "glibc", False, False, id="settings of the user"),
        pytest.param({"ALITE_MALLOC": "system"}, "glibc", False, False, id="opt-out"),
        pytest.param({"ALITE_MALLOC": ""}, "glibc", False, True, id="no opt-out"),
    ],
)
def test_where_the_settings_are_of_use(
    environ: dict[str, str], libc: str, accelerator: bool, tuned: bool
) -> None:
    environ = environ | {"PATH": "/bin"}
    before = dict(environ)
    found = tuned_environment(environ, libc=libc, accelerator=accelerator)
    assert environ == before
    assert (found is not None) == tuned
    if found is None:
        return
    settings = found.pop(VARIABLE).split(":")
    assert found == environ
    assert settings == [
        "glibc.malloc.hugetlb=1",
        "glibc.malloc.arena_max=1",
        "glibc.malloc.mmap_max=0",
        "glibc.malloc.trim_threshold=17179869184",
        "glibc.malloc.top_pad=268435456",
    ]
    # A process that has them is not started again.
    assert tuned_environment(found | {VARIABLE: ":".join(settings)}) is None


def test_accelerators_are_device_files(monkeypatch: pytest.MonkeyPatch) -> None:
    present = {"/dev/null"}
    monkeypatch.setattr(os.path, "exists", lambda path: path in present)
    assert not allocator.has_accelerator()
    assert tuned_environment({}, libc="glibc") is not None
    present.add("/dev/accel0")
    assert allocator.has_accelerator()
    assert tuned_environment({}, libc="glibc") is None


def test_the_process_is_replaced_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = []

    def execve(path: str, arguments: list[str], environment: dict[str, str]) -> None:
        replaced.append((path, arguments, environment))
        raise PermissionError("not here")

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(sys, "orig_argv", ["py", "-X", "dev", "launch.py", "--job=x"])
    monkeypatch.setattr(allocator, "tuned_environment", lambda environ: {"A": "1"})
    restart_tuned()  # Where it cannot be replaced it goes on as it is.
    arguments = [sys.executable, "-X", "dev", "launch.py", "--job=x"]
    assert replaced == [(sys.executable, arguments, {"A": "1"})]
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    restart_tuned()  # Here somebody works.
    assert len(replaced) == 1
    monkeypatch.delattr(sys, "ps1")
    monkeypatch.setattr(allocator, "tuned_environment", lambda environ: None)
    restart_tuned()
    monkeypatch.setattr(sys, "executable", None)
    restart_tuned()
    assert len(replaced) == 1


SCRIPT = """
import os, sys
from alite_jax.allocator import restart_tuned
print(os.getpid(), "GLIBC_TUNABLES" in os.environ, sys.argv[1:], flush=True)
restart_tuned()
print("jax" in sys.modules)
sys.exit(3)
"""


@pytest.mark.skipif(
    tuned_environment({"JAX_PLATFORMS": "cpu"}) is None, reason="needs glibc"
)
def test_a_real_process_starts_again_once_and_keeps_its_id_and_its_arguments() -> None:
    environment = {k: v for k, v in os.environ.items() if k != VARIABLE}
    environment |= {"JAX_PLATFORMS": "cpu", "ALITE_MALLOC": ""}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, "--a=b c"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    before, after, jax = done.stdout.splitlines()
    number, tuned, arguments = before.split(maxsplit=2)
    assert (tuned, arguments) == ("False", "['--a=b c']")
    assert after == f"{number} True {arguments}"
    assert jax == "False"
    assert done.returncode == 3
