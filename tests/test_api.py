"""docs/api.md is what the docstrings say, and what their examples say is true."""

import doctest
import os
import shutil
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import tiny_config

import alite_jax
from alite_jax.config.validation import registries
from alite_jax.jobs import evaluate as evaluate_job
from alite_jax.jobs import study as study_job
from alite_jax.jobs import sweep as sweep_job
from alite_jax.jobs import train as train_job
from docs.make_api import CONSTANT, GROUPS, PAGE, page, sections

NAMES = [name for group in GROUPS.values() for name in group]
# The examples of other names show them.
WITHOUT_EXAMPLE = {
    CONSTANT,
    "alite_jax.study.declaration.Study",
    "alite_jax.study.declaration.Row",
    "alite_jax.deploy.artefact.Artefact",
}


def example(name: str) -> str:
    return "" if name == CONSTANT else sections(name).get("Example", "")


def failures(name: str, text: str, session: dict[str, Any]) -> str:
    """What doctest says against an example, which is run in a session."""
    test = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    test.globs = session
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(test, out=said.append, clear_globs=False)
    return "".join(said)


def test_every_public_name_is_in_the_page_with_an_example() -> None:
    assert {f"alite_jax.{name}" for name in alite_jax.__all__} <= set(NAMES)
    assert {name for name in NAMES if ">>>" not in example(name)} == WITHOUT_EXAMPLE


@pytest.mark.processes
def test_the_examples_say_the_truth(
    models: None,
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def copied(config: Any, folder: Path, **given: Any) -> Any:
        """Other tests show how runs of a sweep and of a study are trained."""
        shutil.copytree(finished_run, folder)
        return alite_jax.train(tiny_config(), folder)

    monkeypatch.setattr(sweep_job, "train", copied)
    monkeypatch.setattr(study_job, "train", copied)
    for job in (train_job, evaluate_job):  # The page shows no tables of results.
        monkeypatch.setattr(job, "say", lambda text: None)
    for registry in registries().values():
        monkeypatch.setattr(registry, "_registered", {})
    kernel = jax.random.normal(jax.random.key(0), (10, 20))
    session = {
        "__name__": "a_session",
        "alite_jax": alite_jax,
        **{"jax": jax, "jnp": jnp, "nn": nn, "np": np, "optax": optax, "os": os},
        "config": tiny_config(),
        "workdir": shutil.copytree(finished_run, tmp_path / "run"),
        "params": {"kernel": kernel, "bias": jnp.zeros(20)},
    }
    said = "".join(failures(name, example(name), session) for name in NAMES)
    assert not said, said


def test_a_wrong_example_would_be_noticed() -> None:
    session = {"one": 1}
    assert not failures("right", ">>> two = one + 1\n>>> two\n2\n", session)
    said = failures("wrong", ">>> two + 1\n2\n", session)
    assert "in wrong" in said and "Expected:\n    2\nGot:\n    3" in said


def test_the_page_is_what_the_docstrings_say() -> None:
    assert PAGE.read_text() == page(), "docs/api.md is out of date; run `make docs`"
