"""Pruning in the optimizer: against a loop written by hand, and jaxpruner's semantics.

A step is forward, backward and update, with AdamW, on random data. Three ways train a
network with a tenth of its weights by RigL:

- `wrapper`: `Pruner.wrap`; masks change within the update, where `lax.cond` says so;
  `wrapper_by_momentum` is the same with sparse momentum, which resets no momentum.
- `hand`: masks are applied after the update; the host knows when they change, and then
  runs another program.
- `peer`: what jaxpruner does (arXiv 2304.14082): the number of weights that a layer
  keeps is a rounded float, masks change within the update and before it, instead of a
  step; gradients are masked before the optimizer sees them, and parameters are
  multiplied by the masks afterwards.

`bare` is the optimizer alone.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from alite_jax.models.resnet import create_model
from alite_jax.sparsity.masked import PrunerState
from alite_jax.sparsity.masks import apply_masks, init_masks, is_pruned
from alite_jax.sparsity.pruner import Pruner
from alite_jax.sparsity.schedules import RewiringSteps
from benchmarks.timing import Row, Rows, Times, interleave, milliseconds

WAYS = ("bare", "wrapper", "wrapper_by_momentum", "hand", "peer")
DENSITY, RATE = 0.1, 0.3
OPTIMIZER = optax.adamw(1e-3)
CHANGES = 20  # after which the weights are counted
# In both, the program has the change; in one it never comes while it is timed.
BETWEEN = RewiringSteps(10**9, every=10**8)
DURING = RewiringSteps(10**9, every=1)

State = tuple[Any, ...]
Batch = Any  # Images and labels; gradients for the update alone.
Gradients = Callable[[Any, Batch], Any]
Step = Callable[[State, Batch], State]


class Mlp(nn.Module):
    """784-300-100-10, as in the papers on pruning."""

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits `[batch, 10]`."""
        x = images.reshape(len(images), -1)
        for features in (300, 100):
            x = nn.relu(nn.Dense(features)(x))
        return nn.Dense(10)(x)


# Network, shape of an image, images in a batch.
NETWORKS: dict[str, tuple[Any, tuple[int, int, int], int]] = {
    "resnet26": (
        create_model("resnet26_attention", num_classes=10, width=16),
        (32, 32, 3),
        64,
    ),
    "mlp": (Mlp(), (28, 28, 1), 128),
}


def compare(rounds: int) -> Rows:
    """Rows of steps, of updates alone, of changes, and of counts after them.

    What a way costs is told by its update alone, since steps vary by more from one to
    the next; it is given as a share of the step with the bare optimizer.
    """
    rows: Rows = {}
    for name, (model, shape, size) in NETWORKS.items():
        what = f"{name}, batch {size}, AdamW"
        images = jax.random.normal(jax.random.key(1), (size, *shape))
        batch = images, jnp.arange(size) % 10
        gradients, params = _task(model, images[:1])
        masks = init_masks(jax.random.key(0), params, DENSITY)
        start = apply_masks(masks, params), OPTIMIZER.init(params), masks
        # The peer's masks are numbers.
        numbers = jax.tree.map(lambda mask: mask.astype(jnp.uint8), masks)
        starts = dict.fromkeys(WAYS, start) | {"peer": (*start[:2], numbers)}

        whole = _timed(
            {"bare": bare(gradients), "wrapper": wrapper(gradients, BETWEEN)},
            *(starts, batch, rounds),
        )
        for way, times in whole.items():
            detail = f"a step between changes of the masks, {what}"
            rows[f"pruner_{name}_{way}"] = milliseconds(times, detail)
        alone = _timed(
            {
                "bare": bare(passed_on),
                "wrapper": wrapper(passed_on, BETWEEN),
                "wrapper_by_momentum": wrapper(passed_on, BETWEEN, "sparse_momentum"),
                "hand": hand(passed_on, changes=False),
                "peer": peer(passed_on, BETWEEN),
            },
            *(starts, waves(params, batch), 61),
        )
        for way, times in alone.items():
            detail = f"the update alone, between changes of the masks, {what}"
            rows[f"pruner_{name}_{way}_update"] = milliseconds(times, detail)
            if way == "bare":
                continue
            # The fastest rounds are those in which nothing else ran.
            over = (min(times) - min(alone["bare"])) / min(whole["bare"])
            detail = f"what its update takes beyond the bare one's, of a step of {what}"
            rows[f"pruner_{name}_{way}_overhead"] = Row.one(100 * over, "%", detail)
        during = {
            "wrapper": wrapper(waves, DURING),
            "hand": hand(waves, changes=True),
            "peer": peer(waves, DURING),
        }
        changes = _timed(during, starts, batch, CHANGES // 4)
        for way, times in changes.items():
            rows[f"pruner_{name}_{way}_change"] = milliseconds(
                times, f"an update with a change of the masks, {name}"
            )
        for way, step in during.items():
            wrong, alive = _exactness(_program(step), starts[way], batch, masks)
            rows[f"pruner_{name}_{way}_off"] = Row.one(
                wrong, "weights", f"largest |found - asked for| of {CHANGES} changes"
            )
            rows[f"pruner_{name}_{way}_not_zero"] = Row.one(
                alive, "weights", f"absent but not zero, at most, in {CHANGES} changes"
            )
    return rows


def _program(step: Step) -> Step:
    return jax.jit(step, donate_argnums=0)


def _timed(
    steps: dict[str, Step], starts: dict[str, State], batch: Batch, rounds: int
) -> dict[str, Times]:
    """Seconds of the steps in each round, all in turn."""
    calls = {
        way: _training(_program(step), starts[way], batch)
        for way, step in steps.items()
    }
    return interleave(calls, rounds, at_least=0.02)


def passed_on(params: Any, batch: Any) -> Any:
    """Gradients that stand in the place of a batch."""
    return batch


def _task(model: nn.Module, image: jax.Array) -> tuple[Gradients, Any]:
    """The gradient of a loss by the parameters, and parameters to start with."""
    init = jax.jit(functools.partial(model.init, train=False))
    variables = dict(init(jax.random.key(0), image))
    params = variables.pop("params")

    def loss(params: Any, batch: Batch) -> jax.Array:
        images, labels = batch
        logits, _ = model.apply(
            {"params": params, **variables}, images, train=True, mutable="batch_stats"
        )
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses)

    return jax.grad(loss), params


def waves(params: Any, batch: Batch) -> Any:
    """Gradients of no loss: hardly two are equal, and they change with the weights."""
    return jax.tree.map(
        lambda p: jnp.sin(13.0 * jnp.arange(p.size).reshape(p.shape) + p), params
    )


def _training(program: Step, start: State, batch: Batch) -> Callable[[], Any]:
    """A call that trains one step further, in memory of its own."""
    now = [jax.tree.map(jnp.copy, start)]

    def call() -> Any:
        now[0] = program(now[0], batch)
        return now[0]

    return call


def _exactness(
    program: Step, start: State, batch: Batch, masks: Any
) -> tuple[int, int]:
    """How far counts are from those of `masks`, and how many absent are not zero."""

    def pruned(tree: Any) -> list[jax.Array]:
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(masks), strict=True)
        return [leaf for leaf, mask in pairs if is_pruned(mask)]

    state = jax.tree.map(jnp.copy, start)
    wrong, alive = [], []
    for _ in range(CHANGES):
        state = program(state, batch)
        layers = list(
            zip(*(pruned(t) for t in (masks, state[2], state[0])), strict=True)
        )
        wrong.append(sum(abs(int(a.sum()) - int((m != 0).sum())) for a, m, _ in layers))
        alive.append(sum(int(((m == 0) & (w != 0)).sum()) for _, m, w in layers))
    return max(wrong), max(alive)


# Steps from (parameters, optimizer's state, masks) to the same.


def bare(gradients: Gradients) -> Step:
    """Prunes nothing."""

    def step(state: State, batch: Batch) -> State:
        params, opt_state, masks = state
        updates, opt_state = OPTIMIZER.update(
            gradients(params, batch), opt_state, params
        )
        return optax.apply_updates(params, updates), opt_state, masks

    return step


def _pruner(schedule: RewiringSteps, method: str = "rigl") -> Pruner:
    rates = {"prune_rate": RATE, "prune_rate_schedule": "constant"}
    return Pruner(method, DENSITY, schedule=schedule, **rates)


def wrapper(
    gradients: Gradients, schedule: RewiringSteps, method: str = "rigl"
) -> Step:
    """Of this project's wrapper."""
    optimizer = _pruner(schedule, method).wrap(OPTIMIZER)

    def step(state: State, batch: Batch) -> State:
        params, opt_state, masks = state
        before = PrunerState(_count(opt_state), masks, opt_state)
        updates, after = optimizer.update(gradients(params, batch), before, params)
        return optax.apply_updates(params, updates), after.inner, after.masks

    return step


def hand(gradients: Gradients, *, changes: bool) -> Step:
    """Of a loop that is written by hand, whose host knows when masks change."""
    pruner = _pruner(DURING)

    def step(state: State, batch: Batch) -> State:
        params, opt_state, masks = state
        found = gradients(params, batch)
        updates, opt_state = OPTIMIZER.update(found, opt_state, params)
        params = apply_masks(masks, optax.apply_updates(params, updates))
        if changes:
            masks, opt_state = pruner.change(
                jax.random.key(0), _count(opt_state), params, masks, opt_state, found
            )
            params = apply_masks(masks, params)
        return params, opt_state, masks

    return step


def peer(gradients: Gradients, schedule: RewiringSteps) -> Step:
    """Of jaxpruner's semantics, with RigL."""

    def new_masks(params: Any, found: Any, opt_state: Any, masks: Any) -> Any:
        def of_leaf(param: jax.Array, gradient: jax.Array, mask: jax.Array) -> Any:
            return _rigl(param, gradient, mask) if is_pruned(mask) else mask

        new = jax.tree.map(of_leaf, params, found, masks)
        old_ones = jax.tree.map(lambda old, now: 1 - (1 - old) * now, masks, new)
        adam, *others = opt_state
        adam = adam._replace(
            mu=_times(adam.mu, old_ones, masks), nu=_times(adam.nu, old_ones, masks)
        )
        return new, (adam, *others)

    def step(state: State, batch: Batch) -> State:
        params, opt_state, masks = state
        found = gradients(params, batch)
        due = schedule.due(_count(opt_state) + 1)
        masks, opt_state = jax.lax.cond(
            due,
            new_masks,
            lambda params, found, opt_state, masks: (masks, opt_state),
            *(params, found, opt_state, masks),
        )
        updates, opt_state = jax.lax.cond(
            due,
            lambda found, opt_state, params: (
                jax.tree.map(jnp.zeros_like, found),
                opt_state,
            ),
            OPTIMIZER.update,
            *(_times(found, masks, masks), opt_state, params),
        )
        params = _times(optax.apply_updates(params, updates), masks, masks)
        return params, opt_state, masks

    return step


def _count(opt_state: Any) -> jax.Array:
    return opt_state[0].count


def _times(tree: Any, factors: Any, masks: Any) -> Any:
    """Products, where something is pruned."""
    return jax.tree.map(
        lambda leaf, factor, mask: leaf * factor if is_pruned(mask) else leaf,
        *(tree, factors, masks),
    )


def _rigl(param: jax.Array, gradient: jax.Array, mask: jax.Array) -> jax.Array:
    """A layer's new mask: the fraction that it keeps, then as many as it had."""
    density = jnp.sum(mask) / mask.size
    size, grow = jnp.abs(param), jnp.abs(gradient)
    size = jnp.where(mask == 0, jnp.min(size) - 1e-5, size)
    kept = _top_fraction(size, density * (1 - RATE))
    grow = jnp.where(kept == 1, jnp.max(grow) + 1e-5, grow)
    return _top_fraction(grow, density)


def _top_fraction(scores: jax.Array, density: jax.Array) -> jax.Array:
    """The largest scores, by sorting; how many is a rounded float."""
    count = jnp.maximum(1, jnp.round(scores.size * density).astype(int))
    order = jnp.argsort(-jnp.ravel(scores))
    ranks = jnp.zeros(scores.size, int).at[order].set(jnp.arange(scores.size))
    return (ranks < count).astype(jnp.uint8).reshape(scores.shape)
