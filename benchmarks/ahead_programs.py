"""The programs of the paper's networks, lowered for devices that need not be there.

They are the steps that a run of a configuration compiles, and what it exports. The GPU
is the one that `h100_target.txtpb` describes: numbers that NVIDIA publishes about an
H100. TPUs are described by libtpu itself.
"""

import os
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
from alite_jax.deploy.program import export_program, forward_of
from alite_jax.runs.fit import Network
from alite_jax.runs.networks import create_networks
from alite_jax.training.optimizer import create_optimizer
from alite_jax.training.rewire import (
    create_pruner,
    make_rewire_step,
    rewiring_steps,
)
from alite_jax.training.state import TrainState, create_state
from alite_jax.training.step import AXIS, JointStep, make_eval_step

H100 = Path(__file__).with_name("h100_target.txtpb")
# By platform, the devices that are compiled for; of TPUs these are 4 and 8 chips.
TARGETS = {"gpu": ("H100",), "tpu": ("v5e:2x2", "v5e:2x4")}
CONFIGS = ("cifar10", "cifar100", "tiny_imagenet", "digits")
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
    "rewiring": ("rewiring", {}),
    "exported": ("exported", {}),
    "evaluation_resnet50": ("evaluation of the teacher", {}),
    "evaluation_attention": (
        "evaluation of the student",
        {"student.stem": "attention"},
    ),
}


def described(target: str) -> Mesh:
    """A mesh of devices that are not there, good for compiling only.

    Args:
        target: one of `TARGETS`.
    """
    jax.devices()  # Loads the plugins, though only a CPU is found.
    if target == "H100":
        topology = topologies.get_topology_desc(
            "", "cuda", target_config=H100.read_text(), topology="1x1x1"
        )
    else:
        # Otherwise libtpu asks the network which TPU this machine has.
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
        topology = topologies.get_topology_desc(target, "tpu")
    return Mesh(topology.devices, (AXIS,))


def lower(config_name: str, name: str, dtype: str, batch: int, mesh: Mesh) -> Any:
    """Lowers a program; nothing is allocated.

    Args:
        config_name: one of `CONFIGS`, or any other.
        name: a key of `PROGRAMS`.
        dtype: of the computation.
        batch: images in a batch, of all devices.
        mesh: of the devices.
    """
    what, changes = PROGRAMS[name]
    config = alite_jax.get_config(config_name, changes | {"compute.dtype": dtype})
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
    if what == "rewiring":
        pruner = create_pruner(config, rewiring_steps(config, STEPS_PER_EPOCH))
        step = make_rewire_step(pruner, jax.random.key(0))
        return _lower(step, mesh, (state,), shared=False)
    if what == "exported":
        weights = {n: state.variables[n] for n in ("params", "batch_stats")}
        forward = forward_of(network.model, spec)
        program = jax.export.deserialize(
            bytearray(export_program(forward, weights, spec.image_shape))
        )
        # Whoever uses it does so on one device.
        one = Mesh(mesh.devices.ravel()[:1], (AXIS,))
        return _lower(program.call, one, (weights, shapes["image"]), donated=())
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
    return _lower(joint.train_step, mesh, (state, frozen, shapes))


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
    donated: tuple[int, ...] = (0,),
    *,
    shared: bool = True,
) -> Any:
    """Lowers a step; if `shared`, devices share its last argument, the batch."""
    whole, share = PartitionSpec(), PartitionSpec(AXIS)
    specs = (*(whole for _ in arguments[1:]), share if shared else whole)
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False
    )

    def placed(tree: Any, spec: PartitionSpec) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    placements = map(placed, arguments, specs)
    return jax.jit(mapped, donate_argnums=donated).lower(*placements)
