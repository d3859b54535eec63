"""Training one network, teacher or student, from its start or its checkpoint."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import chex
import jax
import optax
from ml_collections import ConfigDict

from alite_jax.data.augment import create_augmentation, unchanged
from alite_jax.data.logits import LogitsTable
from alite_jax.data.pipeline import TrainBatches, prefetch
from alite_jax.data.sources import Data
from alite_jax.data.views import make_view_step
from alite_jax.jax_settings import seed_key
from alite_jax.models.model import Model
from alite_jax.runs import parallel
from alite_jax.runs.background import BackgroundSaves
from alite_jax.runs.checkpoints import Checkpoints
from alite_jax.runs.evaluation import Evaluator
from alite_jax.runs.interruption import Interruption
from alite_jax.runs.line_values import LineValues
from alite_jax.runs.metrics import MetricWriter, NoWriter
from alite_jax.runs.processes import is_first
from alite_jax.runs.progress import Progress
from alite_jax.runs.step_metrics import StepMetrics
from alite_jax.runs.timings import Timings
from alite_jax.runs.trace import Trace
from alite_jax.sparsity.mask_matrices import mask_matrices
from alite_jax.sparsity.masks import density as density_of
from alite_jax.sparsity.masks import layer_densities, prunes
from alite_jax.sparsity.methods import find_method
from alite_jax.sparsity.moments import with_first_moment
from alite_jax.structure.configured import Structure
from alite_jax.training.microbatches import check_microbatches
from alite_jax.training.objective import Objective
from alite_jax.training.optimizer import create_optimizer, learning_rate_schedule
from alite_jax.training.rewire import (
    check_rewiring_steps,
    create_pruner,
    make_rewire_step,
    rewiring_steps,
)
from alite_jax.training.state import Variables, create_state
from alite_jax.training.step import JointStep

Start = Callable[[], Variables]


@dataclass(frozen=True)
class Network:
    """A network and how it is trained.

    Attributes:
        phase: `"teacher"` or `"student"`; also tells their random keys apart.
        model: the module; its BatchNorm may reduce over `step.AXIS`.
        recipe: the fields `epochs` and `optimizer` of this network's config.
        objective: the loss.
        make_masks: `make_masks(key, params) -> masks`, those to start with.
        identity: JSON values that a checkpoint must have been made with.
        folder: where its checkpoints are.
        structure: of its masks, if they have one.
        start: gives the weights and BatchNorm statistics to start with; None draws
            them.
        variables: its numbers, where it is not trained in a run.
        optimizer: makes its optimizer from the number of steps, or None, which leaves
            it to the recipe.
    """

    phase: str
    model: Model
    recipe: ConfigDict
    objective: Objective
    make_masks: Callable[[chex.PRNGKey, chex.ArrayTree], chex.ArrayTree]
    identity: dict[str, Any]
    folder: Path
    structure: Structure | None = None
    start: Start | None = None
    variables: Variables | None = None
    optimizer: Callable[[int], optax.GradientTransformation | None] | None = None

    def keys(self, seed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """PRNG keys for the start, the steps and the rewirings."""
        key = jax.random.fold_in(seed_key(seed), self.phase == "student")
        init, steps, rewirings = jax.random.split(key, 3)
        return init, steps, rewirings

    def checkpoints(self, keep: int) -> Checkpoints:
        """The checkpoints of this network."""
        return Checkpoints(self.folder, keep=keep, identity=self.identity)

    def restore(self, image_shape: tuple[int, int, int]) -> Variables:
        """Its `params`, `batch_stats` and `masks`, of the newest checkpoint if any.

        Raises:
            CheckpointError: there should be one, and is none of this model.
        """
        if self.variables is not None:
            return self.variables
        template = self.template(image_shape)
        return self.checkpoints(keep=1).restore_model(template)

    def template(self, image_shape: tuple[int, int, int]) -> Variables:
        """The shapes and dtypes of `params`, `batch_stats` and `masks`."""
        if self.variables is not None:
            return jax.eval_shape(lambda: self.variables)
        create = partial(
            create_state,
            jax.random.key(0),
            self.model,
            optax.identity(),
            image_shape,
            self.make_masks,
        )
        variables: Variables = jax.eval_shape(create).variables
        return variables


def fit(
    network: Network,
    teacher: tuple[Model, Variables] | LogitsTable | None,
    config: ConfigDict,
    data: Data,
    evaluator: Evaluator,
    writer: MetricWriter | NoWriter,
    timings: Timings,
) -> tuple[Variables, float]:
    """Trains to the end, resuming from the newest whole checkpoint.

    Checkpoints are written after each epoch, every `config.checkpoint.every_steps` and
    when a signal stops the run, never after a loss or a gradient that is not finite;
    the training goes on meanwhile. Wherever it was interrupted, it ends as if it had
    not been.

    Args:
        network: what to train.
        teacher: module and variables of a frozen network to learn from, or its logits
            for fixed views of the images, which are then what is trained on, or None.
        config: the whole configuration.
        data: what to train on.
        evaluator: of this network's model, called after each epoch.
        writer: takes the metrics.
        timings: takes what the time goes into.

    Returns:
        The trained network on the host, and the seconds that its training took, over
        all the processes that worked on it, without evaluations.

    Raises:
        ConfigError: the devices cannot share a batch as configured, or the masks of
            the student would never change.
        TrainingError: the loss or the gradient is not finite; names the step and the
            last checkpoint.
        CheckpointError: a checkpoint cannot be read or written.
        StoppedError: a signal stopped the run, after a checkpoint.
    """
    # What the configuration asks for is checked before anything is computed.
    table = teacher if isinstance(teacher, LogitsTable) else None
    shards = parallel.device_count()
    batches = TrainBatches(
        data.train,
        config.data.batch_size,
        config.seed,
        shards,
        parallel.own_devices(),
        views=len(table.logits) if table else 0,
    )
    check_microbatches(config.compute.accumulation, config.data.batch_size, shards)
    steps_per_epoch, epochs = batches.steps_per_epoch, network.recipe.epochs
    total_steps = epochs * steps_per_epoch
    rewirings = rewiring_steps(config, steps_per_epoch)
    if network.phase == "student":
        check_rewiring_steps(config, rewirings)
    optimizer = network.optimizer(total_steps) if network.optimizer else None
    schedule = None
    if optimizer is None:
        recipe = network.recipe.optimizer, steps_per_epoch, epochs
        optimizer, schedule = create_optimizer(*recipe), learning_rate_schedule(*recipe)
    optimizer = with_first_moment(optimizer)
    init_key, step_key, rewire_key = network.keys(config.seed)

    create = partial(
        create_state,
        init_key,
        network.model,
        optimizer,
        data.image_shape,
        network.make_masks,
    )

    # From the newest whole checkpoint, else from another run's network, else drawn.
    checkpoints = network.checkpoints(config.checkpoint.keep)
    if checkpoints.latest_step() is None:
        start = [network.start()] if network.start else []
        state = parallel.run_once(create, *start)
        extra: dict[str, Any] = {"seconds": 0.0}
    else:
        state, extra = checkpoints.restore(jax.eval_shape(create))
    seconds = extra["seconds"]
    first_step = int(state.step)
    if first_step >= total_steps:
        checkpoints.close()
        return state.variables, seconds
    writer.rewind(network.phase, first_step)

    teacher_model, teacher_variables = (
        teacher
        if isinstance(teacher, tuple) and network.objective.needs_teacher
        else (None, {})
    )
    # The programs: compiled at their first call, each once in a run.
    method = find_method(config.pruning.method)
    pruner = create_pruner(config, rewirings)
    augment = create_augmentation(config.data)
    view_step = parallel.spread(make_view_step(augment)) if table else None
    joint = JointStep(
        network.model,
        teacher_model,
        optimizer,
        network.objective,
        data.spec,
        augment=unchanged if table else augment,
        key=step_key,
        microbatches=config.compute.accumulation,
        total_steps=total_steps,
    )
    train_step = parallel.spread(joint.train_step, donate_state=True)
    gradients = joint.gradients if method.by_gradient else None
    rewire_step = parallel.spread(
        make_rewire_step(pruner, rewire_key, gradients, network.structure),
        donate_state=True,
    )
    # From here on the host only hands batches over, and looks after the record.
    density = density_of(state.masks)
    rewires = prunes(state.masks) and method.changes
    state = parallel.replicate(state)
    teacher_variables = parallel.replicate(teacher_variables)
    open_steps = extra.get("open_steps", ())
    background = BackgroundSaves(checkpoints)
    step_metrics = StepMetrics(network.phase, background, open_steps)
    batch_size = config.data.batch_size
    line_values = LineValues(schedule, network.objective, total_steps, batch_size)
    visible = config.logging.progress and is_first()
    progress = Progress(network.phase, total_steps, first_step, batch_size, visible)
    folder = network.folder.parent / "profile" / network.phase
    trace = Trace(folder, first_step, config.logging.profile_steps)
    log_every, save_every = config.logging.every_steps, config.checkpoint.every_steps
    steps = range(first_step, total_steps)
    made = batches.batches(steps)
    answered = table.answered if table else lambda batch: batch
    on_devices = prefetch(lambda step: parallel.shard(answered(next(made))), steps)
    with (
        Interruption() as interruption,
        closing(progress),
        closing(checkpoints),
        background,
        closing(made),
        closing(on_devices),
        closing(trace),
    ):
        started = time.monotonic() - seconds
        for done, batch in timings.each("reading", on_devices):
            if view_step:
                batch = view_step(batch)
            run = trace.annotate(done, train_step)
            state, metrics = run(state, teacher_variables, batch)
            step = done + 1
            step_metrics.add(step, metrics)
            trace.update(step, metrics)
            stops = interruption.requested(step)
            ends_epoch = step % steps_per_epoch == 0
            saves = ends_epoch or (save_every and step % save_every == 0)
            # A checkpoint ends a line, too: no loss goes into it unchecked.
            if step % log_every == 0 or saves:
                means = step_metrics.means() | {"density": density}
                means |= line_values.at(step, time.monotonic() - started)
                writer.write(step, means, prefix=network.phase)
                progress.update(step, means)
            if ends_epoch:
                paused = time.monotonic()
                with timings.spent("evaluating"):
                    evaluation = evaluator(state.variables)
                writer.write(step, evaluation, prefix=network.phase)
                shown = {name: means[name] for name in ("loss", "accuracy", "density")}
                progress.epoch(step // steps_per_epoch, epochs, shown | evaluation)
                started += time.monotonic() - paused
            if rewires and step in rewirings:
                inputs = (teacher_variables, batch) if gradients else ()
                state = rewire_step(state, *inputs)
                if method.starts_dense or network.structure:
                    density = density_of(parallel.to_host(state.masks))
            if saves or stops:
                host_state = parallel.to_host(state)
                seconds = time.monotonic() - started
                if ends_epoch and prunes(host_state.masks):
                    kept = layer_densities(host_state.masks)
                    kept = {f"density/{layer}": kept[layer] for layer in kept}
                    writer.write(step, kept, prefix=network.phase)
                    # TensorBoard shows ten of them.
                    if step // steps_per_epoch % max(1, epochs // 10) == 0:
                        matrices = mask_matrices(host_state.masks, 4)
                        writer.show_masks(step, matrices, prefix=network.phase)
                extra = {"seconds": seconds, "open_steps": step_metrics.open_steps()}
                with timings.spent("writing"):
                    background.save(step, host_state, extra=extra)
                    if stops or step == total_steps:
                        background.wait()
            if stops:
                raise interruption.error(network.phase, step, checkpoints.directory)
    return host_state.variables, seconds
