"""What is said about each field, and that docs/config.md says the same."""

import json
from pathlib import Path

import pytest
from tiny import run_command

import alite_jax
from alite_jax.config import default_config, flatten
from alite_jax.config_docs import config_fields, config_page

PAGE = Path(__file__).resolve().parent.parent / "docs" / "config.md"


def test_every_field_has_a_meaning() -> None:
    fields = {field.name: field for field in config_fields()}
    assert {name: field.value for name, field in fields.items()} == flatten(
        default_config()
    )
    assert all(field.meaning.endswith(".") for field in fields.values())
    assert fields["student.optimizer.step_epochs"].type == "tuple"
    assert fields["student.width"].meaning == "Name and width as for the teacher."
    # A comment of several lines, and one that several fields share.
    assert fields["data.eval_split"].meaning == fields["data.train_split"].meaning
    assert fields["data.data_dir"].meaning == (
        "TFDS folder of prepared data sets; '' means $TFDS_DATA_DIR where it is set,"
        " otherwise ~/tensorflow_datasets."
    )


def test_the_page_is_what_the_command_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command("--job=config", "--format=markdown") == 0
    printed = capsys.readouterr().out
    heading, table, rows = PAGE.read_text().partition("| field |")
    assert table + rows == printed, (
        "put what python launch.py --job=config --format=markdown prints into"
        " docs/config.md, below its heading"
    )
    assert heading.startswith("# Every field of the configuration\n")
    assert "python launch.py --job=config --format=markdown" in heading


def test_values_are_those_of_the_configuration() -> None:
    config = alite_jax.get_config("digits", "student.density=0.25")
    found = {field["name"]: field for field in json.loads(config_page(config, "json"))}
    assert found["student.density"]["value"] == 0.25
    lines = [line.split() for line in config_page(config).splitlines()]
    assert ["student.density", "float", "0.25"] in lines and len(lines) == len(found)
