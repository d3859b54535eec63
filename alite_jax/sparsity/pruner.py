"""Pruning around any optax optimizer, within its update.

The training loop stays what it was: `update`, then `optax.apply_updates`. Gradients
stay dense, as does the optimizer's state: by these absent weights are found that are
worth their place. What is absent is zero after each update, to the last bit.

`masked` keeps masks as they are, `Pruner.change` changes them, and `Pruner.wrap` does
both in one update. The project's own training calls the first two, each in a program of
its own, since its host knows when masks change.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from alite_jax.errors import ConfigError
from alite_jax.sparsity.distributions import layer_counts
from alite_jax.sparsity.gradual import fall, gradual_counts
from alite_jax.sparsity.masked import (
    PrunerState,
    masked,
    pruner_state,
    with_dense_masks,
)
from alite_jax.sparsity.masks import (
    RULES,
    Masks,
    Params,
    Rules,
    dense_masks,
    init_masks,
    is_prunable,
    is_pruned,
    prunes,
)
from alite_jax.sparsity.masks import density as density_of
from alite_jax.sparsity.methods import find_method
from alite_jax.sparsity.moments import first_moment, mask_first_moment
from alite_jax.sparsity.rewiring import rewire
from alite_jax.sparsity.schedules import RewiringSteps
from alite_jax.sparsity.schedules import prune_rate as at_rate
from alite_jax.trees import named_leaves


class Pruner:
    """How a network is pruned while it is trained.

    Attributes:
        method, schedule: as they were given.
        target: the density that was given.

    Example:
        >>> steps = alite_jax.RewiringSteps(total=30, every=10)
        >>> pruner = alite_jax.Pruner("rigl", density=0.1, schedule=steps)
        >>> pruner.method, [step for step in range(31) if step in pruner.schedule]
        ('rigl', [10, 20])
    """

    def __init__(
        self,
        method: str = "sparse_momentum",
        density: float = 0.1,
        distribution: str = "uniform",
        schedule: RewiringSteps | None = None,
        *,
        prune_rate: float = 0.5,
        prune_rate_end: float = 0.005,
        prune_rate_schedule: str = "cosine",
        rules: Rules = RULES,
        seed: int = 0,
    ) -> None:
        """Checks what it is given; nothing is allocated.

        Args:
            method: a key of `alite_jax.sparsity.methods.METHODS`.
            density: fraction of the prunable weights that is kept, in (0, 1].
            distribution: how layers share it, `"uniform"` or `"erk"`.
            schedule: after which updates masks change; may be left out for a method
                that changes none, such as `"static"`.
            prune_rate: fraction of the active weights that goes and comes back at the
                first step, in [0, 1], for methods by which weights come back.
            prune_rate_end: the same at the end of the changes.
            prune_rate_schedule: how it goes from one to the other, a key of
                `alite_jax.schedules.SCHEDULES`.
            rules: which parameters may be pruned; see `alite_jax.sparsity.masks.RULES`.
            seed: of all that is drawn at random.

        Raises:
            ConfigError: a name is unknown, the density or a rate is outside its range,
                or the method needs a schedule.
        """
        layer_counts([(1,)], density, distribution)
        at_rate(0.0, prune_rate, prune_rate_end, prune_rate_schedule)
        for rate in (prune_rate, prune_rate_end):
            if not 0 <= rate <= 1:
                raise ConfigError(
                    f"a prune rate is {rate}, but it is a fraction of the active"
                    " weights; give a number from 0 to 1, such as 0.5"
                )
        self._method = find_method(method)
        if self._method.changes and density < 1 and schedule is None:
            raise ConfigError(
                f"the method {method!r} changes masks, but the schedule is None; give"
                " RewiringSteps(total=STEPS, every=STEPS), or use 'static'"
            )
        self.method, self.target, self.schedule = method, density, schedule
        self._distribution, self._rules, self._seed = distribution, rules, seed
        self._rates = prune_rate, prune_rate_end, prune_rate_schedule

    def wrap(
        self, optimizer: optax.GradientTransformation
    ) -> optax.GradientTransformationExtraArgs:
        """Returns an optimizer that prunes what it trains.

        Its updates leave absent weights at zero once they were applied, from the first
        one on: until then the parameters are as they were given. Masks change within
        the update of each step of the schedule, under `jax.lax.cond`. Methods that go
        by the gradient take the one that the update is given. On several devices
        gradients must be the same on each, as after `jax.lax.pmean`; then so are the
        masks.

        Args:
            optimizer: any optax transformation whose updates are added to parameters.
                It stays the innermost one: what is chained behind a pruner moves absent
                weights again. If it keeps no first moment, the pruner does.

        Returns:
            `init(params)`, which draws the masks, and `update(gradients, state,
            params)`; the state is a `PrunerState`.

        Raises:
            ConfigError: no change of the masks is within the schedule.

        Example:
            >>> optimizer = pruner.wrap(optax.adamw(1e-3))
            >>> state, update = optimizer.init(params), jax.jit(optimizer.update)
            >>> for step in range(30):
            ...     updates, state = update(params, state, params)
            ...     params = optax.apply_updates(params, updates)
            >>> int(jnp.count_nonzero(params["kernel"])), params["kernel"].size
            (20, 200)
        """
        schedule = self.schedule
        if self._method.changes and self.target < 1 and schedule and schedule.last == 0:
            raise ConfigError(
                f"masks would change every {schedule.every} of {schedule.total} steps,"
                f" up to {schedule.stop_fraction:g} of them, but no such step comes"
                " before the last one; lower `every` or raise `total`"
            )
        inner = masked(optimizer)

        def init(params: Params) -> PrunerState:
            start = self.init_masks(jax.random.key(self._seed), params)
            return inner.init(params)._replace(masks=start)

        def update(
            gradients: Params,
            state: PrunerState,
            params: Params | None = None,
            **extra: Any,
        ) -> tuple[Params, PrunerState]:
            old, step = state.masks, state.step + 1
            if schedule is None or not self._method.changes or not prunes(old):
                return inner.update(gradients, state, params, **extra)

            def changed() -> tuple[Masks, jax.Array]:
                # Updates are computed here once more, since to hand them to the branch
                # they would be written to memory at each step.
                updates, after = inner.update(gradients, state, params, **extra)
                moved = optax.apply_updates(params, updates)
                args = step, moved, old, after.inner, gradients
                masks, _ = self.change(jax.random.key(self._seed), *args)
                some = jax.tree.reduce(
                    lambda found, mask: found | mask.any(), masks, False
                )
                return masks, jnp.any(some)

            masks, true = jax.lax.cond(
                schedule.due(step), changed, lambda: (old, jnp.ones((), bool))
            )
            # Some weight is always left. XLA does not know: what waits for the answer
            # comes after the branch, and the optimizer's state, which the branch reads,
            # may then be overwritten. Otherwise it would be copied at each step.
            waiting = jax.tree.map(lambda g: jnp.where(true, g, 0), gradients)
            # What just came in starts from zero.
            stays = state._replace(masks=jax.tree.map(jnp.logical_and, old, masks))
            updates, after = inner.update(waiting, stays, params, **extra)
            opt_state = self.renewed(after.inner, params, old, masks)
            return updates, PrunerState(after.step, masks, opt_state)

        return optax.GradientTransformationExtraArgs(init, update)

    def init_masks(self, key: chex.PRNGKey, params: Params) -> Masks:
        """The masks to start with: random ones, or dense ones for gradual pruning.

        Args:
            key: PRNG key.
            params: parameters, or their shapes.

        Raises:
            ConfigError: no rule names a parameter, or none may be pruned.

        Example:
            >>> masks = pruner.init_masks(jax.random.key(0), params)
            >>> masks["kernel"].shape, int(masks["kernel"].sum()), masks["bias"].shape
            ((10, 20), 20, ())
        """
        if self.target == 1:
            return dense_masks(params)
        rules = self._rules
        if not any(is_prunable(*named, rules) for named in named_leaves(params)):
            raise ConfigError(
                "there is nothing to prune: by the rules every parameter stays dense;"
                " give `rules` that name some, or density=1"
            )
        density = 1.0 if self._method.starts_dense else self.target
        return init_masks(key, params, density, self._distribution, rules)

    def change(
        self,
        key: chex.PRNGKey,
        step: jax.Array,
        params: Params,
        masks: Masks,
        opt_state: optax.OptState,
        gradients: Params | None = None,
        allowed: Masks | None = None,
    ) -> tuple[Masks, optax.OptState]:
        """Changes the masks, as after a step of the schedule.

        Args:
            key: PRNG key; the step is folded into it.
            step: int32 scalar, steps done, at least 1.
            params: parameters after that step, absent ones zero.
            masks: those until now.
            opt_state: the optimizer's own state.
            gradients: for methods that go by them, a pytree like `params`.
            allowed: masks of the weights that may be kept; see `rewire`.

        Returns:
            New masks, to be applied to the parameters, and the optimizer's state. A
            weight that went out keeps its momentum and may come back; one that came
            in has its own, or none where the method says so.
        """
        method = self._method
        scores = gradients if method.by_gradient else first_moment(opt_state, params)
        assert scores is not None and self.schedule is not None
        # Sums over a layer need more digits than 16-bit floats have.
        weights, scores = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float32), (params, scores)
        )
        if method.starts_dense:
            counts = self.schedule.of_change(self._falling(masks), step)
            new = fall(key, weights, scores, masks, counts, self.method, allowed)
        else:
            step_key, rate = jax.random.fold_in(key, step), self.rate(step)
            new = rewire(weights, scores, masks, rate, step_key, self.method, allowed)
        return new, self.renewed(opt_state, params, masks, new)

    def rate(self, step: jax.Array) -> jax.Array:
        """The share of the active weights that goes and comes back after a step."""
        assert self.schedule is not None
        return at_rate(self.schedule.progress(step), *self._rates)

    def renewed(
        self, opt_state: optax.OptState, params: Params, before: Masks, after: Masks
    ) -> optax.OptState:
        """The optimizer's state once masks have changed.

        What came in may have gathered momentum while it was absent; where the method
        says so, it starts without.
        """
        if not self._method.fresh_momentum:
            return opt_state
        kept = jax.tree.map(lambda old, new: old | ~new, before, after)
        return mask_first_moment(opt_state, params, kept)

    def masks(self, state: optax.OptState) -> Masks:
        """The masks of an optimizer's state, however deep in it the pruner's lies.

        Raises `ConfigError` where there are none, as `density` does.

        Example:
            >>> int(pruner.masks(state)["kernel"].sum())
            20
        """
        return pruner_state(state).masks

    def density(self, state: optax.OptState) -> float:
        """The kept fraction of the prunable weights; 1.0 if there are none.

        Example:
            >>> pruner.density(state)
            0.1
        """
        return density_of(self.masks(state))

    def to_dense(self, state: optax.OptState) -> optax.OptState:
        """The state with which training goes on dense: masks that keep everything.

        What was absent starts from zero, with the momentum that it has gathered. The
        masks are scalars then, so that the update compiles once more.

        Example:
            >>> pruner.density(pruner.to_dense(state))
            1.0
        """
        return with_dense_masks(state)

    def _falling(self, masks: Masks) -> np.ndarray:
        """How many weights each layer keeps after each change, `[changes, layers]`."""
        assert self.schedule is not None
        shapes = [mask.shape for mask in jax.tree.leaves(masks) if is_pruned(mask)]
        remaining = self.schedule.remaining()
        return gradual_counts(shapes, self.target, self._distribution, remaining)
