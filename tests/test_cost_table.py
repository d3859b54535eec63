"""Teacher and student of a configuration, the paper's matrix, and how both print."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest

import alite_jax
from alite_jax.counting import comparison
from alite_jax.counting.comparison import (
    MatrixRow,
    NetworkCosts,
    configured_costs,
    paper_matrix,
    ratios,
)
from alite_jax.counting.cost import Cost
from alite_jax.data.specs import DATASETS
from alite_jax.models import layers
from alite_jax.models.resnet import MODELS, PAPER_DEPTHS
from alite_jax.pages.cost_table import matrix_table, networks_table
from alite_jax.pages.table import FORMATS, markdown

STEM = Cost(100, 50, 90, 40, 9_000, 0, 4_000, 2_000, 400, 212)
CORE = Cost(10, 10, 0, 0, 0, 1_000, 1_000, 0, 40, 40)
HEAD = Cost(90, 40, 80, 30, 1_000, 0, 500, 10, 360, 170)
STUDENT = NetworkCosts(
    "small", 0.5, {"stem": STEM, "spatial": CORE, "classifier": HEAD}
)
TEACHER = NetworkCosts(
    "large",
    1.0,
    {
        "classifier": Cost(
            1_000, 1_000, 900, 900, 33_000, 0, 33_000, 4_020, 4_000, 4_000
        )
    },
)

TABLE = """\
teacher: large at density 100 %, one image

layer       parameters  non-zero  weight MACs  core MACs  non-zero MACs  activations  bytes  packed
classifier       1,000     1,000       33,000          0         33,000        4,020  4,000   4,000
total            1,000     1,000       33,000          0         33,000        4,020  4,000   4,000

student: small at density 50 %, one image

layer       parameters  non-zero  weight MACs  core MACs  non-zero MACs  activations  bytes  packed
stem               100        50        9,000          0          4,000        2,000    400     212
spatial             10        10            0      1,000          1,000            0     40      40
classifier          90        40        1,000          0            500           10    360     170
total              200       100       10,000      1,000          5,500        2,010    800     422

                                 teacher  student  teacher / student
parameters                         1,000      200              5.00x
non-zero parameters                1,000      100              10.0x
  if the classifier stays dense    1,000      150              6.67x
  weights only                       900       70              12.9x
MACs                              33,000   11,000              3.00x
non-zero MACs                     33,000    5,500              6.00x
activations                        4,020    2,010              2.00x
bytes                              4,000      800              5.00x
packed bytes                       4,000      422              9.48x"""  # noqa: E501


def test_networks_letter_by_letter() -> None:
    assert networks_table(TEACHER, STUDENT, "table") == TABLE


def test_networks_as_markdown_have_the_same_cells() -> None:
    text = networks_table(TEACHER, STUDENT, "markdown")
    cells = [
        cell.strip()
        for line in text.splitlines()
        if line.startswith("|") and "---" not in line
        for cell in line.strip("|").split("|")
    ]
    plain = " ".join(line for line in TABLE.splitlines() if "image" not in line)
    assert Counter(" ".join(cells).split()) == Counter(plain.split())


def test_networks_as_json() -> None:
    found = json.loads(networks_table(TEACHER, STUDENT, "json"))
    assert list(found) == ["teacher", "student", "ratios"]
    student = found["student"]
    assert (student["name"], student["density"]) == ("small", 0.5)
    assert list(student["layers"]) == ["stem", "spatial", "classifier"]
    assert set(student["total"]) == set(asdict(STEM))
    assert student["total"]["packed_bytes"] == 422
    assert found["ratios"] == ratios(TEACHER, STUDENT)


def rows() -> Iterator[MatrixRow]:
    for kernel_size, network in ((None, TEACHER), (3, STUDENT)):
        yield MatrixRow("set", kernel_size, network, ratios(TEACHER, network))


def test_matrix_in_every_format() -> None:
    head, teacher, student = matrix_table(rows(), "table").splitlines()
    assert head.split()[:6] == ["data", "set", "network", "kernel", "density", "params"]
    assert teacher.split()[:4] == ["set", "large", "100", "%"]
    student_cells = "set small 3 50 % 0.000 0.000 10.0 6.67 12.9 0.000 9 % 3.00 0.000"
    assert student.split() == [*student_cells.split(), "6.00"]
    lines = matrix_table(rows(), "markdown").splitlines()
    assert lines[1].startswith("| --- | --- | ---: |") and len(lines) == 4
    assert lines[2].startswith("| set | large | | 100 % | 0.001 |")
    found = json.loads(matrix_table(rows(), "json"))
    assert [row["kernel_size"] for row in found] == [None, 3]
    assert found[1]["total"]["core_macs"] == 1_000
    assert found[1]["ratios"]["macs"] == 3.0


def test_markdown_of_two_columns() -> None:
    assert markdown([["a", "b"], ["c", "1"]]) == [
        "| a | b |",
        "| --- | ---: |",
        "| c | 1 |",
    ]


@pytest.mark.parametrize("format", FORMATS)
def test_a_configuration_is_counted_as_it_is(format: str) -> None:
    config = alite_jax.get_config(
        "cifar10:student=resnet26_attention_conv12,width=16,teacher_width=32,stem="
        "attention,kernel_size=5,density=0.05,image_size=16",
        {"pruning.distribution": "erk"},
    )
    teacher, student = configured_costs(config)
    assert (teacher.name, teacher.density) == ("resnet50", 1.0)
    assert (student.name, student.density) == ("resnet26_attention_conv12", 0.05)
    assert teacher.layers["stem"].weights == 27 * 32
    assert student.layers["stem"].activations == 16 * 16 * 16
    # 5x5 windows on 16 x 16 / 4 pixels of 64 channels.
    assert student.layers["stage3_block2/spatial"].core_macs == 16 * 64 * 55
    total = student.total
    assert round(0.05 * total.weights) == total.nonzero_weights
    assert student.layers["stem/query"].nonzero_weights > round(0.05 * 48)  # ERK
    assert networks_table(teacher, student, format)


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs follow from shapes, and attention returns that of the values."""
    monkeypatch.setattr(layers, "local_attention", lambda q, k, v, *_, **how: v)


def matrix(**constants: Any) -> list[MatrixRow]:
    with pytest.MonkeyPatch.context() as patch:
        for name, values in constants.items():
            patch.setattr(comparison, f"PAPER_{name}", values)
        return list(paper_matrix())


@pytest.mark.usefixtures("untraced")
def test_the_matrix_has_each_combination_once_after_its_teacher() -> None:
    sizes, densities = (3, 7), (1.0, 0.1)
    found = matrix(
        DATASETS=("cifar100",),
        FAMILIES=("attention",),
        KERNEL_SIZES=sizes,
        DENSITIES=densities,
    )
    assert found[0].kernel_size is None and found[0].network.name == "resnet50"
    assert set(found[0].ratios.values()) == {1.0}
    names = [f"resnet{depth}_attention" for depth in PAPER_DEPTHS]
    assert [(r.network.name, r.kernel_size, r.network.density) for r in found[1:]] == [
        *itertools.product(names, sizes, densities)
    ]


@pytest.mark.slow
def test_the_whole_matrix() -> None:
    found = matrix()
    assert len(found) == 3 * (1 + 3 * 3 * 3 * 4)
    for row in found:
        assert row.network.total.nonzero_macs <= row.network.total.macs


STUDENTS = [f"resnet{d}_{f}" for d in PAPER_DEPTHS for f in comparison.PAPER_FAMILIES]


def test_the_matrix_names_every_student() -> None:
    assert set(STUDENTS) == {name for name in MODELS if "attention" in name}


@pytest.mark.processes
@pytest.mark.usefixtures("untraced")
def test_the_matrix_is_a_matter_of_arguments() -> None:
    """Each network, and each window, with each data set; all else takes its turn."""
    turns = itertools.product(
        *(("conv", "attention"), comparison.PAPER_DENSITIES, ("zero", "mask"))
    )
    pairs = itertools.product(range(9), range(3))
    for (i, j), (stem, density, border) in zip(
        pairs, itertools.cycle(turns), strict=False
    ):
        name, size = STUDENTS[i], comparison.PAPER_KERNEL_SIZES[j]
        dataset = comparison.PAPER_DATASETS[(i + j) % 3]
        classes = DATASETS[dataset].num_classes
        config = alite_jax.get_config(
            f"{dataset}:student={name},kernel_size={size},stem={stem},"
            f"density={density},border={border},width=16,teacher_width=32"
        )
        assert config.student.border == border
        teacher, student = configured_costs(config)
        assert teacher.layers["classifier"].parameters == classes * (32 * 32 + 1)
        assert student.name == name and student.density == density
        assert ("stem/value" in student.layers) == (stem == "attention")
        assert student.total.macs < teacher.total.macs
