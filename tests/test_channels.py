"""Structured masks: units, their scores by hand, and what changes must keep."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from tiny import tiny_config, tiny_models

import alite_jax
from alite_jax.analysis.layers import total_macs
from alite_jax.analysis.widths import plan_widths, units_of
from alite_jax.config import get_config
from alite_jax.deploy.compact import check_compaction, compact
from alite_jax.errors import ConfigError
from alite_jax.models import resnet
from alite_jax.models.resnet import ResNet, create_model
from alite_jax.sparsity import channels
from alite_jax.sparsity.masks import apply_masks, count_nonzero, density, init_masks
from alite_jax.sparsity.rewiring import rewire
from alite_jax.training.structure import create_structure
from alite_jax.trees import named_leaves

SHAPE = (8, 8, 3)
KINDS = [
    (name, structure)
    for name in ("resnet26_attention_conv1", "resnet26")
    for structure in ("channels", "heads")
][:3]


def built(name: str = "resnet26_attention_conv1") -> tuple[ResNet, Any]:
    model, variables = _built(name)
    return model, jax.tree.map(jnp.asarray, variables)  # In dicts of its own.


@functools.cache
def _built(name: str) -> tuple[ResNet, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.BLOCKS, 26, (1, 1, 2, 1))
        model = create_model(name, num_classes=10, width=16, kernel_size=3)
    variables = quick_jit(model.init, static_argnames="train")(
        jax.random.key(0), jnp.zeros((1, *SHAPE)), train=False
    )
    return model, variables


def at_end(groups: Any, plan: Any, model: ResNet, structure: str) -> jax.Array:
    units = units_of(plan.widths, model.block_names, structure)
    return jnp.array(channels.unit_counts(groups, units, np.zeros(1))[0])


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
    inside["reduce"]["kernel"][:, 0] = 9  # a maker: says nothing
    norms = {
        kind: np.asarray(channels._norms([channels._group(*named, kind)], params)[0])
        for named in params.items()
        for kind in ("reduce", "value", "qk", "head")
    }
    np.testing.assert_array_equal(norms["reduce"], [[0, 5, 0]])
    np.testing.assert_array_equal(norms["value"], [[0, 0, 0, 0], [0, 0, 2, 0]])
    np.testing.assert_array_equal(norms["qk"], [[0, 3], [0, 0]])
    np.testing.assert_array_equal(norms["head"], [[0, 2]])


def test_masks_of_a_block_by_hand() -> None:
    params = {"stage1_block1": block(heads=2, dim=4, features=3)}
    groups = channels.unit_groups(params, "channels")
    assert [g.name.rpartition("/")[2] for g in groups] == ["reduce", "value", "qk"]
    units = [
        jnp.array([[1, 0, 1]], bool),
        jnp.array([[1, 1, 0, 1], [0, 1, 1, 1]], bool),
        jnp.array([[1, 0], [0, 1]], bool),
    ]
    cut = channels.allowed_masks(groups, units, params, True)["stage1_block1"]
    stays = np.array([1, 0, 1], bool)
    qk = np.array([1, 0, 0, 1, 1, 0, 0, 1], bool)
    value = np.array([1, 1, 0, 1, 0, 1, 1, 1], bool)
    np.testing.assert_array_equal(cut["reduce"]["kernel"], np.tile(stays, (5, 1)))
    for name, columns in (("query", qk), ("key", qk), ("value", value)):
        found = cut["spatial"][name]["kernel"]
        np.testing.assert_array_equal(found, np.outer(stays, columns))
    np.testing.assert_array_equal(cut["expand"]["kernel"], np.tile(value, (7, 1)).T)
    assert cut["spatial"]["row_embeddings"].shape == ()
    # Before the last change makers stay: of these, rows go and columns do not.
    kept = channels.allowed_masks(groups, units, params, False)["stage1_block1"]
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
    groups = [channels._group("stage1_block1", params["stage1_block1"], "reduce")]
    start = [jnp.array([[1, 1, 1, 0, 0, 0]], bool)]
    masks = channels.allowed_masks(groups, start, params, False)

    def changed(count: int, rate: float, method: str) -> list[int]:
        counts, key = jnp.array([count]), jax.random.key(0)
        found = channels.rewire_units(
            groups, params, scores, masks, counts, rate, key, method
        )
        return [int(unit) for unit in found[0][0]]

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
def test_units_leave_the_planned_widths_and_never_come_apart(
    name: str, structure: str
) -> None:
    model, variables = built(name)
    plan = plan_widths(model, SHAPE, structure, 0.5)
    assert abs(plan.macs / plan.dense_macs - 0.5) <= 0.01
    params = variables["params"]
    groups = channels.unit_groups(params, structure)
    counts = at_end(groups, plan, model, structure)

    @jax.jit
    def change(units: Any, key: jax.Array) -> tuple[Any, Any]:
        masks = channels.allowed_masks(groups, units, params, False)
        masked = apply_masks(masks, params)
        momentum = jax.tree.map(lambda a: jax.random.normal(key, a.shape), params)
        units = channels.rewire_units(
            groups, masked, momentum, masks, counts, 0.4, key, "sparse_momentum"
        )
        return units, channels.allowed_masks(groups, units, params, True)

    units = channels.draw_units(jax.random.key(1), groups, counts, None)
    for step in range(3):
        before = units
        units, masks = change(units, jax.random.key(step))
        numbers = np.concatenate([np.asarray(u).sum(axis=1) for u in units])
        np.testing.assert_array_equal(numbers, counts)
    assert any(
        (np.asarray(a) != np.asarray(b)).any()
        for a, b in zip(units, before, strict=True)
    )
    whole = jax.tree.map(
        np.array,
        {**variables, "params": apply_masks(masks, params), "masks": masks},
    )
    images = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    compacted = compact(model, whole)
    assert compacted.model.widths == plan.widths
    check_compaction(model, whole, compacted, images)
    # Nothing that is left within the units is absent.
    assert density(compacted.variables["masks"]) == 1.0


@pytest.mark.slow
def test_weights_within_units_keep_their_number() -> None:
    model, variables = built()
    params = variables["params"]
    plan = plan_widths(model, SHAPE, "heads", 0.4)
    groups = channels.unit_groups(params, "heads")
    counts = at_end(groups, plan, model, "heads")
    masks = init_masks(jax.random.key(0), params, 0.2, "erk")
    total = count_nonzero(masks, params)

    @jax.jit
    def change(masks: Any, key: jax.Array) -> tuple[Any, Any]:
        units = channels.draw_units(key, groups, counts, None)
        allowed = channels.allowed_masks(groups, units, params, True)
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
    model, variables = built()
    params = variables["params"]
    config = get_config(
        "digits", {"pruning.structure": "channels", "student.density": given}
    )
    structure = create_structure(config, model, SHAPE)
    assert structure is not None
    masks = init_masks(jax.random.key(0), params, given)
    found = structure.start(
        jax.random.key(1), params, masks, "sparse_momentum", trained
    )
    if given < 1:
        assert count_nonzero(found, params) == count_nonzero(masks, params)
    groups = channels.unit_groups(params, "channels")
    for group, kept, norms in zip(
        groups,
        channels._taken(groups, found),
        channels._norms(groups, params),
        strict=True,
    ):
        for on, norm in zip(np.asarray(kept) > 0, np.asarray(norms), strict=True):
            # Where weights are pruned, too, none may be left to take a unit.
            assert on.sum() <= structure.counts[group.name]
            if given == 1:
                assert on.sum() == structure.counts[group.name]
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
    model, _ = built()
    base = {"pruning.structure": "heads", "student.density": 0.1}
    config = get_config("digits", [base, changes])
    with pytest.raises(ConfigError, match=message):
        create_structure(config, model, SHAPE)


def test_no_structure_is_none() -> None:
    model, _ = built()
    assert create_structure(get_config("digits"), model, SHAPE) is None


def test_multiples() -> None:
    model = create_model("resnet26_attention", num_classes=10, width=64)
    plan = plan_widths(model, (32, 32, 3), "channels", 0.5, multiple=8)
    for width in plan.widths:
        assert width.dims is not None
        assert width.reduce % 8 == width.dims.value % 8 == width.dims.qk % 8 == 0
    assert abs(plan.macs / plan.dense_macs - 0.5) <= 0.02


def test_counts_fall_from_all_to_the_target() -> None:
    params = {"stage1_block1": block(heads=2, dim=4, features=6)}
    groups = channels.unit_groups(params, "channels")
    units = {
        f"stage1_block1/{k}": n for k, n in (("reduce", 2), ("value", 1), ("qk", 1))
    }
    counts = channels.unit_counts(groups, units, np.array([0.5, 0.0]))
    np.testing.assert_array_equal(counts, [[4, 3, 3, 1, 1], [2, 1, 1, 1, 1]])


def test_groups_name_parameters_that_exist() -> None:
    for name, structure in KINDS:
        _, variables = built(name)
        leaves = dict(named_leaves(variables["params"]))
        for group in channels.unit_groups(variables["params"], structure):
            for part in group.slices:
                axis = leaves[part.path].shape[part.axis]
                assert axis == np.prod(part.view), (name, part)


@pytest.mark.parametrize(
    ("method", "given"),
    [
        pytest.param("sparse_momentum", 1.0, marks=pytest.mark.slow),
        pytest.param("gradual_global", 1.0, marks=pytest.mark.slow),
        ("gradual_global", 0.1),
    ],
)
def test_a_trained_student_has_the_macs_that_were_asked_for(
    method: str, given: float, tmp_path: Path
) -> None:
    with tiny_models():
        config = tiny_config(
            {
                "pruning.structure": "channels",
                "pruning.macs": 0.7,
                "pruning.method": method,
                "pruning.every_steps": 2,
                "pruning.stop_fraction": 0.7,
                "student.density": given,
            }
        )
        summary = alite_jax.train(config, tmp_path)
        model, variables = alite_jax.restore(config, tmp_path)["student"]
        shape = (8, 8, 1)
        structure = create_structure(config, model, shape)
        assert structure is not None
        compacted = compact(model, variables)
    if given == 1:
        assert compacted.model.widths == structure.plan.widths
        assert density(compacted.variables["masks"]) == 1.0
    else:
        assert density(variables["masks"]) == pytest.approx(given, abs=1e-3)
    macs = total_macs(compacted.model, shape)
    assert macs <= 0.72 * summary["student"]["macs"]
