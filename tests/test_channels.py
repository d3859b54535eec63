"""Structured masks: units, their scores by hand, and what changes must keep."""

import functools
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_compact import drawn
from tiny import assert_same, random_data, tiny_config, tiny_models

from alite_jax.config import get_config
from alite_jax.counting.layers import parameter_shapes, total_macs
from alite_jax.errors import ConfigError
from alite_jax.models.blocks import BlockWidths
from alite_jax.models.layers import Conv3x3, LocalSelfAttention
from alite_jax.models.resnet import ResNet
from alite_jax.runs.evaluation import Evaluator
from alite_jax.runs.fit import fit
from alite_jax.runs.metrics import MetricWriter
from alite_jax.runs.networks import create_networks
from alite_jax.runs.timings import Timings
from alite_jax.sparsity.masks import apply_masks, count_nonzero, density, init_masks
from alite_jax.sparsity.rewiring import rewire
from alite_jax.structure import channels, units
from alite_jax.structure import compact as compaction
from alite_jax.structure.compact import check_compaction, compact, cut_tree
from alite_jax.structure.configured import Structure, create_structure
from alite_jax.structure.units import (
    Axis,
    BlockKind,
    UnitKind,
    find_blocks,
    unit_groups,
)
from alite_jax.structure.widths import choose_widths
from alite_jax.trees import named_leaves

SHAPE = (8, 8, 3)
# Two blocks, one stage each: a convolution and attention, or two convolutions.
ATTENTION = partial(LocalSelfAttention, kernel_size=3)
OPERATORS = {"mixed": (Conv3x3, ATTENTION), "conv": (Conv3x3, Conv3x3)}
KINDS = [("mixed", "channels"), ("mixed", "heads"), ("conv", "channels")]
chosen = functools.cache(choose_widths)


@functools.cache
def built(name: str = "mixed") -> tuple[ResNet, Any]:
    model = ResNet((1, 1), OPERATORS[name], num_classes=10, width=16)
    return model, drawn(model, seed=0, image_shape=SHAPE)


def structure_of(changes: dict[str, Any]) -> Structure:
    base = {"pruning.structure": "heads", "student.density": 0.1}
    found = create_structure(get_config("digits", [base, changes]), built()[0], SHAPE)
    assert found is not None
    return found


def block(heads: int, dim: int, features: int) -> dict[str, Any]:
    """A block of zeros."""
    inner = heads * dim
    kernel = {name: (features, inner) for name in ("query", "key", "value")}
    return {
        "reduce": {"kernel": np.zeros((5, features), np.float32)},
        "spatial": {
            **{n: {"kernel": np.zeros(s, np.float32)} for n, s in kernel.items()},
            "row_embeddings": np.zeros((3, dim // 2), np.float32),
            "column_embeddings": np.zeros((3, dim // 2), np.float32),
        },
        "expand": {"kernel": np.zeros((inner, 7), np.float32)},
    }


def test_norms_of_a_block_by_hand() -> None:
    params = {"stage1_block1": block(heads=2, dim=4, features=3)}
    inside = params["stage1_block1"]
    inside["spatial"]["query"]["kernel"][1, 5] = 3  # head 1, row half, second channel
    inside["spatial"]["value"]["kernel"][1, 0] = 4
    inside["expand"]["kernel"][6, 2] = -2  # head 1, third value
    inside["reduce"]["kernel"][:, 0] = 9  # a producer: says nothing
    groups = find_blocks(params)["stage1_block1"].groups
    norms = channels.consumer_norms(groups, params)
    found = {g.kind.name: np.asarray(n) for g, n in zip(groups, norms, strict=True)}
    assert list(found) == ["reduce", "head", "value", "qk"]
    np.testing.assert_array_equal(found["reduce"], [[0, 5, 0]])
    np.testing.assert_array_equal(found["value"], [[0, 0, 0, 0], [0, 0, 2, 0]])
    np.testing.assert_array_equal(found["qk"], [[0, 3], [0, 0]])
    np.testing.assert_array_equal(found["head"], [[0, 2]])


def test_masks_of_a_block_by_hand() -> None:
    params = {"stage1_block1": block(heads=2, dim=4, features=3)}
    groups = unit_groups(params, "channels")
    assert [g.name.rpartition("/")[2] for g in groups] == ["reduce", "value", "qk"]
    active = [
        jnp.array([[1, 0, 1]], bool),
        jnp.array([[1, 1, 0, 1], [0, 1, 1, 1]], bool),
        jnp.array([[1, 0], [0, 1]], bool),
    ]
    cut = channels.allowed_masks(groups, active, params, True)["stage1_block1"]
    stays = np.array([1, 0, 1], bool)
    qk = np.array([1, 0, 0, 1, 1, 0, 0, 1], bool)
    value = np.array([1, 1, 0, 1, 0, 1, 1, 1], bool)
    np.testing.assert_array_equal(cut["reduce"]["kernel"], np.tile(stays, (5, 1)))
    for name, columns in (("query", qk), ("key", qk), ("value", value)):
        found = cut["spatial"][name]["kernel"]
        np.testing.assert_array_equal(found, np.outer(stays, columns))
    np.testing.assert_array_equal(cut["expand"]["kernel"], np.tile(value, (7, 1)).T)
    assert cut["spatial"]["row_embeddings"].shape == ()
    # Before the last change producers stay: of these, rows go and columns do not.
    kept = channels.allowed_masks(groups, active, params, False)["stage1_block1"]
    assert kept["reduce"]["kernel"].all()
    for name, columns in (("query", qk), ("key", qk | True), ("value", value | True)):
        found = kept["spatial"][name]["kernel"]
        np.testing.assert_array_equal(found, np.outer(stays, columns))


def test_units_change_as_by_hand() -> None:
    params = {"stage1_block1": block(heads=1, dim=2, features=6)}
    scores = {"stage1_block1": block(heads=1, dim=2, features=6)}
    query = params["stage1_block1"]["spatial"]["query"]["kernel"]
    query[:, 0] = [5, 4, 3, 0, 0, 0]
    momentum = scores["stage1_block1"]["spatial"]["query"]["kernel"]
    momentum[:, 0] = [0, 0, 9, 1, 3, 2]
    groups = find_blocks(params)["stage1_block1"].groups[:1]
    assert groups[0].name == "stage1_block1/reduce"
    start = [jnp.array([[1, 1, 1, 0, 0, 0]], bool)]
    masks = channels.allowed_masks(groups, start, params, False)

    @partial(jax.jit, static_argnums=2)
    def change(count: int, rate: float, method: str) -> Any:
        counts, key = jnp.array([count]), jax.random.key(0)
        return channels.rewire_units(
            groups, params, scores, masks, counts, rate, key, method
        )

    def changed(*arguments: Any) -> list[int]:
        return [int(unit) for unit in change(*arguments)[0][0]]

    # A third of three goes, the smallest; of what is absent the largest momentum is
    # that of what just went.
    assert changed(3, 0.3, "sparse_momentum") == [1, 1, 1, 0, 0, 0]
    assert changed(4, 0.3, "sparse_momentum") == [1, 1, 1, 0, 1, 0]
    assert changed(2, 0.6, "sparse_momentum") == [1, 0, 1, 0, 0, 0]
    assert changed(2, 0.6, "gradual_global") == [1, 1, 0, 0, 0, 0]
    assert changed(5, 0.6, "gradual_global") == [1, 1, 1, 0, 0, 0]  # None comes back.
    assert sum(changed(5, 0.5, "set")) == 5


@pytest.mark.parametrize(
    ("name", "structure"),
    [KINDS[0], *(pytest.param(*kind, marks=pytest.mark.slow) for kind in KINDS[1:])],
)
def test_units_leave_the_chosen_widths_and_never_come_apart(
    name: str, structure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, variables = built(name)
    goal = chosen(model, SHAPE, structure, 0.5)
    assert abs(goal.macs / goal.dense_macs - 0.5) <= 0.01
    params = variables["params"]
    groups = unit_groups(params, structure)
    counts = channels.unit_counts(groups, goal.counts, np.zeros(1))[0]

    @jax.jit
    def change(active: Any, key: jax.Array) -> tuple[Any, Any]:
        masks = channels.allowed_masks(groups, active, params, False)
        masked = apply_masks(masks, params)
        momentum = jax.tree.map(lambda a: jax.random.normal(key, a.shape), params)
        active = channels.rewire_units(
            groups, masked, momentum, masks, counts, 0.4, key, "sparse_momentum"
        )
        return active, channels.allowed_masks(groups, active, params, True)

    active = [
        np.arange(g.shape[1]) < np.full((g.shape[0], 1), goal.counts[g.name])
        for g in groups
    ]
    for step in range(3):
        before = active
        active, masks = change(active, jax.random.key(step))
        numbers = np.concatenate([np.asarray(of).sum(axis=1) for of in active])
        np.testing.assert_array_equal(numbers, counts)
    assert any(
        (np.asarray(a) != np.asarray(b)).any()
        for a, b in zip(active, before, strict=True)
    )
    whole = jax.tree.map(
        np.array,
        {**variables, "params": apply_masks(masks, params), "masks": masks},
    )
    images = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    compacted = compact(model, whole)
    assert compacted.model.widths == goal.widths
    check_compaction(model, whole, compacted, images)
    # Nothing that is left within the units is absent.
    assert density(compacted.variables["masks"]) == 1.0
    # An analysis of blocks finds no more here: what is consumed says it all.
    monkeypatch.setattr(compaction, "ANALYSES", {})
    assert_same(compact(model, whole).variables, compacted.variables)


@pytest.mark.slow
def test_weights_within_units_keep_their_number() -> None:
    model, variables = built()
    params = variables["params"]
    goal = chosen(model, SHAPE, "heads", 0.4)
    groups = unit_groups(params, "heads")
    counts = jnp.array(channels.unit_counts(groups, goal.counts, np.zeros(1))[0])
    masks = init_masks(jax.random.key(0), params, 0.2, "erk")
    total = count_nonzero(masks, params)

    @jax.jit
    def change(masks: Any, key: jax.Array) -> tuple[Any, Any]:
        active = channels.draw_units(key, groups, counts, None)
        allowed = channels.allowed_masks(groups, active, params, True)
        momentum = jax.tree.map(lambda a: jax.random.normal(key, a.shape), params)
        masked = apply_masks(masks, params)
        return rewire(masked, momentum, masks, 0.3, key, allowed=allowed), allowed

    for seed in range(3):
        # All units are drawn anew, much more than any change would move.
        masks, allowed = change(masks, jax.random.key(seed))
        assert count_nonzero(masks, params) == total
        outside = jax.tree.map(lambda m, a: bool((m & ~a).any()), masks, allowed)
        assert not any(jax.tree.leaves(outside))


@pytest.mark.parametrize(
    ("given", "trained"), [(1.0, False), (1.0, True), (0.1, False)]
)
def test_a_structure_starts_with_its_units(given: float, trained: bool) -> None:
    params = built()[1]["params"]
    structure = structure_of(
        {"pruning.structure": "channels", "student.density": given}
    )

    @jax.jit
    def start(key: jax.Array) -> tuple[Any, Any]:
        masks = init_masks(key, params, given)
        found = structure.start(key, params, masks, "sparse_momentum", trained)
        return masks, found

    masks, found = start(jax.random.key(1))
    if given < 1:
        assert count_nonzero(found, params) == count_nonzero(masks, params)
    groups = unit_groups(params, "channels")
    for group, active, norms in zip(
        groups,
        channels.active_units(groups, found),
        channels.consumer_norms(groups, params),
        strict=True,
    ):
        for on, norm in zip(np.asarray(active), np.asarray(norms), strict=True):
            # Where weights are pruned, too, none may be left to consume a unit.
            assert on.sum() <= structure.chosen.counts[group.name]
            if given == 1:
                assert on.sum() == structure.chosen.counts[group.name]
            if given == 1 and trained and not on.all():
                assert norm[on].min() > norm[~on].max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"student.density": 0.9},
            "student.density is 0.9, but pruning.structure leaves",
        ),
        ({"pruning.macs": 0.01}, "pruning.macs is 0.01, but widths that are multiples"),
        ({"pruning.method": "gradual"}, "use 'gradual_global'"),
    ],
)
def test_what_no_structure_can_do(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        structure_of(changes)


def test_no_structure_is_none() -> None:
    assert create_structure(get_config("digits"), built()[0], SHAPE) is None


def test_multiples() -> None:
    model = ResNet((1, 1), (ATTENTION, ATTENTION), num_classes=10, width=64)
    goal = choose_widths(model, SHAPE, "channels", 0.5, multiple=8)
    for width in goal.widths:
        assert width.dims is not None
        assert width.reduce % 8 == width.dims.value % 8 == width.dims.qk % 8 == 0
    assert abs(goal.macs / goal.dense_macs - 0.5) <= 0.02


def test_counts_fall_from_all_to_the_target() -> None:
    params = {"stage1_block1": block(heads=2, dim=4, features=6)}
    groups = unit_groups(params, "channels")
    goal = {
        f"stage1_block1/{k}": n for k, n in (("reduce", 2), ("value", 1), ("qk", 1))
    }
    counts = channels.unit_counts(groups, goal, np.array([0.5, 0.0]))
    np.testing.assert_array_equal(counts, [[4, 3, 3, 1, 1], [2, 1, 1, 1, 1]])


@pytest.mark.parametrize("name", OPERATORS)
def test_the_table_tells_the_shapes_of_all_arrays(name: str) -> None:
    model, variables = built(name)
    leaves = dict(named_leaves(variables["params"]))
    blocks = find_blocks(variables["params"])
    assert list(blocks) == model.block_names
    assert find_blocks(parameter_shapes(model, SHAPE)) == blocks
    placed = set()
    for found in blocks.values():
        for part in (part for group in found.groups for part in group.slices):
            paths = [p for p in leaves if f"{p}/".startswith(f"{part.path}/")]
            assert paths
            for path in paths:
                assert leaves[path].shape[part.axis] == np.prod(part.view), part
                placed.add((path, part.axis))
    # The rest is the outside of blocks, and axes of pixels.
    inside = {p for p in leaves if "reduce" in p or "spatial" in p or "expand/" in p}
    assert {path for path, _ in placed} == inside


def test_a_new_kind_of_block_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = BlockKind(
        "mlp",
        units=(UnitKind("hidden", "reduce", ("channels",)),),
        axes=(
            Axis("up/kernel", 1, "hidden", produces="hidden"),
            Axis("up/bias", 0, "hidden"),
            Axis("down/kernel", 0, "hidden", consumes="hidden"),
        ),
        widths=partial(BlockWidths, features=2),
    )
    monkeypatch.setattr(units, "BLOCKS", (*units.BLOCKS, kind))
    params = {
        "mlp": {
            "up": {"kernel": np.ones((2, 3)), "bias": np.arange(3.0)},
            "down": {"kernel": np.array([[3.0, 4], [0, 0], [0, 1]])},
        }
    }
    found = find_blocks(params)["mlp"]
    (group,) = unit_groups(params, "channels")
    assert group in found.groups and unit_groups(params, "heads") == ()
    np.testing.assert_array_equal(
        channels.consumer_norms([group], params)[0], [[5, 0, 1]]
    )
    active = np.array([[True, False, True]])
    masks = channels.allowed_masks([group], [active], params, True)["mlp"]
    np.testing.assert_array_equal(masks["up"]["kernel"], [[1, 0, 1]] * 2)
    np.testing.assert_array_equal(masks["down"]["kernel"], [[1, 1], [0, 0], [1, 1]])
    assert found.widths({"mlp/hidden": 2}) == BlockWidths(reduce=2, features=2)
    cut = cut_tree(compaction.kept_indices(found, {"mlp/hidden": active}), params)
    np.testing.assert_array_equal(cut["mlp"]["up"]["bias"], [0, 2])
    np.testing.assert_array_equal(cut["mlp"]["down"]["kernel"], [[3, 4], [0, 1]])


@pytest.mark.parametrize(
    ("method", "given"),
    [
        pytest.param("sparse_momentum", 1.0, marks=pytest.mark.slow),
        pytest.param("gradual_global", 1.0, marks=pytest.mark.slow),
        pytest.param("gradual_global", 0.1, marks=pytest.mark.processes),
    ],
)
def test_a_trained_student_has_the_macs_that_were_asked_for(
    method: str, given: float, tmp_path: Path
) -> None:
    data = random_data()
    with tiny_models():
        config = tiny_config(
            {
                "pruning.structure": "channels",
                "pruning.macs": 0.7,
                "pruning.method": method,
                "pruning.every_steps": 2,
                "pruning.stop_fraction": 0.7,
                "student.density": given,
                "distillation.alpha": 0.0,
            }
        )
        _, student = create_networks(config, data, tmp_path)
    evaluator = Evaluator(student.model, data, config.data.eval_batch_size)
    with MetricWriter(tmp_path) as writer:
        variables, _ = fit(student, None, config, data, evaluator, writer, Timings())
    compacted = compact(student.model, variables)
    if given == 1:
        assert compacted.model.widths == student.structure.chosen.widths
        assert density(compacted.variables["masks"]) == 1.0
    else:
        assert density(variables["masks"]) == pytest.approx(given, abs=1e-3)
    macs = total_macs(compacted.model, data.image_shape)
    assert macs <= 0.72 * total_macs(student.model, data.image_shape)
