"""The programs of the paper's networks, lowered for a GPU that need not be there.

They are the steps that a run of `configs/cifar10.py` compiles, for the GPU that
`h100_target.txtpb` describes: numbers that NVIDIA publishes about an H100.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import alite_jax
from alite_jax.data.augment import create_augmentation
from alite_jax.data.sources import Data, Split
from alite_jax.data.specs import DATASETS, DatasetSpec
from alite_jax.runs.fit import Network
from alite_jax.runs.networks import create_networks
from alite_jax.training.optimizer import create_optimizer
from alite_jax.training.state import TrainState, create_state
from alite_jax.training.step import AXIS, JointStep, make_eval_step

TARGET = Path(__file__).with_name("h100_target.txtpb")
STEPS_PER_EPOCH = 390

# Name: what is lowered, and what differs from the configuration. Without alpha the
# student has no teacher.
_ALONE = {"distillation.alpha": 0.0}
PROGRAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet50": ("teacher", {}),
    "resnet26": ("student", _ALONE | {"student.model": "resnet26"}),
    "resnet26_attention": ("student", _ALONE),
    "resnet26_attention_conv1": (
        "student",
        _ALONE | {"student.model": "resnet26_attention_conv1"},
    ),
    "resnet26_attention_stem": ("student", _ALONE | {"student.stem": "attention"}),
    "joint": ("student", {}),
    "evaluation_resnet50": ("evaluation of the teacher", {}),
    "evaluation_attention": (
        "evaluation of the student",
        {"student.stem": "attention"},
    ),
}


def described_gpu() -> Mesh:
    """A mesh of one GPU as `TARGET` describes it, good for compiling only."""
    jax.devices()  # Loads CUDA's plugin, though only a CPU is found.
    topology = topologies.get_topology_desc(
        "", "cuda", target_config=TARGET.read_text(), topology="1x1x1"
    )
    return Mesh(topology.devices, (AXIS,))


def lower(name: str, dtype: str, batch: int, mesh: Mesh) -> Any:
    """Lowers a program; nothing is allocated.

    Args:
        name: a key of `PROGRAMS`.
        dtype: of the computation.
        batch: images in a batch.
        mesh: of the devices.
    """
    what, changes = PROGRAMS[name]
    config = alite_jax.get_config("cifar10", changes | {"compute.dtype": dtype})
    spec = DATASETS[config.data.name]
    shapes = {
        "image": jax.ShapeDtypeStruct((batch, *spec.image_shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }
    split = Split(shapes["image"], shapes["label"])
    # The folder of a run is for one that has begun.
    networks = create_networks(config, Data(spec, split, split), Path())
    teacher, student = networks
    network = teacher if what.endswith("teacher") else student
    state = _state(network, spec)
    if what.startswith("evaluation"):
        shapes["weight"] = jax.ShapeDtypeStruct((batch,), jnp.float32)
        step = make_eval_step(network.model, spec)
        return _lower(step, mesh, (state.variables, shapes), donated=())
    taught = network.objective.needs_teacher
    joint = JointStep(
        network.model,
        teacher.model if taught else None,
        _optimizer(network),
        network.objective,
        spec,
        augment=create_augmentation(config.data),
        key=jax.random.key(0),
    )
    frozen = _state(teacher, spec).variables if taught else {}
    return _lower(joint.train_step, mesh, (state, frozen, shapes), donated=(0,))


def _optimizer(network: Network) -> optax.GradientTransformation:
    recipe = network.recipe
    return create_optimizer(recipe.optimizer, STEPS_PER_EPOCH, recipe.epochs)


def _state(network: Network, spec: DatasetSpec) -> TrainState:
    """The shapes of a network's state."""
    create = partial(
        create_state,
        jax.random.key(0),
        network.model,
        _optimizer(network),
        spec.image_shape,
        network.make_masks,
    )
    state: TrainState = jax.eval_shape(create)
    return state


def _lower(
    step: Callable[..., Any],
    mesh: Mesh,
    arguments: tuple[Any, ...],
    donated: tuple[int, ...],
) -> Any:
    """Lowers a step whose last argument, the batch, is shared by the devices."""
    whole, share = PartitionSpec(), PartitionSpec(AXIS)
    specs = (*(whole for _ in arguments[1:]), share)
    shared = jax.shard_map(
        step, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False
    )

    def placed(tree: Any, spec: PartitionSpec) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    placements = map(placed, arguments, specs)
    return jax.jit(shared, donate_argnums=donated).lower(*placements)
