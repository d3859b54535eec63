"""What the runs of one row of a study found together."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from alite_jax.errors import ConfigError
from alite_jax.pages.plot_style import COLOURS, GREY


@dataclass(frozen=True)
class RowResult:
    """A row of a study and its results.

    Attributes:
        name: of the row.
        question: what the row answers, in one line.
        records: one for each seed, as `alite_jax.study.record` makes them.
        start: name of the row whose student it started from, "" for none.
    """

    name: str
    question: str
    records: Sequence[dict[str, Any]]
    start: str = ""

    def __post_init__(self) -> None:
        if not self.records:
            raise ConfigError(f"row {self.name!r} has no records; leave it out")

    @property
    def phase(self) -> str:
        """Which network the row is about: `student`, or `teacher` if it is alone."""
        return "student" if "student" in self.records[0]["summary"] else "teacher"

    @property
    def epochs(self) -> int:
        """Passes over the training images in this row's own training."""
        epochs: int = self.records[0]["summary"]["config"][self.phase]["epochs"]
        return epochs

    @property
    def seeds(self) -> list[int]:
        """The seeds, as the records have them."""
        return [record["summary"]["seed"] for record in self.records]

    @property
    def seconds(self) -> list[float]:
        """Seconds of the network's own training, one for each seed."""
        name = f"{self.phase}_training"
        return [record["summary"]["seconds"][name] for record in self.records]

    @property
    def drops(self) -> list[float]:
        """Points that each student lies below its own teacher; [] for a teacher."""
        if self.phase == "teacher":
            return []
        return [record["summary"]["accuracy_drop"] for record in self.records]

    def values(self, field: str) -> list[float]:
        """One field of the network for each seed, such as `accuracy` (a fraction)."""
        return [record["summary"][self.phase][field] for record in self.records]

    def curves(self, name: str) -> list[list[float]]:
        """One curve for each seed, a number an epoch; [] where none was recorded."""
        curves = [record["curves"].get(self.phase, {}) for record in self.records]
        return [curve[name] for curve in curves if name in curve]

    @property
    def layers(self) -> dict[str, list[float]]:
        """Density of each layer after each epoch, of the first seed; {} if dense."""
        layers: dict[str, list[float]] = self.records[0]["layers"]
        return layers

    @property
    def exports(self) -> list[dict[str, Any]]:
        """The cards of the students that were exported (`alite_jax.deploy.card`)."""
        return [record["export"] for record in self.records if "export" in record]

    @property
    def recipe(self) -> str:
        """A text that rows share if they differ in nothing but `student.density`."""
        config = self.records[0]["summary"]["config"]
        student = {**config["student"], "density": None}
        others = {**config, "student": student, "seed": None}
        return self.start + json.dumps(others, sort_keys=True)


# Line and marker; with each of the colours, enough for 35 rows that all look different.
_TURNS = (("-", "o"), (":", "s"), ("-.", "^"), ((0, (6, 2)), "D"), ((0, (1, 3)), "v"))


def line_styles(rows: Sequence[RowResult]) -> list[tuple[str, Any, str]]:
    """Colour, line style and marker of each row; the teacher's are its own."""
    turns = iter(
        (colour, line, marker) for line, marker in cycle(_TURNS) for colour in COLOURS
    )
    return [
        (GREY, "--", "o") if row.phase == "teacher" else next(turns) for row in rows
    ]
