"""Strict surroundings for every test: two virtual devices, no home folder, no network.

Warnings are errors (pyproject.toml), and broadcasting between arrays of different rank
is an error too, because it is more often a mistake than meant.
"""

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from compiling import QUICK_FLAGS
from tiny import tiny_config, tiny_models

import alite_jax
from alite_jax.jobs.train import train_teacher

# Read before anything is compiled, here and in the processes that tests start.
# `XLA_FLAGS= make test` compiles as users do.
os.environ.setdefault("XLA_FLAGS", QUICK_FLAGS)
jax.config.update("jax_platforms", "cpu")
# Before anything is computed: with one device a wrong axis or a lost shard goes unseen.
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiled programs are kept, however small, for both workers and for repeated runs in
# one checkout, which take half as long. One that the other worker is just writing is a
# warning, which pyproject.toml ignores, and is compiled here.
CACHE = Path(__file__).resolve().parent.parent / ".cache" / "jax"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def pytest_collection_finish() -> None:
    """Nothing that is there by now need be looked through by garbage collections."""
    gc.collect()
    gc.freeze()
    # Tracing makes many objects that stay, among which there is little to collect.
    gc.set_threshold(100_000, 50, 100)


@pytest.fixture(scope="session", autouse=True)
def tfds_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty TFDS folder that stands in for the user's; digits are prepared in it."""
    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def models() -> Iterator[None]:
    """The networks of `tiny`, for modules that train through the public functions."""
    with tiny_models():
        yield


@pytest.fixture(scope="session")
def taught_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the teacher of `tiny_config()`, trained alone."""
    folder = tmp_path_factory.mktemp("taught") / "run"
    with tiny_models():
        train_teacher(tiny_config(), folder)
    return folder


@pytest.fixture(scope="session")
def finished_run(taught_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of `tiny_config()`; what changes it gets a copy."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(taught_run, folder)
    with tiny_models():
        alite_jax.train(tiny_config(), folder)
    return folder
